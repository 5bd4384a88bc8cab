"""Converts the larger MobileNetV2 inside the npm package nsfwjs ("mid") to the ONNX file that the detector `nsfw` runs.

    npm pack nsfwjs@4.4.0
    python -m training.convert_nsfwjs nsfwjs-4.4.0.tgz [--out safety/models/nsfw_mobilenet_v2_mid.onnx]

The package has it as a TensorFlow graph of few operators, batch normalisation already folded in. Kernels keep their 8 bits:
DequantizeLinear restores them inside the graph. Needs `onnx` and nothing else; runs no JavaScript. Knows the operators of this one
network: anything else in the file is refused.
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

FOLDER = "package/dist/models/mobilenet_v2_mid/"
# Of the files inside nsfwjs 4.4.0.
SOURCES = {
    "model.min.js": "a7a9e701491e2449b221dab7c424957f853e700602b5575da33cfd745616f964",
    "group1-shard1of2.min.js": "f2e79a209e44d668220ec5f1533a98f2be954e3953685bf074d201b82fefc29a",
    "group1-shard2of2.min.js": "f291df992a0131741372506a6072fb9f1645bff7c973c983fd6276f5f9625d5e",
}
CLASSES = ("drawing", "hentai", "neutral", "porn", "sexy")  # the order of nsfwjs' NSFW_CLASSES
SIDE, OPSET, IR = 224, 17, 8
_CONVOLUTIONS = {"_FusedConv2D": False, "FusedDepthwiseConv2dNative": True}  # operator → whether each channel has a kernel of its own
_PLAIN = {"AddV2": "Add", "Mul": "Mul", "Sub": "Sub"}
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
class Graph:
    """Nodes and constants of the ONNX graph so far. Every method gives the name of what it added."""

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

    def relu6(self, source: str, output: str) -> str:
        if not any(tensor.name == "six" for tensor in self.constants):
            self.constant("zero", np.array(0, np.float32))
            self.constant("six", np.array(6, np.float32))
        return self.node("Clip", [source, "zero", "six"], output)


def parse_literal(script: str) -> Any:
    """The first object or string that a CommonJS bundle exports, without running it: JSON, but for bare keys, `!0`, `!1` and `.5`."""
    start = script.index(".exports=", script.index("{1:[function")) + len(".exports=")
    parts, depth, position = [], 0, start
    while match := _TOKEN.match(script, position):
        token, position = match.group(), match.end()
        depth += (token in "{[") - (token in "}]")
        if depth == 0 and token[0].isalpha():
            break  # a call or a variable, not a literal
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


def read_package(path: Path) -> tuple[list[Config], dict[str, Stored]]:
    """(nodes of the graph, tensors by name). Raises `ValueError` for other files than those of nsfwjs 4.4.0."""
    scripts = _scripts(path)
    shards = b"".join(base64.b64decode(scripts[name], validate=True) for name in sorted(SOURCES) if name.startswith("group1"))
    model = scripts["model.min.js"]
    return model["modelTopology"]["node"], _tensors(model["weightsManifest"], np.frombuffer(shards, np.uint8))


def _scripts(path: Path) -> dict[str, Any]:
    """What the package's files export, by name. Raises `ValueError` where one is not of its sha256."""
    scripts = {}
    with tarfile.open(path) as archive:
        for name, sha256 in SOURCES.items():
            member = archive.extractfile(FOLDER + name)
            data = member.read() if member else b""
            if hashlib.sha256(data).hexdigest() != sha256:
                raise ValueError(f"{name} is not the file of nsfwjs 4.4.0: its sha256 is {hashlib.sha256(data).hexdigest()}")
            scripts[name] = parse_literal(data.decode("utf-8"))
    return scripts


def _tensors(manifest: list[Config], raw: NDArray[np.uint8]) -> dict[str, Stored]:
    """The tensors by name, cut out of the weights file. Raises `ValueError` where it has another length than the manifest tells."""
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


def convert(nodes: list[Config], tensors: dict[str, Stored]) -> onnx.ModelProto:
    """pixel_values float32 (batch, 3, 224, 224), RGB in [0, 1] → probabilities float32 (batch, 5), in the order of `CLASSES`."""
    graph, value, sides = Graph(), {}, {}
    for node in nodes:
        name, kind = node["name"], node["op"]
        if kind == "Const":
            continue
        if kind == "Placeholder":
            value[name], sides["pixel_values"] = "pixel_values", SIDE
            continue
        output = f"n{len(value)}"
        value[name] = _node(graph, node, [value.get(source, source) for source in node["input"]], tensors, output, sides)
    graph.node("Identity", [value["Identity"]], "probabilities")
    return _finished(graph)


