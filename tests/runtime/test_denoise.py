"""Pictures in flight: what one is does not hang on who else is aboard, and one can be ended without the others."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from platemark.errors import Cancelled, DeadlineExceeded, EngineError
from platemark.runtime import noise
from platemark.runtime.batcher import Batcher
from platemark.runtime.denoise import Control, Flight, Step, Workspace, advance, denoise
from platemark.runtime.engine import Array
from platemark.runtime.schedulers import make_scheduler
from platemark.runtime.start import Kept

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "clip_sample": False}
SHAPE = (1, 4, 6, 5)


class Network:
    """An engine whose every row depends on its own row of the inputs alone. `calls`: the rows of each call."""

    inputs = outputs = ()

    def __init__(self, fail_at: int | None = None, seconds: float = 0.0) -> None:
        self.calls: list[int] = []
        self._fail_at, self._seconds = fail_at, seconds

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.calls.append(len(inputs["sample"]))
        if len(self.calls) == self._fail_at:
            raise EngineError("broken", "mend it")
        time.sleep(self._seconds)
        meaning = inputs["encoder_hidden_states"].mean(axis=(1, 2))[:, None, None, None]
        moved = (
            np.roll(inputs["sample"], 1, axis=-1) * np.float32(0.3) + meaning + inputs["timestep"][:, None, None, None] / np.float32(1e4)
        )
        return {"out_sample": np.tanh(moved)}


def flight(seed: int, *, sampler: str = "euler-a", steps: int = 6, guidance: float = 4.0, tokens: int = 3, **more: Any) -> Flight:
    generator = noise.Generator(seed)
    stepper = make_scheduler(sampler, CONFIG).plan(steps, lambda: generator.randn(SHAPE))
    rows = 2 if guidance > 1 else 1
    hidden = np.random.default_rng(seed).normal(size=(rows, tokens, 8)).astype(np.float32)
    return Flight(
        generator.randn(SHAPE) * np.float32(stepper.init_noise_sigma), stepper, {"encoder_hidden_states": hidden}, guidance, **more
    )


MIXED: list[dict[str, Any]] = [
    {"seed": 1},
    {"seed": 2, "sampler": "ddim", "steps": 9},
    {"seed": 3, "sampler": "dpm++2m", "guidance": 1.0},
    {"seed": 4, "sampler": "heun", "steps": 4},
    {"seed": 5, "sampler": "dpm++2m-sde", "steps": 3, "tokens": 6},
    {"seed": 6, "sampler": "lcm", "steps": 2, "guidance": 0.0},
    {"seed": 7, "sampler": "unipc", "steps": 11, "guidance": 9.0},
]


def alone(settings: dict[str, Any]) -> np.ndarray:
    one = flight(**settings)
    denoise(Network(), [one], 1)
    return one.latents


def test_a_crowd_changes_nobody() -> None:
    fitting = [settings for settings in MIXED if settings.get("tokens", 3) == 3]
    crowd = [flight(**settings) for settings in fitting]
    longest = max(one.left for one in crowd)
    network = Network()
    denoise(network, crowd, len(crowd))
    for one, settings in zip(crowd, fitting, strict=True):
        assert np.abs(one.latents - alone(settings)).max() < 1e-5, settings
    assert len(network.calls) == longest


def test_joining_and_leaving_between_steps_changes_nobody() -> None:
    first, second, third = (flight(**MIXED[k]) for k in (1, 0, 6))
    network, space = Network(), Workspace()
    for _ in range(4):
        advance(network, [first], space)
    for _ in range(2):
        advance(network, [second, first], space)
    while aboard := [one for one in (third, first, second) if one.left]:
        advance(network, aboard, space)
    for one, k in ((first, 1), (second, 0), (third, 6)):
        assert np.abs(one.latents - alone(MIXED[k])).max() < 1e-5


def test_the_batch_bounds_a_call_and_steps_are_counted_over_all_groups() -> None:
    network, heard = Network(), []
    denoise(network, [flight(k, steps=3) for k in range(5)], 2, lambda at: heard.append((at.step, at.total)))
    assert max(network.calls) == 4  # two pictures with guidance
    assert heard == [(k, 9) for k in range(1, 10)]


def test_buffers_are_used_again() -> None:
    space = Workspace()
    network = Network()
    crowd = [flight(k) for k in range(3)]
    advance(network, crowd, space)
    kept = space.take("sample", (6, *SHAPE[1:]))
    advance(network, crowd, space)
    assert np.shares_memory(kept, space.take("sample", (4, *SHAPE[1:])))


def test_a_cancelled_flight_ends_within_one_call() -> None:
    control = Control()
    network = Network()
    crowd = [flight(1, steps=50, control=control)]
    with pytest.raises(Cancelled):
        denoise(network, crowd, 1, lambda at: control.cancel() if at.step == 3 else None)
    assert len(network.calls) == 3


def test_a_deadline_ends_it() -> None:
    with pytest.raises(DeadlineExceeded):
        denoise(Network(seconds=0.01), [flight(1, steps=500, control=Control(0.05))], 1)
    denoise(Network(), [flight(1, control=Control(60))], 1)


def test_sixteen_threads_share_one_network_and_get_what_they_get_alone() -> None:
    wanted = [alone(settings) for settings in MIXED]
    network = Network(seconds=0.002)
    with Batcher(network, 8) as batcher, ThreadPoolExecutor(16) as pool:
        crowd = [flight(**MIXED[k % len(MIXED)]) for k in range(48)]
        list(pool.map(lambda one: batcher.fly([one]), crowd))
    for k, one in enumerate(crowd):
        assert np.abs(one.latents - wanted[k % len(MIXED)]).max() < 1e-5
    assert max(network.calls) > 2  # they did fly together
    assert len(network.calls) < sum(len(one.stepper.timesteps) for one in crowd)


def test_in_a_batcher_one_caller_can_give_up_and_the_others_go_on() -> None:
    control, gone = Control(), threading.Event()
    with Batcher(Network(seconds=0.005), 8) as batcher, ThreadPoolExecutor(3) as pool:
        staying = flight(1, sampler="ddim", steps=40)
        first = pool.submit(batcher.fly, [staying])
        second = pool.submit(batcher.fly, [flight(2, steps=400, control=control)])

        def stop(at: Step) -> None:
            gone.set()
            raise KeyError("the caller's own")

        with pytest.raises(KeyError):
            batcher.fly([flight(3, steps=400)], stop)
        assert gone.is_set()
        control.cancel()
        with pytest.raises(Cancelled):
            second.result()
        first.result()
    assert np.abs(staying.latents - alone({"seed": 1, "sampler": "ddim", "steps": 40})).max() < 1e-5


def test_a_failed_call_ends_those_aboard_and_the_batcher_goes_on() -> None:
    with Batcher(Network(fail_at=2), 8) as batcher:
        with pytest.raises(EngineError, match="broken"):
            batcher.fly([flight(1)])
        batcher.fly([flight(2)])
    with pytest.raises(EngineError, match="closed"):
        batcher.fly([flight(1)])


def test_closing_ends_what_is_in_flight() -> None:
    batcher = Batcher(Network(seconds=0.01), 8)
    with ThreadPoolExecutor(1) as pool:
        started = threading.Event()
        waiting = pool.submit(batcher.fly, [flight(1, steps=900)], lambda at: started.set())
        started.wait()
        batcher.close()
        with pytest.raises(EngineError, match="closed"):
            waiting.result()


def test_nothing_to_fly_is_done_at_once() -> None:
    network = Network()
    with Batcher(network, 8) as batcher:
        batcher.fly([])
    assert network.calls == []


def test_an_error_of_any_kind_reaches_the_caller_who_would_wait_for_ever() -> None:
    class Full(Network):
        def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
            if not self.calls:
                self.calls.append(0)
                raise MemoryError("no room")
            return super().run(inputs)

    with Batcher(Full(), 8) as batcher:
        with pytest.raises(MemoryError):
            batcher.fly([flight(1)])
        batcher.fly([flight(2)])


class Binding(Network):
    """The network as an engine that writes where it is told to."""

    def run_into(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        (name,) = outputs
        assert name == "out_sample"
        np.multiply(inputs["sample"], np.float32(0.5), out=outputs[name])


@pytest.mark.parametrize("sampler", ["ddim", "euler", "heun", "dpm++2m", "unipc", "pndm"])
@pytest.mark.parametrize("held", [False, True])
def test_a_step_allocates_nothing_of_the_latents_size(sampler: str, held: bool) -> None:
    wide = (1, 4, 48, 48)
    stepper = make_scheduler(sampler, CONFIG).plan(14)
    clean, grain = noise.randn(1, wide), noise.randn(2, wide)
    hold = Kept(stepper, clean, grain, np.zeros((48, 48), np.bool_)) if held else None
    one = Flight(grain.copy(), stepper, {"encoder_hidden_states": np.zeros((2, 3, 8), np.float32)}, 4.0, hold)
    peaks, space, network = [], Workspace(), Binding()
    tracemalloc.start()
    try:
        while one.left:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            advance(network, [one], space)
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    assert peaks[0] > 4 * clean.nbytes  # the run's own memory, or the measure measures nothing
    assert max(peaks[5:]) < clean.nbytes / 2
