"""ONNX Runtime on the CPU: compiles a graph whose weights lie in the safetensors files beside it, at their stored precision.

The Cast nodes behind fp16 and bf16 weights are folded when the session is made, so the computation is float32. Knows nothing about
what a graph is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from platemark.errors import EngineError
from platemark.runtime.engine import Array, TensorSpec, check_inputs

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16
_LOG_ERRORS_ONLY = 3
# Up to here, fusions and blocked layouts take longer to make than they save: the embedded UNet (22 MiB) loaded in 0.19 s instead of
# 0.37 s and ran as fast (25 ms a step, AVX2, two cores, ONNX Runtime 1.32).
_SMALL = 64 << 20  # bytes of weights
_REMEDY = "rebuild the bundle with `platemark build`; `platemark doctor` shows what this machine can run"


def compile_graph(path: Path, *, threads: int | None = None, replaced: Mapping[str, Array] | None = None) -> OnnxRuntimeEngine:
    """Compiles the ONNX file for the CPU. `threads` for one operator; None: one a physical core.

    `replaced`: values that stored weights have instead, by their names, in their stored type (bfloat16 as uint16) and shape.
    Raises `EngineError` where the graph or its weights cannot be loaded, naming file and cause.
    """
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_BASIC if _is_small(path) else levels.ORT_ENABLE_ALL
    options.log_severity_level = _LOG_ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        if replaced:
            values = {name: _typed(value) for name, value in replaced.items()}
            # (`add_initializer` leaves external weights as they are, and says nothing.)
            options.add_external_initializers(list(values), list(values.values()))
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except _failures() as error:
        raise EngineError(f"ONNX Runtime cannot load {path.name}: {_one_line(error)}", _REMEDY) from error
    return OnnxRuntimeEngine(path.name, session)


def _typed(value: Array) -> Any:
    from onnxruntime import OrtValue

    if value.dtype == np.uint16:
        return OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(value), _BFLOAT16)
    return OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value))


def _is_small(path: Path) -> bool:
    return sum(file.stat().st_size for file in path.parent.glob("*.safetensors")) <= _SMALL


def label() -> str:
    """The backend with its version, as parity records name it: `onnxruntime 1.32.0 cpu`."""
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__} cpu"


class OnnxRuntimeEngine:
    """One compiled graph. ONNX Runtime sessions run from several threads at once."""

    def __init__(self, name: str, session: Any) -> None:
        self.name = name
        self._session = session
        self._inputs = tuple(_spec(name, value) for value in session.get_inputs())
        self._outputs = tuple(_spec(name, value) for value in session.get_outputs())

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Computes every output; an input of another dtype is refused, not converted."""
        check_inputs(self.name, self._inputs, inputs)
        names = [spec.name for spec in self._outputs]
        try:
            values = self._session.run(names, dict(inputs))
        except _failures() as error:
            raise EngineError(f"ONNX Runtime failed in {self.name}: {_one_line(error)}", _REMEDY) from error
        return dict(zip(names, values, strict=True))

    def run_into(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Computes the outputs named, into arrays of the caller's: nothing is copied, and nothing of their size allocated."""
        check_inputs(self.name, self._inputs, inputs)
        contiguous = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        try:
            binding = self._session.io_binding()
            for name, value in contiguous.items():
                binding.bind_input(name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)
            for name, value in outputs.items():
                binding.bind_output(name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)
            self._session.run_with_iobinding(binding)
        except _failures() as error:
            raise EngineError(f"ONNX Runtime failed in {self.name}: {_one_line(error)}", _REMEDY) from error


def _spec(graph: str, value: Any) -> TensorSpec:
    if value.type not in _TYPES:
        raise EngineError(f"{graph} has {value.name} of type {value.type}, which numpy cannot hold", _REMEDY)
    shape = tuple(dim if isinstance(dim, (int, str)) else "?" for dim in value.shape)
    return TensorSpec(value.name, np.dtype(_TYPES[value.type]), shape)


def _failures() -> tuple[type[BaseException], ...]:
    """Every error that a session can raise. ONNX Runtime's own derive from Exception directly and share no base."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state  # type: ignore[import-untyped]

    own = tuple(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
    return (*own, RuntimeError, ValueError, TypeError, OSError, MemoryError)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
