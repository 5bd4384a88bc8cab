"""The denoise loop over a set of pictures in flight, each at its own step: noise to latents, one network call for all of them.

A picture joins with its own plan, prompt, guidance and source of noise, and leaves when its plan is done; nothing of one is read for
another, so that who else is on board changes a picture by rounding at most. Knows nothing about prompts, pictures or bundles.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from platemark.errors import Cancelled, DeadlineExceeded
from platemark.runtime.engine import Array, Engine
from platemark.runtime.schedulers import Stepper

Latents = NDArray[np.float32]
OnStep = Callable[[int, int], None]
Hold = Callable[[int, Latents], None]


class Control:
    """The other end of a request that is under way. Safe to use from any thread."""

    def __init__(self, deadline: float | None = None) -> None:
        """`deadline`: seconds from now after which the request is given up; None: never."""
        self._ends = math.inf if deadline is None else time.monotonic() + deadline
        self._cancelled = False

    def cancel(self) -> None:
        """Ends the request within one network call."""
        self._cancelled = True

    def check(self) -> None:
        """Raises `Cancelled` or `DeadlineExceeded`."""
        if self._cancelled:
            raise Cancelled("the request was cancelled", "send it again")
        if time.monotonic() > self._ends:
            raise DeadlineExceeded("the request ran out of its time", "give it more seconds, or ask for fewer steps or a smaller picture")


@dataclass
class Flight:
    """One picture on its way. `latents`: float32 (1, C, h, w), its own, changed in place; in the end the result.

    `hidden`: (rows, tokens, dim), one row, the prompt; or two, negative prompt first, for classifier-free guidance (Ho and Salimans 2022,
    equation 6, as ε_u + s(ε_c − ε_u)). `extra`: further channels of the network's input, (1, C', h, w), the same at every step.
    `hold(i, latents)` may put back, after evaluation i, what the picture must keep. `at`: the evaluation that comes next.
    """

    latents: Latents
    stepper: Stepper
    hidden: NDArray[np.float32]
    guidance: float
    hold: Hold | None = None
    control: Control | None = None
    at: int = 0
    _scaled: Latents = field(init=False)

    def __post_init__(self) -> None:
        self._scaled = np.empty_like(self.latents)

    @property
    def left(self) -> int:
        """Network evaluations to go."""
        return len(self.stepper.timesteps) - self.at

    @property
    def key(self) -> tuple[object, ...]:
        """Flights with the same key fit into one network call."""
        return (self.latents.shape, self.hidden.shape[1:])

    def board(self, sample: Latents, timestep: NDArray[np.float32], context: NDArray[np.float32]) -> None:
        """Writes this flight's rows of the network's inputs."""
        sample[:] = self.stepper.scale_model_input(self.latents, self.at, self._scaled)
        timestep[:] = self.stepper.timesteps[self.at]
        context[:] = self.hidden

    def land(self, output: Latents) -> None:
        """Takes the step that this flight's rows of the network's output lead to; `output` may be changed."""
        answer = output
        if len(output) == 2:
            without, answer = output[:1], output[1:]
            answer -= without
            answer *= np.float32(self.guidance)
            answer += without
        self.stepper.step(answer, self.at, self.latents, self.latents)
        if self.hold is not None:
            self.hold(self.at, self.latents)
        self.at += 1


class Workspace:
    """The network's input arrays, kept from call to call. One for each thread that flies."""

    def __init__(self) -> None:
        self._arrays: dict[str, Array] = {}

    def take(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """A float32 array of that shape, as the last use left it."""
        array = self._arrays.get(name)
        if array is None or array.shape[1:] != shape[1:] or len(array) < shape[0]:
            array = self._arrays[name] = np.empty(shape, np.float32)
        return array[: shape[0]]


def advance(unet: Engine, flights: Sequence[Flight], space: Workspace) -> None:
    """One evaluation further for each of the flights, which must have the same `key`. Raises `EngineError`."""
    rows = [len(flight.hidden) for flight in flights]
    first = flights[0]
    sample = space.take("sample", (sum(rows), *first.latents.shape[1:]))
    timestep = space.take("timestep", (sum(rows),))
    context = space.take("context", (sum(rows), *first.hidden.shape[1:]))
    ends = np.cumsum(rows)
    parts = [slice(end - count, end) for end, count in zip(ends, rows, strict=True)]
    for flight, part in zip(flights, parts, strict=True):
        flight.board(sample[part], timestep[part], context[part])
    # A network that overflows is the caller's to find in the latents, not numpy's to warn of on the way.
    with np.errstate(over="ignore", invalid="ignore"):
        output = unet.run({"sample": sample, "timestep": timestep, "encoder_hidden_states": context})["out_sample"]
        for flight, part in zip(flights, parts, strict=True):
            flight.land(output[part] if output.flags.writeable else output[part].copy())


def denoise(unet: Engine, flights: Sequence[Flight], batch: int, on_step: OnStep | None = None) -> None:
    """Flies all of them to their end, at most `batch` in one network call. `on_step(step, total)` hears each call when it is done.

    Raises `EngineError`, and what the flights' controls raise.
    """
    space = Workspace()
    groups = [flights[first : first + batch] for first in range(0, len(flights), batch)]
    total, done = sum(max(flight.left for flight in group) for group in groups), 0
    for group in groups:
        while active := [flight for flight in group if flight.left]:
            for flight in active:
                if flight.control is not None:
                    flight.control.check()
            advance(unet, active, space)
            done += 1
            if on_step is not None:
                on_step(done, total)
