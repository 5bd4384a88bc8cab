"""Times the whole road of a picture, from the prompt to signed bytes, stage by stage, through a `Press` with clocks around its engines.

Every run is checked, marked, signed and recorded as a released picture is, in a state folder of its own that is thrown away: no key,
record or log of the user's is used, and no registry server. Starting Python and loading the bundle are no part of a run's time.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from platemark.bench import memory
from platemark.bench.clocks import Stages, TimedEngine
from platemark.bench.energy import Energy, Meter, open_meter
from platemark.bench.machine import Machine, this_machine
from platemark.bench.memory import Memory
from platemark.bench.saving import SETTINGS, Saving, saving
from platemark.bench.stages import Breakdown, RunTimes, breakdown, run_times
from platemark.bench.statistics import Data, Spread, spread
from platemark.errors import InputError, PolicyBlocked
from platemark.imaging import encode
from platemark.models import embedded
from platemark.press import Press, Result, Watch, gate_for
from platemark.provenance.home import make_private
from platemark.provenance.identity import development_identity
from platemark.provenance.registry import Registry
from platemark.provenance.stamp import Stamp
from platemark.runtime.bundle import open_bundle
from platemark.runtime.pipeline import Pipeline
from platemark.runtime.request import GenerationRequest
from platemark.runtime.sizes import MAX_BATCH
from platemark.safety.policy import load_policy
from platemark.stamping import stamp_rules

PROMPT = "a red apple"
MAX_RUNS = 4000
OnRun = Callable[[int, int], None]


@dataclass(frozen=True)
class Plan:
    """What is measured. `n` pictures a request, at most one network batch; `settings` are those of `GenerationRequest`.

    `warmup` whole runs come first and are not counted. Raises `InputError`.
    """

    prompt: str = PROMPT
    runs: int = 10
    warmup: int = 1
    n: int = 1
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, low, high in (("runs", 1, MAX_RUNS), ("warmup", 0, MAX_RUNS), ("n", 1, MAX_BATCH)):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} is out of range", f"give a whole number from {low} to {high}")

    def request(self, run: int) -> dict[str, Any]:
        """The arguments of run number `run`: the same tokens each time, in a text that no cache of texts has met."""
        return {"prompt": self.prompt + " " * run, "n": self.n, "seed": self.seed, **self.settings}


class LatencyReport(Data):
    """`latency_ms` of one request of `n` pictures; `stages_ms` by stage (see `stages`), `ms_per_step` the denoise time by its steps.

    `first_ms`: the first request of the process, None without warm-up. `load_ms`: opening, hashing and compiling before it.
    `savings`: what settings that save time gain and cost, where the plan has any. `energy` and `memory.peak_rss_bytes` are of the measured
    runs alone.
    """

    bench: Literal["latency"] = "latency"
    format_version: Literal[1] = 1
    machine: Machine
    bundle: str
    bundle_sha256: str
    policy: str
    settings: dict[str, str]
    n: int
    runs: int
    warmup: int
    load_ms: float
    first_ms: float | None
    latency_ms: Spread
    images_per_second: float
    ms_per_step: Spread
    stages_ms: dict[str, Spread]
    breakdown: Breakdown
    memory_loaded: Memory
    memory: Memory
    energy_j: float | None
    energy_j_per_image: float | None
    energy_source: str
    energy_meters: dict[str, float]
    savings: tuple[Saving, ...] = ()


def measure(
    bundle: Path | None = None, policy: str | Path | None = None, plan: Plan | None = None, *, meter: Meter | None = None,
    on_run: OnRun | None = None,
) -> LatencyReport:  # fmt: skip
    """Measures a bundle (None: the embedded model) under a policy (None: `standard`). `on_run(done, total)` hears each run, warm-ups too.

    Raises `InputError`, `BundleError`, `PolicyError`, `PolicyBlocked` (the prompt or a picture: nothing can be timed to its end),
    `SafetyUnavailable`, `ProvenanceUnavailable`, `EngineError`.
    """
    with tempfile.TemporaryDirectory(prefix="platemark-bench-", ignore_cleanup_errors=True) as folder:
        began = time.perf_counter()
        since_reset = memory.reset_peak()
        bench = Bench(private_press(bundle, policy, Path(folder) / "home"), plan or Plan())
        loaded = (time.perf_counter() - began) * 1000, memory.resident(since_reset)
        return bench.report(loaded, meter or open_meter(), on_run or (lambda done, total: None))


def private_press(bundle: Path | None, policy: str | Path | None, home: Path) -> Press:
    """As `press.load`, but with `home`'s own registry whatever the environment names, and with everything compiled."""
    opened, rules = open_bundle(bundle if bundle is not None else embedded()), load_policy(policy)
    make_private(home)
    pipeline = Pipeline.load(opened)
    pipeline.compile()
    registry = Registry.open(home, f"sqlite:///{home / 'registry.sqlite'}")
    return Press(pipeline, gate_for(opened, rules, home), Stamp(home, development_identity(home), registry, stamp_rules(rules.provenance)))


