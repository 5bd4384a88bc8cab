"""Small functions over ONNX graphs. Each changes a model in place and leaves what it computes as it was.

`link_weights` is the central one: it takes the weights out of the graph and points into the safetensors file beside it.
Knows nothing about torch or about any particular network.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from platemark.errors import EngineError
from platemark.optimize.weights import StoredTensor, read_float32

LEFTOVER_LIMIT = 64 << 10  # bytes of constants that may stay in a graph file
_ONNX_TYPES = {"F64": TensorProto.DOUBLE, "F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16}
_SHARED = 16 << 10  # bytes from which on equal constants are kept once
_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class Linked:
    """What `link_weights` did: checkpoint tensors in use, and the constants that stayed in the graph (name → bytes)."""

    tensors: tuple[str, ...]
    leftovers: dict[str, int]


def remove_dead(model: onnx.ModelProto) -> None:
    """Removes nodes and initializers that no output depends on."""
    graph = model.graph
    needed = {output.name for output in graph.output}
    alive: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            alive.append(node)
            needed.update(_reads(node))
    _replace(graph.node, reversed(alive))
    _replace(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in needed])


def name_nodes(model: onnx.ModelProto) -> None:
    """Names every node after the module that it came from (`down_blocks.0.resnets.0.conv1/Conv`), so that errors name the layer.

    Falls back to the operator alone; repeated names get a count. Reads the exporter's metadata, so it comes before `strip`.
    """
    seen: Counter[str] = Counter()
    for node in model.graph.node:
        name = "/".join(part for part in (_scope(node), node.op_type) if part)
        node.name = f"{name}_{seen[name]}" if seen[name] else name
        seen[name] += 1


def _scope(node: onnx.NodeProto) -> str:
    """The innermost named module: the exporter lists the scopes from the outermost in, and the operator last."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            scopes = re.findall(r"'([^']*)'", entry.value)[:-1]
            last = scopes[-1] if scopes else ""
            return "" if last.startswith("_empty") else last.removeprefix("net").lstrip(".")
    return ""


def name_values(model: onnx.ModelProto) -> None:
    """Numbers the values between nodes (`v0`, `v1`, ...) in graph order; inputs, outputs and initializers keep their names."""
    graph = model.graph
    kept = {value.name for value in (*graph.input, *graph.output, *graph.initializer)} | {""}
    produced = [name for node in graph.node for name in node.output if name not in kept]
    rename_values(model, {name: f"v{index}" for index, name in enumerate(produced)})


def name_constants(model: onnx.ModelProto) -> None:
    """Names the constants that live in the graph file `const_0`, `const_1`, ... in the order in which nodes read them."""
    local = {tensor.name for tensor in model.graph.initializer if tensor.data_location != TensorProto.EXTERNAL}
    order = dict.fromkeys(name for node in model.graph.node for name in node.input if name in local)
    rename_values(model, {name: f"const_{index}" for index, name in enumerate(order)})
    _replace(model.graph.initializer, sorted(model.graph.initializer, key=lambda tensor: tensor.name))


