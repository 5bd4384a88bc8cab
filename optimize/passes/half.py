"""A float32 graph computes in float16 instead: inputs and outputs stay float32, and so do constants until somebody reads them.

What must not lose bits stays float32 between casts: sines and cosines of the timestep with all that leads to them (fp16 knows every
timestep, but not its product with a frequency), and the nodes of a keep-list. Normalisations keep their own float32 statistics, which
is what ONNX's `stash_type` says unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx
from onnx import TensorProto, helper

_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16
_SENSITIVE = ("Sin", "Cos")
_ALWAYS_FLOAT = {"Resize": (1, 2)}  # inputs that ONNX gives one type only: region and scales
_FIXED = dict.fromkeys(("Shape", "Size", "ArgMax", "ArgMin", "NonZero"), int(TensorProto.INT64)) | dict.fromkeys(
    ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "Xor", "IsNaN", "IsInf"), int(TensorProto.BOOL)
)


def to_half(model: onnx.ModelProto, keep: Collection[str] = ()) -> int:
    """Casts in place; `keep` names nodes that stay float32. Returns the number of nodes that compute in float16."""
    graph = model.graph
    floats = float_values(graph)
    constant = constant_values(graph)
    kept = {*keep, *_leading_to_sensitive(graph)}
    casts = _Casts(graph, floats, constant)
    nodes: list[onnx.NodeProto] = [node for port in graph.input if port.name in floats for node in casts.narrow(port.name)]
    halved = 0
    for node in graph.node:
        if set(node.output) <= constant:
            nodes.append(node)
            continue
        stays = node.name in kept
        halved += not stays and not floats.isdisjoint(node.output)
        nodes += casts.connect(node, stays)
    nodes += [
        helper.make_node("Cast", [casts.half(port.name)], [port.name], f"{port.name}/Cast", to=_FLOAT)
        for port in graph.output
        if port.name in floats
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    return halved


class _Casts:
    """Which values have a float16 twin (`<name>/half`), and the casts that make the missing ones."""

    def __init__(self, graph: onnx.GraphProto, floats: set[str], constant: set[str]) -> None:
        self._floats = floats
        self._outputs = {port.name for port in graph.output}
        self._halves: set[str] = set()
        self._fulls: set[str] = {port.name for port in graph.input} | constant

    def half(self, name: str) -> str:
        return f"{name}/half"

    def narrow(self, name: str) -> list[onnx.NodeProto]:
        """The cast to the float16 twin, the first time."""
        if name in self._halves:
            return []
        self._halves.add(name)
        return [helper.make_node("Cast", [name], [self.half(name)], f"{self.half(name)}/Cast", to=_HALF)]

    def _widen(self, name: str) -> list[onnx.NodeProto]:
        """The cast from the float16 twin to a float32 value, the first time."""
        if name in self._fulls:
            return []
        self._fulls.add(name)
        return [helper.make_node("Cast", [self.half(name)], [self._full(name)], f"{self._full(name)}/Cast", to=_FLOAT)]

    def _full(self, name: str) -> str:
        """The float32 value's name; an output's own name is taken by its last cast."""
        return f"{name}/full" if name in self._outputs else name

    def connect(self, node: onnx.NodeProto, stays: bool) -> list[onnx.NodeProto]:
        """The node, reading and writing float32 where it stays and float16 where not, with the casts before and behind it."""
        before: list[onnx.NodeProto] = []
        for index, name in enumerate(node.input):
            if name not in self._floats:
                continue
            if stays or index in _ALWAYS_FLOAT.get(node.op_type, ()):
                before += self._widen(name)
                node.input[index] = self._full(name)
            else:
                before += self.narrow(name)
                node.input[index] = self.half(name)
        behind: list[onnx.NodeProto] = []
        for index, name in enumerate(node.output):
            if name not in self._floats:
                continue
            if stays:
                node.output[index] = self._full(name)
                self._fulls.add(name)
                behind.append(helper.make_node("Cast", [self._full(name)], [self.half(name)], f"{self.half(name)}/Cast", to=_HALF))
            else:
                node.output[index] = self.half(name)
            self._halves.add(name)
        if not stays and node.op_type == "Cast" and node.output[0] in map(self.half, self._halves):
            _set_to(node, _HALF)
        return [*before, node, *behind]


def _set_to(cast: onnx.NodeProto, kind: int) -> None:
    for attribute in cast.attribute:
        if attribute.name == "to":
            attribute.i = kind


def float_values(graph: onnx.GraphProto) -> set[str]:
    """Every value of the graph that is float32. (onnx's own inference stops at GroupNormalization.)"""
    kinds = {port.name: port.type.tensor_type.elem_type for port in graph.input}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        kinds.update(dict.fromkeys(node.output, _kind(node, kinds)))
    return {name for name, kind in kinds.items() if kind == _FLOAT and name}


def _kind(node: onnx.NodeProto, kinds: dict[str, int]) -> int:
    """The element type of a node's outputs: that of its first input, but for the operators that say otherwise."""
    if node.op_type in _FIXED:
        return _FIXED[node.op_type]
    if node.op_type == "Cast":
        return next(int(attribute.i) for attribute in node.attribute if attribute.name == "to")
    if node.op_type == "ConstantOfShape":
        return next((int(attribute.t.data_type) for attribute in node.attribute if attribute.name == "value"), int(_FLOAT))
    return kinds[node.input[1 if node.op_type in ("Where", "CastLike") else 0]]


def constant_values(graph: onnx.GraphProto) -> set[str]:
    """Every value that depends on no input."""
    found = {tensor.name for tensor in graph.initializer} | {""}
    for node in graph.node:
        if all(name in found for name in node.input):
            found.update(node.output)
    return found - {""}


def _leading_to_sensitive(graph: onnx.GraphProto) -> set[str]:
    """The names of the sensitive nodes and of every node that they depend on."""
    needed = {name for node in graph.node if node.op_type in _SENSITIVE for name in node.output}
    found = set()
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            found.add(node.name)
            needed.update(node.input)
    return found