class Bench:
    """A press with clocks around its engines."""

    def __init__(self, press: Press, plan: Plan) -> None:
        self.press, self.plan = press, plan
        self.clocks = {name: TimedEngine(engine) for name, engine in press.pipeline.engines.items()}
        press.pipeline.engines.update(self.clocks)

    def report(self, loaded: tuple[float, Memory], meter: Meter, on_run: OnRun) -> LatencyReport:
        """Runs the plan. `loaded`: milliseconds and memory of loading."""
        plan, total = self.plan, self.plan.warmup + self.plan.runs
        first = None
        for run in range(plan.warmup):
            took = self.run(run).latency
            first = took if first is None else first
            on_run(run + 1, total)
        since_reset, times = memory.reset_peak(), []
        for run in range(plan.warmup, total):
            meter.start()
            times.append(self.run(run, then=meter.stop))
            on_run(run + 1, total)
        report = self._report(times, (*loaded, first), memory.resident(since_reset), meter.total())
        return report.model_copy(update={"savings": tuple(self.savings())})

    def savings(self) -> list[Saving]:
        """What each time-saving setting of the plan gains and costs."""
        request = GenerationRequest.make(self.press.pipeline.bundle.manifest, **self.plan.request(0))
        asked = [name for name in SETTINGS if self.plan.settings.get(name) is not None]
        return [saving(self.press.pipeline, request, name) for name in asked]

    def run(self, run: int, then: Callable[[], None] = lambda: None) -> RunTimes:
        """One whole request. `then` is called when the last picture is out, before anything is reckoned."""
        stages = Stages()
        for clock in self.clocks.values():
            clock.take()
        began = time.perf_counter()
        request = self.press.admit(**self.plan.request(run))
        admitted = time.perf_counter()
        results = list(self.press.run(request, watch=Watch(on_stage=stages)))
        ended = time.perf_counter()
        then()
        for result in results:
            _require_released(result)
        engines = {name: clock.take() for name, clock in self.clocks.items()}
        return run_times((ended - began) * 1000, (admitted - began) * 1000, stages, results, engines, _encode_ms(results))

    def _report(self, times: list[RunTimes], loaded: tuple[float, Memory, float | None], peak: Memory, energy: Energy) -> LatencyReport:
        plan, bundle = self.plan, self.press.pipeline.bundle
        request = GenerationRequest.make(bundle.manifest, **plan.request(0))
        images = plan.n * len(times)
        names = [name for name in times[0].stages if all(one.stages.get(name) is not None for one in times)]
        return LatencyReport(
            machine=this_machine(**_engine_library()),
            bundle=bundle.manifest.name,
            bundle_sha256=bundle.sha256,
            policy=self.press.gate.policy.id,
            settings=request.settings(),
            n=plan.n,
            runs=plan.runs,
            warmup=plan.warmup,
            load_ms=round(loaded[0], 3),
            first_ms=None if loaded[2] is None else round(loaded[2], 3),
            latency_ms=spread([one.latency for one in times]),
            images_per_second=round(images / sum(one.latency for one in times) * 1000, 4),
            ms_per_step=spread([one.stages["denoise"] / request.num_inference_steps for one in times]),
            stages_ms={name: spread([one.stages[name] for one in times]) for name in names},
            breakdown=breakdown(times),
            memory_loaded=loaded[1],
            memory=peak,
            energy_j_per_image=None if energy.energy_j is None else round(energy.energy_j / images, 6),
            **energy.model_dump(),
        )


def _engine_library() -> dict[str, str]:
    from platemark.runtime.backends.onnxruntime import label

    name, version, device = label().split(" ", 2)
    return {name: f"{version} {device}"}


def _require_released(result: Result) -> None:
    if result.error is not None:
        raise result.error
    if result.data is None:
        raise PolicyBlocked(
            "the policy withheld the picture that was to be timed", "try another --prompt, --seed or --policy", result.decision
        )


def _encode_ms(results: list[Result]) -> float:
    """What writing the pictures as PNG takes, timed on the released pixels: inside a run it is part of signing."""
    pictures = [np.asarray(result.image) for result in results]
    began = time.perf_counter()
    for picture in pictures:
        encode(picture, "png")
    return (time.perf_counter() - began) * 1000