def _node(graph: Graph, node: Config, inputs: list[str], tensors: dict[str, Stored], output: str, sides: dict[str, int]) -> str:
    kind, attributes = node["op"], node["attr"]
    sides[output] = max(sides.get(source, 1) for source in inputs)
    if kind in _CONVOLUTIONS:
        return _convolution(graph, node, inputs, tensors, output, sides)
    if kind in _PLAIN:
        return graph.node(_PLAIN[kind], [_scalar(graph, name, tensors, f"{output}.constant") for name in inputs], output)
    if kind == "AvgPool" and _text(attributes["padding"]["s"]) == "VALID":
        height, width = _numbers(attributes["ksize"])[1:3]
        if (height, width) == (sides[inputs[0]],) * 2:
            return graph.node("GlobalAveragePool", inputs, output)
    if kind == "Squeeze":
        return graph.node("Flatten", inputs, output, axis=1)  # of one pixel
    if kind == "_FusedMatMul" and _fused(attributes) == ["BiasAdd"]:
        kernel = tensors[inputs[1]]
        weight = graph.dequantized(f"{output}.weight", kernel, kernel.q, np.ones(kernel.q.shape[1]), axis=1)
        return graph.node("Gemm", [inputs[0], weight, _bias(graph, tensors[inputs[2]], output)], output)
    if kind == "Softmax":
        return graph.node("Softmax", inputs, output, axis=1)
    if kind == "Identity":
        return graph.node("Identity", inputs, output)
    raise ValueError(f"{node['name'][-60:]} is an operator that this network has not: {kind}")


def _convolution(graph: Graph, node: Config, inputs: list[str], tensors: dict[str, Stored], output: str, sides: dict[str, int]) -> str:
    """SAME padding as TensorFlow has it: what is odd goes below and to the right."""
    attributes, depthwise = node["attr"], _CONVOLUTIONS[node["op"]]
    if _text(attributes["padding"]["s"]) != "SAME" or set(_numbers(attributes["dilations"])) != {1}:
        raise ValueError(f"{node['name'][-60:]} is another convolution than this network has")
    kernel, stride = tensors[inputs[1]], _numbers(attributes["strides"])[1]
    q = kernel.q.transpose((2, 3, 0, 1) if depthwise else (3, 2, 0, 1))  # (height, width, in, out or 1) → (out, in or 1, height, width)
    weight = graph.dequantized(f"{output}.weight", kernel, q, np.ones(q.shape[0]), axis=0)
    side, size = sides[inputs[0]], q.shape[2]
    sides[output] = -(-side // stride)
    missing = max(0, (sides[output] - 1) * stride + size - side)
    pads = [missing // 2, missing // 2, missing - missing // 2, missing - missing // 2]
    shape = {"strides": [stride] * 2, "pads": pads, "kernel_shape": [size, size], "group": q.shape[0] if depthwise else 1}
    fused, bias = _fused(attributes), _bias(graph, tensors[inputs[2]], output)
    if fused == ["BiasAdd"]:
        return graph.node("Conv", [inputs[0], weight, bias], output, **shape)
    if fused != ["BiasAdd", "Relu6"]:
        raise ValueError(f"{node['name'][-60:]} is followed by {fused}")
    return graph.relu6(graph.node("Conv", [inputs[0], weight, bias], f"{output}.linear", **shape), output)


def _scalar(graph: Graph, name: str, tensors: dict[str, Stored], constant: str) -> str:
    if name not in tensors:
        return name
    if tensors[name].q.size != 1:
        raise ValueError(f"{name[-60:]} is no single number")
    return graph.constant(constant, tensors[name].values.astype(np.float32).reshape(()))


def _bias(graph: Graph, stored: Stored, output: str) -> str:
    return graph.constant(f"{output}.bias", stored.values.astype(np.float32))


def _text(encoded: str) -> str:
    return base64.b64decode(encoded).decode("ascii")


def _numbers(attribute: Config) -> list[int]:
    return [int(number) for number in attribute["list"]["i"]]


def _fused(attributes: Config) -> list[str]:
    return [_text(name) for name in attributes["fused_ops"]["list"]["s"]]


def _finished(graph: Graph) -> onnx.ModelProto:
    """The checked model of `pixel_values` → `probabilities`."""
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])
    classes = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", len(CLASSES)])
    main = helper.make_graph(graph.nodes, "nsfw_mobilenet_v2_mid", [pixels], [classes], graph.constants)
    model = helper.make_model(main, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR, producer_name="platemark")
    onnx.checker.check_model(model, full_check=True)
    return model


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="nsfwjs-4.4.0.tgz")
    parser.add_argument("--out", type=Path, default=Path("safety/models/nsfw_mobilenet_v2_mid.onnx"))
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
