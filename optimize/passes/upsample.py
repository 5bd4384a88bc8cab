"""Nearest-2× upsampling and the 3×3 convolution behind it become four 2×2 convolutions on the small grid. Exact but for rounding.

Each output pixel of the pair sees at most 2×2 different pixels of the small grid, for nearest-2× repeats each one. Which taps of the 3×3
kernel fall on the same pixel depends on the output pixel's parity alone: per axis [0], [1, 2] for even and [0, 1], [2] for odd ones. So
four kernels with those taps summed (one a parity), padded on one side, give the four interleaved quarters of the output, with 16
multiplications where there were 36. The sums are constants of the graph: the weights stay where they are.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from onnx import helper, numpy_helper

# Rows: the two small-grid pixels that an output pixel of this parity sees; columns: the three taps.
_TAPS = (np.array([[1, 0, 0], [0, 1, 1]], np.float32), np.array([[1, 1, 0], [0, 0, 1]], np.float32))
_PLAIN_CONV = {"strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1], "group": 1, "auto_pad": b"NOTSET"}


def split_upsampled(model: onnx.ModelProto) -> int:
    """Rewrites every such pair whose upsampled values nobody else reads. Returns how many there were."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input) + Counter(output.name for output in graph.output)
    resized = {node.output[0]: node for node in graph.node if _doubles(node, constants) and readers[node.output[0]] == 1}
    shapes = _weight_shapes(graph, constants)
    nodes: list[onnx.NodeProto] = []
    pairs = {node.input[0]: node for node in graph.node if _plain_3x3(node, shapes) and node.input[0] in resized}
    for node in graph.node:
        if node.output[0] in pairs:
            continue  # the upsampling itself
        pair = node.op_type == "Conv" and node.input[0] in pairs
        nodes += _four(node, resized[node.input[0]].input[0], _channels(shapes[node.input[1]])) if pair else [node]
    if pairs:
        graph.initializer.extend(_tap_constants({_channels(shapes[conv.input[1]]) for conv in pairs.values()}))
        del graph.node[:]
        graph.node.extend(nodes)
    return len(pairs)


def _doubles(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    """Whether a node repeats each pixel twice, both ways."""
    if node.op_type != "Resize" or len(node.input) < 3 or node.input[2] not in constants or any(node.input[3:]):
        return False
    found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    grid = (found.get("coordinate_transformation_mode", b"half_pixel"), found.get("nearest_mode", b"round_prefer_floor"))
    scales = numpy_helper.to_array(constants[node.input[2]])
    nearest = found.get("mode", b"nearest") == b"nearest" and grid == (b"asymmetric", b"floor") and "axes" not in found
    return nearest and np.array_equal(scales, [1, 1, 2, 2])


def _plain_3x3(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> bool:
    if node.op_type != "Conv" or shapes.get(node.input[1], ())[2:] != (3, 3):
        return False
    found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    found.pop("kernel_shape", None)
    plain = {"strides": [1, 1], "dilations": [1, 1], "group": 1, "auto_pad": b"NOTSET", **found}
    return plain == _PLAIN_CONV


def _channels(kernel: tuple[int, ...]) -> tuple[int, int]:
    return kernel[0], kernel[1]


def _weight_shapes(graph: onnx.GraphProto, constants: dict[str, onnx.TensorProto]) -> dict[str, tuple[int, ...]]:
    """Shapes of the constants, and of those behind a Cast to float32."""
    shapes: dict[str, tuple[int, ...]] = {name: tuple(tensor.dims) for name, tensor in constants.items()}
    casts = [node for node in graph.node if node.op_type == "Cast" and node.input[0] in constants]
    return shapes | {node.output[0]: shapes[node.input[0]] for node in casts}


def _tap_constants(channels: set[tuple[int, int]]) -> list[onnx.TensorProto]:
    """The four matrices (9, 4) that sum a kernel's taps, and the shapes that the sums take, by (out, in) channels."""
    sums = {f"taps_{row}{column}": np.kron(_TAPS[row], _TAPS[column]).T.copy() for row in (0, 1) for column in (0, 1)}
    shapes = {_shape_name(pair): np.array([*pair, 2, 2], np.int64) for pair in sorted(channels)}
    return [numpy_helper.from_array(values, name) for name, values in {"taps_shape": np.array([-1, 9]), **sums, **shapes}.items()]


def _shape_name(channels: tuple[int, int]) -> str:
    return f"taps_shape_{channels[0]}x{channels[1]}"


def _four(conv: onnx.NodeProto, source: str, channels: tuple[int, int]) -> list[onnx.NodeProto]:
    """The nodes in a convolution's place; `source` is the value before upsampling."""
    name, weights, bias, output = conv.name or conv.output[0], conv.input[1], list(conv.input[2:]), conv.output[0]
    flat = f"{output}/taps"
    nodes, quarters = [helper.make_node("Reshape", [weights, "taps_shape"], [flat], f"{name}/taps")], []
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        quarter, at = f"{output}/{row}{column}", f"{name}/{row}{column}"
        pads = [1 - row, 1 - column, row, column]
        nodes += [
            helper.make_node("MatMul", [flat, f"taps_{row}{column}"], [f"{quarter}/sums"], f"{at}/sums"),
            helper.make_node("Reshape", [f"{quarter}/sums", _shape_name(channels)], [f"{quarter}/kernel"], f"{at}/kernel"),
            helper.make_node("Conv", [source, f"{quarter}/kernel", *bias], [quarter], at, kernel_shape=[2, 2], pads=pads),
        ]
        quarters.append(quarter)
    nodes.append(helper.make_node("Concat", quarters, [f"{output}/quarters"], f"{name}/Concat", axis=1))
    nodes.append(helper.make_node("DepthToSpace", [f"{output}/quarters"], [output], f"{name}/DepthToSpace", blocksize=2, mode="DCR"))
    return nodes
