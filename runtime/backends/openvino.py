"""OpenVINO on the CPU: compiles a graph whose weights lie in the safetensors files beside it, and keeps the result in the user's cache.

Computes in float32, in bfloat16 where the CPU has it, or in float32 with weights of 8 bits. Knows nothing about what a graph is for.
"""

from __future__ import annotations

import importlib
import io
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from platemark.errors import EngineError, InputError, MissingExtra
from platemark.runtime import devices
from platemark.runtime.engine import Array, TensorSpec, check_inputs
from platemark.runtime.openvino_int8 import narrow_weights

PRECISIONS = ("fp32", "bf16", "int8")
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}  # int8: of the weights
_REMEDY = "use `--backend onnxruntime`, or rebuild the bundle with `platemark build`"
# The bindings set up their numpy side inside whichever call comes first, and two threads there wait for each other for ever (2026.4.1:
# a C++ static's guard against the interpreter's lock). So engines are made in turns; running them needs no lock.
_ONE_AT_A_TIME = threading.RLock()
_UNTOUCHED = 0x7FC0BEEF  # a NaN that no arithmetic gives
_FAILURES = (RuntimeError, ValueError, TypeError, OSError, MemoryError)


def compile_graph(
    path: Path, *, threads: int | None = None, precision: str = "fp32", replaced: Mapping[str, Array] | None = None
) -> OpenVinoEngine:
    """Compiles the ONNX file for this CPU. `threads` in all; None lets the library choose.

    `replaced`: values that stored weights have instead, by their names, in their stored type (bfloat16 as uint16) and shape.

    Raises `EngineError` where the graph or its weights cannot be loaded, naming file and cause; `InputError` for a precision that this
    CPU does not have; `MissingExtra`.
    """
    settings = _settings(threads, precision)
    with _ONE_AT_A_TIME:
        try:
            model = _core().read_model(str(path))
            _replace(model, replaced or {})
            if precision == "int8":
                narrow_weights(model)
            compiled = _core().compile_model(model, "CPU", settings)
        except _FAILURES as error:
            raise EngineError(f"OpenVINO cannot load {path.name}: {_one_line(error)}", _REMEDY) from error
        return OpenVinoEngine(path.name, compiled)


def _replace(model: Any, values: Mapping[str, Array]) -> None:
    """Puts values in place of the constants of these names. Raises `ValueError` where the graph has no such constant."""
    library, found = _library(), set[str]()
    ops = importlib.import_module("openvino.opset13")
    for node in list(model.get_ordered_ops()):
        name = node.get_friendly_name()
        if node.get_type_name() != "Constant" or name not in values:
            continue
        value = np.ascontiguousarray(values[name])
        narrow = library.Tensor(value, list(value.shape), library.Type.bf16) if value.dtype == np.uint16 else value
        made = ops.constant(narrow)
        made.set_friendly_name(name)
        for target in list(node.output(0).get_target_inputs()):
            target.replace_source_output(made.output(0))
        found.add(name)
    if missing := sorted(set(values) - found):
        raise ValueError(f"no weight {missing[0]}")


def load_blob(name: str, blob: bytes, *, threads: int | None = None, precision: str = "fp32") -> OpenVinoEngine:
    """The engine that `OpenVinoEngine.blob` gave, on the same version and CPU. Raises `ValueError` for bytes that it cannot use."""
    settings = _settings(threads, precision)
    try:
        with _ONE_AT_A_TIME:
            return OpenVinoEngine(name, _core().import_model(io.BytesIO(blob), "CPU", settings))
    except _FAILURES as error:
        raise ValueError(f"OpenVINO refuses the engine: {_one_line(error)}") from error


def label() -> str:
    """The backend with its version, as parity records name it: `openvino 2026.4.1 cpu`."""
    return f"openvino {version()} cpu"


def version() -> str:
    """Release and build of the installed library. Raises `MissingExtra`."""
    return str(_library().__version__).split("-releases")[0]


def device() -> str:
    """What its engines depend on, for device keys."""
    return devices.cpu()


