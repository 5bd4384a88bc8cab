"""One ONNX file that a detector runs: its sha256 is checked, then it is compiled, both at first use and once. Knows no detector."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from pathlib import Path

from platemark.errors import EngineError
from platemark.runtime.engine import Array, Engine
from platemark.safety.closed import require

_LOG_ERRORS_ONLY = 3


class Weights:
    """A file and the sha256 that it must have. Safe to share between threads."""

    def __init__(self, path: Path, sha256: str, threads: int | None = None) -> None:
        """`threads` for one operator; None: one a physical core. Opens nothing yet."""
        self.path, self.sha256 = path, sha256
        self._threads = threads
        self._engine: Engine | None = None
        self._lock = threading.Lock()

    def engine(self) -> Engine:
        """The compiled graph. Raises `SafetyUnavailable` (missing, or another file) and `EngineError` (cannot be compiled)."""
        with self._lock:
            if self._engine is None:
                require(self.path.is_file(), f"the weights {self.path.name} are missing")
                found = hashlib.sha256(self.path.read_bytes()).hexdigest()
                require(found == self.sha256, f"the weights {self.path.name} are not the ones that belong here: sha256 {found[:12]}…")
                self._engine = _compiled(self.path, self._threads)
            return self._engine

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Computes every output. Raises as `engine` does, and `EngineError`."""
        return self.engine().run(inputs)


def _compiled(path: Path, threads: int | None) -> Engine:
    """Fully optimised, unlike the small graphs of a bundle: these networks run at every picture and load in 40 ms even so.

    Kernels of 8 bits are restored to float32 when the graph is loaded: left alone, ONNX Runtime computes in 8 bits and is 3e-4 off.
    """
    import onnxruntime  # type: ignore[import-untyped]

    from platemark.runtime.backends.onnxruntime import OnnxRuntimeEngine

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _LOG_ERRORS_ONLY
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except _failures() as error:
        cause = " ".join(str(error).split())[:200]
        raise EngineError(
            f"ONNX Runtime cannot load {path.name}: {cause}", "install Platemark again; `platemark doctor` shows more"
        ) from error
    return OnnxRuntimeEngine(path.name, session)


def _failures() -> tuple[type[BaseException], ...]:
    """Every error that a session can raise. ONNX Runtime's own derive from Exception directly and share no base."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state  # type: ignore[import-untyped]

    own = tuple(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
    return (*own, RuntimeError, ValueError, OSError, MemoryError)
