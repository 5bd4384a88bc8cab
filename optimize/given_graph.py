"""ONNX graphs that a user brings: read without running anything in them, and computed by ONNX's own reference evaluator.

A graph is taken as it is: operators of ONNX alone, weights inside or in files beside it. Knows nothing about what it is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from platemark.errors import CheckpointError, EngineError
from platemark.optimize.source_files import PICKLES
from platemark.optimize.staging import copy_file
from platemark.runtime.engine import Array, TensorSpec

_EXPORT = "export it again as plain ONNX (opset 11 or later)"
_OPSETS = range(11, 27)
_MAX_GRAPH = 2**31 - 1  # the format's own limit


@dataclass(frozen=True)
class GivenGraph:
    """A graph with what it takes and gives. `beside`: the files that hold its weights, by their names relative to its folder."""

    path: Path
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    beside: tuple[str, ...]

    def copy_to(self, folder: Path, name: str) -> dict[str, str]:
        """Copies graph (as `name`) and weights into `folder`: file name → sha256."""
        digests = {name: copy_file(self.path, folder / name)}
        return digests | {other: copy_file(self.path.parent / other, folder / other) for other in self.beside}


def read_graph(path: Path) -> GivenGraph:
    """Raises `CheckpointError`, naming the file and what is wrong with it: a pickle, damaged, custom operators, missing weights."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if path.suffix.lower() in PICKLES:
        raise CheckpointError(f"{path.name} is a pickle", "export the network as ONNX: pickles can run code and are never opened")
    try:
        if path.stat().st_size > _MAX_GRAPH:
            raise CheckpointError(f"{path.name} is larger than an ONNX file can be", "keep the weights in a file beside it")
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise CheckpointError(f"cannot read {path.name}: {error.strerror}", "check that the file exists and may be read") from error
    except DecodeError as error:
        raise CheckpointError(f"{path.name} is no ONNX file, or is damaged", _EXPORT) from error
    domains = {entry.domain: entry.version for entry in model.opset_import}
    foreign = sorted(set(domains) - {"", "ai.onnx"}) or sorted({node.domain for node in model.graph.node} - {"", "ai.onnx"})
    if foreign or model.functions:
        raise CheckpointError(f"{path.name} has operators outside of ONNX: {', '.join(foreign) or 'functions of its own'}", _EXPORT)
    opset = domains.get("", domains.get("ai.onnx", 0))
    if opset not in _OPSETS:
        raise CheckpointError(f"{path.name} is of opset {opset}", _EXPORT)
    beside = _beside(path, model)
    _check(path)
    known = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_spec(path, value) for value in model.graph.input if value.name not in known)
    return GivenGraph(path, opset, inputs, tuple(_spec(path, value) for value in model.graph.output), beside)


def _check(path: Path) -> None:
    """ONNX's own checker, with shape inference. It reads the weights beside the graph too."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path.name} is not a valid ONNX graph: {' '.join(str(error).split())[:160]}", _EXPORT) from error


def _beside(path: Path, model: Any) -> tuple[str, ...]:
    """Names of the files that hold weights: in the graph's own folder, and there."""
    names: set[str] = set()
    for tensor in model.graph.initializer:
        names |= {entry.value for entry in tensor.external_data if entry.key == "location"}
    for name in sorted(names):
        parts = Path(name).parts
        if Path(name).is_absolute() or len(parts) != 1 or name in (".", ".."):
            raise CheckpointError(f"{path.name} keeps weights in {name[:60]!r}, outside of its folder", "keep them in one file beside it")
        if not (path.parent / name).is_file():
            raise CheckpointError(f"{path.name} keeps its weights in {name}, which is not there", "put the file beside the graph")
    return tuple(sorted(names))


def _spec(path: Path, value: Any) -> TensorSpec:
    from onnx.helper import tensor_dtype_to_np_dtype

    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape") or not tensor.elem_type:
        raise CheckpointError(f"{path.name}: {value.name} has no shape or type", _EXPORT)
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim)
    return TensorSpec(value.name, np.dtype(tensor_dtype_to_np_dtype(tensor.elem_type)), shape)


class Reference:
    """A graph in ONNX's reference evaluator, which follows the standard operator by operator in numpy. An `Engine`, and a slow one."""

    def __init__(self, graph: GivenGraph) -> None:
        from onnx.reference import ReferenceEvaluator

        self.graph = graph
        try:
            self._evaluator: Any = ReferenceEvaluator(str(graph.path))
        except _failures() as error:
            raise _refused(graph, error) from error

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.graph.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.graph.outputs

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        names = [port.name for port in self.graph.outputs]
        try:
            values = self._evaluator.run(names, dict(inputs))
        except _failures() as error:
            raise _refused(self.graph, error) from error
        return dict(zip(names, values, strict=True))


def label() -> str:
    """As parity records name the reference."""
    import onnx

    return f"onnx.reference {onnx.__version__}"


def _failures() -> tuple[type[Exception], ...]:
    """What the evaluator raises for an operator or a shape that it cannot do: there is no base of its own."""
    return (
        RuntimeError,
        ValueError,
        TypeError,
        IndexError,
        KeyError,
        AttributeError,
        AssertionError,
        ArithmeticError,
        MemoryError,
        OSError,
    )


def _refused(graph: GivenGraph, error: Exception) -> EngineError:
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return EngineError(f"ONNX's reference evaluator cannot compute {graph.path.name}: {reason}", _EXPORT)