def rename_values(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Renames values (old → new) wherever nodes read or write them and wherever an initializer defines them."""
    for node in model.graph.node:
        for place in (node.input, node.output):
            for index, name in enumerate(place):
                place[index] = names.get(name, name)
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)


def share_constants(model: onnx.ModelProto) -> None:
    """Keeps one of large initializers that are equal: exporters write a causal mask once for every layer."""
    first: dict[bytes, str] = {}
    names: dict[str, str] = {}
    for tensor in model.graph.initializer:
        if tensor.ByteSize() < _SHARED:
            continue
        values = numpy_helper.to_array(tensor)
        content = hashlib.sha256(repr((tensor.data_type, values.shape)).encode() + values.tobytes()).digest()
        if first.setdefault(content, tensor.name) != tensor.name:
            names[tensor.name] = first[content]
    _replace(model.graph.initializer, [tensor for tensor in model.graph.initializer if tensor.name not in names])
    rename_values(model, names)


def strip(model: onnx.ModelProto) -> None:
    """Drops what does not compute: doc strings, metadata (the exporter writes stack traces with local paths), inferred shapes."""
    model.doc_string = ""
    model.producer_name, model.producer_version = "platemark", ""
    model.graph.name = "main"
    holders: list[Any] = [model, model.graph, *model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output]
    for holder in holders:
        for field in ("doc_string", "metadata_props"):
            holder.ClearField(field)
    model.graph.ClearField("value_info")


def set_shapes(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int | str]]) -> None:
    """Writes the declared shape of every input and output: an int where fixed, a name where free."""
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape
        dims.ClearField("dim")
        for size in shapes[value.name]:
            dims.dim.add(**{"dim_param" if isinstance(size, str) else "dim_value": size})


def link_weights(
    model: onnx.ModelProto, tensors: Iterable[StoredTensor], prefix: str = "", outside: Mapping[str, NDArray[Any]] | None = None
) -> Linked:
    """Takes the weights out of the graph: each float initializer that equals a stored tensor becomes a reference to its bytes.

    Equal means: the stored values as float32 are bit for bit the initializer's, in the same order (dims may differ) or as the
    transpose of a matrix. Candidates by name first (`prefix` + the tensor's name), then by content. The reference is an external
    initializer named after the tensor, in its stored type, then `Cast` to float32 (unless stored so), then `Transpose` where needed.
    `outside` has the values of initializers that `export_graph` left out, by their location.
    Raises `EngineError` where more than `LEFTOVER_LIMIT` bytes stay behind, so that weights never exist twice unseen.
    """
    held = _Held(outside or {})
    index = _Index([tensor for tensor in tensors if tensor.is_float and tensor.size], prefix)
    nodes: list[onnx.NodeProto] = []
    external: dict[str, TensorProto] = {}
    renamed: dict[str, str] = {}
    leftovers: list[TensorProto] = []
    for initializer in sorted(model.graph.initializer, key=lambda tensor: tensor.name):
        match = index.find(initializer, held)
        if match is None:
            leftovers.append(initializer)
            continue
        tensor, transposed = match
        dims = list(initializer.dims)
        renamed[initializer.name] = _refer(tensor, dims[::-1] if transposed else dims, transposed, external, nodes)
    _check_leftovers(leftovers, held)
    rename_values(model, renamed)
    _replace(model.graph.node, [*nodes, *model.graph.node])
    _replace(model.graph.initializer, [*external.values(), *leftovers])
    return Linked(tuple(sorted({t.name for t in external.values()})), {t.name: t.ByteSize() for t in leftovers})


class _Held:
    """The values of initializers: in the graph, or outside of it."""

    def __init__(self, outside: Mapping[str, NDArray[Any]]) -> None:
        self._outside = outside

    def values(self, tensor: TensorProto) -> NDArray[Any]:
        found = self._found(tensor)
        return numpy_helper.to_array(tensor) if found is None else found

    def size(self, tensor: TensorProto) -> int:
        found = self._found(tensor)
        return tensor.ByteSize() if found is None else found.nbytes

    def _found(self, tensor: TensorProto) -> NDArray[Any] | None:
        return next((self._outside[entry.value] for entry in tensor.external_data if entry.key == "location"), None)


class _Index:
    """Finds the stored tensor that an initializer equals. Values are compared; the key only narrows the search."""

    def __init__(self, tensors: list[StoredTensor], prefix: str) -> None:
        self._by_name = {prefix + tensor.name: tensor for tensor in tensors}
        self._by_key: dict[bytes, list[tuple[StoredTensor, bool]]] = defaultdict(list)
        for tensor in sorted(tensors, key=lambda t: t.name):
            values = read_float32(tensor)
            self._by_key[_key(values)].append((tensor, False))
            if values.ndim == 2:
                self._by_key[_key(values.T)].append((tensor, True))

    def find(self, initializer: TensorProto, held: _Held) -> tuple[StoredTensor, bool] | None:
        if initializer.data_type != TensorProto.FLOAT or not any(initializer.dims):
            return None
        values = held.values(initializer)
        named = self._by_name.get(initializer.name)
        candidates = [(named, False)] if named else []
        for tensor, transposed in [*candidates, *self._by_key.get(_key(values), [])]:
            stored = read_float32(tensor)
            if _same_bits(values, stored.T if transposed else stored, same_shape=transposed):
                return tensor, transposed
        return None


def _key(values: NDArray[np.float32]) -> bytes:
    """Size and the first 64 values, in row order."""
    flat = values.flat[:64]
    return values.size.to_bytes(8, "little") + np.asarray(flat, np.float32).tobytes()


def _same_bits(a: NDArray[np.float32], b: NDArray[np.float32], *, same_shape: bool) -> bool:
    if a.size != b.size or (same_shape and a.shape != b.shape):
        return False
    left, right = np.ascontiguousarray(a).reshape(-1), np.ascontiguousarray(b).reshape(-1)
    return bool(np.array_equal(left.view(np.uint32), right.view(np.uint32)))


def _refer(tensor: StoredTensor, dims: list[int], transposed: bool, external: dict[str, TensorProto], nodes: list[onnx.NodeProto]) -> str:
    """Adds what reads the tensor with these dims, once, and names the float32 value that results."""
    name = tensor.name if tuple(dims) == tensor.shape else f"{tensor.name}.{'x'.join(map(str, dims))}"
    if name not in external:
        external[name] = _external(tensor, name, dims)
        if tensor.dtype != "F32":
            nodes.append(helper.make_node("Cast", [name], [f"{name}/f32"], f"{name}/Cast", to=TensorProto.FLOAT))
    value = name if tensor.dtype == "F32" else f"{name}/f32"
    if not transposed:
        return value
    if not any(f"{name}/t" in node.output for node in nodes):
        nodes.append(helper.make_node("Transpose", [value], [f"{name}/t"], f"{name}/Transpose", perm=[1, 0]))
    return f"{name}/t"


def _external(tensor: StoredTensor, name: str, dims: list[int]) -> TensorProto:
    out = TensorProto(name=name, data_type=_ONNX_TYPES[tensor.dtype], dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", tensor.file.name), ("offset", str(tensor.offset)), ("length", str(tensor.length))):
        out.external_data.add(key=key, value=value)
    return out


def _check_leftovers(leftovers: list[TensorProto], held: _Held) -> None:
    total = sum(map(held.size, leftovers))
    if total > LEFTOVER_LIMIT:
        largest = max(leftovers, key=held.size)
        raise EngineError(
            f"{total} bytes of constants are not tensors of the checkpoint, the largest {largest.name} {list(largest.dims)}",
            "the exporter folded weights together: use the versions of torch and onnxscript that Platemark names",
        )


def _reads(node: onnx.NodeProto) -> set[str]:
    """Every value that a node reads, those that its sub-graphs take from outside included."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for inner in graph.node:
                names |= _reads(inner)
            names |= {output.name for output in graph.output}
    return names


def _replace(field: Any, items: Iterable[Any]) -> None:
    """Puts `items` in place of a repeated field's content."""
    kept = list(items)
    del field[:]
    field.extend(kept)
