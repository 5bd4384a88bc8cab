"""Which of the engines that this machine can run is the fastest for a component, of those that keep their bounds.

Times whole calls at the usual size, in this process and on this machine's load: a table of what was tried goes into the bundle. Knows the
backends by their names only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from platemark.errors import EngineError, InputError, ParityError
from platemark.optimize.specs import Spec
from platemark.runtime import backends, devices
from platemark.runtime.engine import Engine
from platemark.runtime.manifest import BuiltEngine, Parity, Precision, Trial
from platemark.runtime.parity import Recorded, check

TUNED = "tuned"  # what the whole pipeline is called where each component has its own backend
_TRIED = ("onnxruntime", "openvino")  # the portable graph first
_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
_LEAST_RUNS, _MOST_RUNS, _SECONDS = 2, 7, 8.0


@dataclass(frozen=True)
class Candidate:
    """A backend and a precision that this machine can run, with the library's version."""

    backend: str
    precision: Precision
    version: str

    @property
    def portable(self) -> bool:
        return self.backend == _TRIED[0]


def candidates() -> list[Candidate]:
    """Everything to try here, in order; a backend whose library is missing, or a precision that the CPU lacks, is left out."""
    found = []
    for name in _TRIED:
        module = backends.find(name)
        try:
            if not hasattr(module, "check_precision"):
                found.append(Candidate(name, "fp32", module.label().split()[1]))
                continue
            for precision in _PRECISIONS:
                if _has(module.check_precision, precision):
                    found.append(Candidate(name, precision, module.version()))
        except InputError:  # the library is missing
            continue
    return found


def _has(check_precision: Callable[[str], None], precision: str) -> bool:
    try:
        check_precision(precision)
    except InputError:
        return False
    return True


def tune(
    spec: Spec, recorded: list[Recorded], graph: Path, reference: str, wanted: list[Candidate]
) -> tuple[list[Trial], BuiltEngine | None]:
    """What was tried for one component, and the record of the engine to keep: None where that is the portable graph.

    `reference` names what made the recordings. The first candidate must be the portable graph, which was compared already.
    """
    trials, proven = [], dict[Candidate, Parity]()
    for one in wanted:
        trial, parity = _try(one, spec, recorded, graph, reference)
        trials.append(trial)
        if parity is not None:
            proven[one] = parity
    times = {one: trial.milliseconds for one, trial in zip(wanted, trials, strict=True) if trial.milliseconds is not None}
    best = min(times, key=lambda one: times[one])
    trials = [_judged(trial, one == best) for one, trial in zip(wanted, trials, strict=True)]
    if best.portable:
        return trials, None
    kept = BuiltEngine(
        component=spec.component,
        backend=best.backend,
        version=best.version,
        precision=best.precision,
        device=devices.cpu(),
        state="compared",
        parity=proven[best],
    )
    return trials, kept


def _try(one: Candidate, spec: Spec, recorded: list[Recorded], graph: Path, reference: str) -> tuple[Trial, Parity | None]:
    module = backends.find(one.backend)
    said = Trial(component=spec.component, backend=one.backend, precision=one.precision, version=one.version, outcome="slower")
    try:
        engine: Engine = module.compile_graph(graph) if one.portable else module.compile_graph(graph, precision=one.precision)
        parity = check(spec.component, recorded, engine, (reference, module.label()), one.precision)
        spent = milliseconds(engine, recorded[0])
    except (ParityError, EngineError, InputError) as error:
        return said.model_copy(update={"outcome": error.message}), None
    worst = max(comparison.rel_l2_error for comparison in parity.comparisons)
    return said.model_copy(update={"milliseconds": spent, "rel_l2_error": worst}), parity


def milliseconds(engine: Engine, recorded: Recorded, clock: Callable[[], float] = time.perf_counter) -> float:
    """The fastest of a few calls with the recorded inputs (the usual size), after one that warms up; to three digits."""
    engine.run(recorded.inputs)
    taken: list[float] = []
    while len(taken) < _LEAST_RUNS or (len(taken) < _MOST_RUNS and sum(taken) < _SECONDS):
        began = clock()
        engine.run(recorded.inputs)
        taken.append(clock() - began)
    return float(f"{min(taken) * 1000:.3g}")


def _judged(trial: Trial, kept: bool) -> Trial:
    return trial.model_copy(update={"outcome": "kept"}) if kept else trial