def check_precision(precision: str) -> None:
    """Raises `InputError` where this backend or this CPU cannot compute in it."""
    if precision not in PRECISIONS:
        known = f"{', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}"
        raise InputError(f"OpenVINO engines are {known}, not {precision[:20]}", "choose one of them with --precision")
    if precision == "bf16" and "BF16" not in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise InputError(
            f"this CPU ({devices.cpu()}) has no bfloat16 arithmetic", "build with --precision fp32, or on a CPU with AVX512-BF16 or AMX"
        )


def _settings(threads: int | None, precision: str) -> dict[str, Any]:
    check_precision(precision)
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": _HINTS[precision], "PERFORMANCE_HINT": "LATENCY"}
    return settings if threads is None else {**settings, "INFERENCE_NUM_THREADS": threads}


def _library() -> Any:
    try:
        with _ONE_AT_A_TIME, _silenced("openvino_telemetry"):
            return importlib.import_module("openvino")
    except ImportError as error:
        raise MissingExtra("the openvino backend", "openvino") from error


@contextmanager
def _silenced(module: str) -> Iterator[None]:
    """Hides a module from imports. OpenVINO reports its own import over the network where it finds this one, and else does without."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # what the import system takes for "not there"
    try:
        yield
    finally:
        del sys.modules[module]


def _core() -> Any:
    with _ONE_AT_A_TIME:
        return _made_core()


@lru_cache(maxsize=1)
def _made_core() -> Any:
    library = _library()
    _ = library.Tensor(np.zeros(1, np.float32)).data, library.Type.f32.to_dtype()  # the numpy side, before any thread needs it
    return library.Core()


class OpenVinoEngine:
    """One compiled graph. Each thread gets an infer request of its own, so threads run at once."""

    def __init__(self, name: str, compiled: Any) -> None:
        self.name, self._compiled = name, compiled
        self._inputs = tuple(_spec(port) for port in compiled.inputs)
        self._outputs = tuple(_spec(port) for port in compiled.outputs)
        self._local = threading.local()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Computes every output; an input of another dtype is refused, not converted."""
        check_inputs(self.name, self._inputs, inputs)
        try:
            request = self._request("plain")
            request.infer({name: np.ascontiguousarray(value) for name, value in inputs.items()}, share_inputs=True)
            # Copied: the request's next run writes into the same memory.
            return {spec.name: np.array(request.get_output_tensor(index).data) for index, spec in enumerate(self._outputs)}
        except _FAILURES as error:
            raise EngineError(f"OpenVINO failed in {self.name}: {_one_line(error)}", _REMEDY) from error

    def run_into(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Computes the outputs named, into float32 arrays of the caller's: nothing is copied, and nothing of their size allocated."""
        check_inputs(self.name, self._inputs, inputs)
        places = {spec.name: index for index, spec in enumerate(self._outputs)}
        try:
            tensor = _library().Tensor
            request = self._request("bound")  # of its own: tensors that are bound stay
            contiguous = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
            for name, value in contiguous.items():
                request.set_tensor(name, tensor(value, shared_memory=True))
            for name, value in outputs.items():
                value.view(np.uint32).flat[0] = _UNTOUCHED
                request.set_output_tensor(places[name], tensor(value, shared_memory=True))
            request.infer()
            # Where a shape is not the output's, the library computes into memory of its own and says nothing.
            for name, value in outputs.items():
                shape = tuple(request.get_output_tensor(places[name]).shape)
                if shape != value.shape or value.view(np.uint32).flat[0] == _UNTOUCHED:
                    raise ValueError(f"{name} has another shape than the array given for it")
        except _FAILURES as error:
            raise EngineError(f"OpenVINO failed in {self.name}: {_one_line(error)}", _REMEDY) from error

    def blob(self) -> bytes:
        """The engine as bytes that `load_blob` takes; weights included."""
        return bytes(self._compiled.export_model().getvalue())

    def _request(self, name: str) -> Any:
        """The thread's own infer request of that name."""
        if not hasattr(self._local, name):
            setattr(self._local, name, self._compiled.create_infer_request())
        return getattr(self._local, name)


def _spec(port: Any) -> TensorSpec:
    """OpenVINO keeps no names of free dims: they are all `?`."""
    shape = tuple("?" if dim.is_dynamic else int(dim.get_length()) for dim in port.partial_shape)
    return TensorSpec(port.any_name, np.dtype(port.element_type.to_dtype()), shape)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
