"""Converts the MobileNetV2 inside the npm package nsfwjs to the ONNX file that the detector `nsfw` runs.

    npm pack nsfwjs@4.4.0
    python -m training.convert_nsfwjs nsfwjs-4.4.0.tgz [--out safety/models/nsfw_mobilenet_v2.onnx]

Kernels keep their 8 bits: DequantizeLinear restores them inside the graph. Batch normalisation is folded into its scales (one a channel)
and into the bias of the convolution before it. Needs `onnx` and nothing else; runs no JavaScript. Knows the layers of this one network:
anything else in the file is refused.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

FOLDER = "package/dist/models/mobilenet_v2/"
# Of the two files inside nsfwjs 4.4.0.
SOURCES = {
    "model.min.js": "c32f104fd562b08cdff5ed69dfe1209643afa47e792fb12751d2949aa61a397a",
    "group1-shard1of1.min.js": "ef2e0a63f7d2c4960b37b024b669313f65d3c45cd59e9042636c55b39de53517",
}
CLASSES = ("drawing", "hentai", "neutral", "porn", "sexy")  # the order of nsfwjs' NSFW_CLASSES
SIDE, OPSET, IR = 224, 17, 8
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|!0|!1|[A-Za-z_$][\w$]*|-?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|[{}\[\]:,]')

Config = dict[str, Any]


@dataclass(frozen=True)
class Stored:
    """One tensor as the package has it: value = (q - zero_point) * scale, or q * scale + minimum where zero is no step."""

    q: NDArray[np.uint8]
    scale: float
    minimum: float

    @property
    def values(self) -> NDArray[np.float64]:
        return self.q * self.scale + self.minimum

    @property
    def zero_point(self) -> int:
        """Raises `ValueError` where zero is not one of the 256 steps: such a tensor cannot go through DequantizeLinear unchanged."""
        exact = -self.minimum / self.scale
        if abs(exact - round(exact)) > 1e-6 or not 0 <= round(exact) <= 255:
            raise ValueError(f"zero lies at step {exact}, which is none")
        return round(exact)


@dataclass
class _Graph:
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, name: str, values: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], f"{output}/{kind}", **attributes))
        return output

    def dequantized(self, name: str, stored: Stored, q: NDArray[np.uint8], factor: NDArray[np.float64], axis: int) -> str:
        """The kernel times `factor` (one a channel on `axis` of `q`), restored from its 8 bits."""
        scale = self.constant(f"{name}.scale", (stored.scale * factor).astype(np.float32))
        zero = self.constant(f"{name}.zero_point", np.full(len(factor), stored.zero_point, np.uint8))
        return self.node("DequantizeLinear", [self.constant(f"{name}.q", q), scale, zero], name, axis=axis)


def parse_literal(script: str) -> Any:
    """The first object or string that a CommonJS bundle exports, without running it: JSON, but for bare keys, `!0`, `!1` and `.5`."""
    start = script.index(".exports=", script.index("{1:[function")) + len(".exports=")
    parts, depth, position = [], 0, start
    while match := _TOKEN.match(script, position):
        token, position = match.group(), match.end()
        depth += (token in "{[") - (token in "}]")
        parts.append(_json_token(token))
        if depth == 0:
            return json.loads("".join(parts))
    raise ValueError(f"no literal at character {position}")


def _json_token(token: str) -> str:
    if token in ("!0", "!1"):
        return "true" if token == "!0" else "false"
    if token[0].isalpha() or token[0] in "_$":
        return token if token == "null" else json.dumps(token)
    if token[0] == "." or token.startswith("-."):
        return token.replace(".", "0.", 1)
    return token + "0" if token.endswith(".") else token


def read_package(path: Path) -> tuple[Config, dict[str, Stored]]:
    """(Keras model config, tensors by name). Raises `ValueError` for other files than those of nsfwjs 4.4.0."""
    scripts = {}
    with tarfile.open(path) as archive:
        for name, sha256 in SOURCES.items():
            member = archive.extractfile(FOLDER + name)
            data = member.read() if member else b""
            if hashlib.sha256(data).hexdigest() != sha256:
                raise ValueError(f"{name} is not the file of nsfwjs 4.4.0: its sha256 is {hashlib.sha256(data).hexdigest()}")
            scripts[name] = parse_literal(data.decode("utf-8"))
    model = scripts["model.min.js"]
    raw = np.frombuffer(base64.b64decode(scripts["group1-shard1of1.min.js"], validate=True), np.uint8)
    return model["modelTopology"]["model_config"]["config"], _tensors(model["weightsManifest"], raw)


def _tensors(manifest: list[Config], raw: NDArray[np.uint8]) -> dict[str, Stored]:
    found, position = {}, 0
    for entry in (weight for group in manifest for weight in group["weights"]):
        quantized, count = entry["quantization"], int(np.prod(entry["shape"]))
        if quantized["dtype"] != "uint8":
            raise ValueError(f"{entry['name']} is stored as {quantized['dtype']}")
        q = raw[position : position + count].reshape(entry["shape"])
        found[entry["name"]] = Stored(q, quantized["scale"], quantized["min"])
        position += count
    if position != raw.size:
        raise ValueError(f"{raw.size} bytes of weights where the manifest tells of {position}")
    return found


def convert(config: Config, tensors: dict[str, Stored]) -> onnx.ModelProto:
    """pixel_values float32 (batch, 3, 224, 224), RGB in [0, 1] → probabilities float32 (batch, 5), in the order of `CLASSES`."""
    graph, value, pads = _Graph(), {"input_1": "pixel_values"}, {}
    layers = config["layers"]
    norms = {layer["inbound_nodes"][0][0][0]: layer for layer in layers if layer["class_name"] == "BatchNormalization"}
    for layer in layers[1:]:
        name, kind, own = layer["name"], layer["class_name"], layer["config"]
        sources = [entry[0] for entry in layer["inbound_nodes"][0]]
        inputs = [value[source] for source in sources]
        if kind == "ZeroPadding2D":
            value[name], pads[name] = inputs[0], [side[end] for end in (0, 1) for side in own["padding"]]
        elif kind in ("BatchNormalization", "Dropout"):  # folded into the convolution; off when a network is used
            value[name] = inputs[0]
        elif kind in ("Conv2D", "DepthwiseConv2D"):
            value[name] = _convolution(graph, layer, norms[name], tensors, inputs[0], pads.get(sources[0]))
        elif kind == "Dense":
            value[name] = _dense(graph, name, own["activation"], tensors, inputs[0])
        else:
            value[name] = _plain(graph, kind, own, inputs, name)
    graph.node("Identity", [value[config["output_layers"][0][0]]], "probabilities")
    return _model(graph)


def _convolution(graph: _Graph, layer: Config, norm: Config, tensors: dict[str, Stored], source: str, pads: list[int] | None) -> str:
    """A convolution without bias and the batch normalisation behind it: y = (x * k - mean) * gamma / sqrt(variance + epsilon) + beta."""
    name, own, depthwise = layer["name"], layer["config"], layer["class_name"] == "DepthwiseConv2D"
    if own["use_bias"] or own["activation"] != "linear" or own["dilation_rate"] != [1, 1]:
        raise ValueError(f"{name} is another convolution than MobileNetV2 has")
    gamma, beta, mean, variance = (tensors[f"{norm['name']}/{key}"].values for key in ("gamma", "beta", "moving_mean", "moving_variance"))
    factor = gamma / np.sqrt(variance + norm["config"]["epsilon"])
    kernel = tensors[f"{name}/{'depthwise_kernel' if depthwise else 'kernel'}"]
    q = kernel.q.transpose((2, 3, 0, 1) if depthwise else (3, 2, 0, 1))  # (height, width, in, out or 1) → (out, in or 1, height, width)
    weight = graph.dequantized(f"{name}.weight", kernel, q, factor, axis=0)
    bias = graph.constant(f"{name}.bias", (beta - mean * factor).astype(np.float32))
    height, width = own["kernel_size"]
    if pads is None:
        if own["strides"] != [1, 1] or (own["padding"] != "same" and (height, width) != (1, 1)):
            raise ValueError(f"{name} has a padding that MobileNetV2 has not")
        pads = [height // 2, width // 2, height // 2, width // 2]
    group = len(factor) if depthwise else 1
    return graph.node("Conv", [source, weight, bias], name, strides=own["strides"], pads=pads, kernel_shape=[height, width], group=group)


def _dense(graph: _Graph, name: str, activation: str, tensors: dict[str, Stored], source: str) -> str:
    kernel = tensors[f"{name}/kernel"]
    weight = graph.dequantized(f"{name}.weight", kernel, kernel.q, np.ones(kernel.q.shape[1]), axis=1)
    bias = graph.constant(f"{name}.bias", tensors[f"{name}/bias"].values.astype(np.float32))
    linear = graph.node("Gemm", [source, weight, bias], f"{name}.linear")
    kinds = {"relu": ("Relu", {}), "softmax": ("Softmax", {"axis": 1})}
    operator, attributes = kinds[activation]
    return graph.node(operator, [linear], name, **attributes)


def _plain(graph: _Graph, kind: str, own: Config, inputs: list[str], name: str) -> str:
    if kind == "ReLU" and own["max_value"] == 6 and not own["negative_slope"] and not own["threshold"]:
        if not any(tensor.name == "six" for tensor in graph.constants):
            graph.constant("zero", np.array(0, np.float32))
            graph.constant("six", np.array(6, np.float32))
        return graph.node("Clip", [inputs[0], "zero", "six"], name)
    if kind == "Add" and len(inputs) == 2:
        return graph.node("Add", inputs, name)
    if kind == "AveragePooling2D" and own["pool_size"] == own["strides"] and own["padding"] == "valid":
        return graph.node("AveragePool", inputs, name, kernel_shape=own["pool_size"], strides=own["strides"])
    if kind == "Flatten":
        return graph.node("Flatten", inputs, name, axis=1)  # of one pixel: the order of channels is the same in both layouts
    raise ValueError(f"{name} is a layer that MobileNetV2 has not: {kind}")


def _model(graph: _Graph) -> onnx.ModelProto:
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])
    classes = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", len(CLASSES)])
    main = helper.make_graph(graph.nodes, "nsfw_mobilenet_v2", [pixels], [classes], graph.constants)
    model = helper.make_model(main, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR, producer_name="platemark")
    onnx.checker.check_model(model, full_check=True)
    return model


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="nsfwjs-4.4.0.tgz")
    parser.add_argument("--out", type=Path, default=Path("safety/models/nsfw_mobilenet_v2.onnx"))
    args = parser.parse_args(arguments)
    try:
        model = convert(*read_package(args.package))
    except (OSError, ValueError, KeyError, tarfile.TarError) as error:
        sys.exit(f"{args.package.name} cannot be converted: {error}")
    data = model.SerializeToString(deterministic=True)
    partial = args.out.with_suffix(".partial")
    partial.write_bytes(data)
    partial.replace(args.out)
    print(f"{hashlib.sha256(data).hexdigest()}  {args.out} ({len(data)} bytes)")


if __name__ == "__main__":
    main()
