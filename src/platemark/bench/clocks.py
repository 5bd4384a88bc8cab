"""Clocks around engines and stages: how long each network computes, and when each stage began. They change nothing of what they time."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from platemark.runtime.engine import Array, Engine, TensorSpec, run_into


class TimedEngine:
    """An engine that adds up its own time. Safe to call from several threads, as the engine is; then times add up over the threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._seconds, self._calls = 0.0, 0

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._engine.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._engine.outputs

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        began = time.perf_counter()
        try:
            return self._engine.run(inputs)
        finally:
            self._add(time.perf_counter() - began)

    def run_into(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        began = time.perf_counter()
        try:
            run_into(self._engine, inputs, outputs)
        finally:
            self._add(time.perf_counter() - began)

    def __getattr__(self, name: str) -> Any:
        """What an engine can do beyond the contract goes through untimed."""
        return getattr(self._engine, name)

    def _add(self, seconds: float) -> None:
        with self._lock:
            self._seconds += seconds
            self._calls += 1

    def take(self) -> tuple[float, int]:
        """Milliseconds and calls since the last `take`."""
        with self._lock:
            taken = self._seconds * 1000, self._calls
            self._seconds, self._calls = 0.0, 0
        return taken


@dataclass
class Stages:
    """Hears the names of stages as they begin (a `Watch`'s `on_stage`), from whichever thread; knows the time between two of them."""

    heard: list[tuple[str, float, int]] = field(default_factory=list)

    def __call__(self, stage: str) -> None:
        self.heard.append((stage, time.perf_counter(), threading.get_ident()))

    def between(self, first: str, then: str) -> float:
        """Milliseconds from each `first` to the stage after it on the same thread, where that is `then`; summed."""
        total, last = 0.0, dict[int, tuple[str, float]]()
        for stage, when, thread in self.heard:
            before = last.get(thread)
            if before is not None and before[0] == first and stage == then:
                total += when - before[1]
            last[thread] = stage, when
        return total * 1000

    def until(self, first: str, then: str) -> float | None:
        """Milliseconds from the first `first` to the first `then` after it, on any threads; None where they were not heard."""
        begins = next((when for stage, when, _ in self.heard if stage == first), None)
        if begins is None:
            return None
        return next(((when - begins) * 1000 for stage, when, _ in self.heard if stage == then and when >= begins), None)
