"""The denoise loop over a set of pictures in flight, each at its own step: noise to latents, one network call for all of them.

A picture joins with its own plan, prompt, guidance and source of noise, and leaves when its plan is done; nothing of one is read for
another, so that who else is on board changes a picture by rounding at most. Knows nothing about prompts, pictures or bundles.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from platemark.errors import Cancelled, DeadlineExceeded, InputError
from platemark.runtime.engine import Array, Engine, run_into
from platemark.runtime.preview import ColourMap, Preview
from platemark.runtime.schedulers import Stepper

Latents = NDArray[np.float32]
Hold = Callable[[int, Latents], None]


@dataclass(frozen=True)
class Step:
    """Network call `step` of `total` that was made, which took `ms` milliseconds with the sampler; `elapsed_ms` from the start.

    `previews`: where they were asked for, what the pictures of this call look like by now, by their number: uint8 (h, w, 3), a pixel a
    latent cell, of what the network takes the finished picture to be.
    """

    step: int
    total: int
    ms: float
    elapsed_ms: float
    previews: Mapping[int, Preview] = field(default_factory=dict)


OnStep = Callable[[Step], None]


class Control:
    """The other end of a request that is under way. Safe to use from any thread. Leaving its `with` block cancels."""

    def __init__(self, deadline: float | None = None, above: Control | None = None) -> None:
        """`deadline`: seconds from now after which the request is given up; None: never. It ends with the control `above`, too.

        Raises `InputError` for a deadline that is no number above 0.
        """
        if deadline is not None and not deadline > 0.0:
            raise InputError("a deadline is not above 0 seconds", "give a number of seconds, or none")
        self._ends = math.inf if deadline is None else time.monotonic() + deadline
        self._above = above
        self._cancelled = False

    def cancel(self) -> None:
        """Ends the request within one network call."""
        self._cancelled = True

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *cause: object) -> None:
        self.cancel()

    def check(self) -> None:
        """Raises `Cancelled` or `DeadlineExceeded`."""
        if self._above is not None:
            self._above.check()
        if self._cancelled:
            raise Cancelled("the request was cancelled", "send it again")
        if time.monotonic() > self._ends:
            raise DeadlineExceeded("the request ran out of its time", "give it more seconds, or ask for fewer steps or a smaller picture")


@dataclass
class Flight:
    """One picture on its way. `latents`: float32 (1, C, h, w), its own, changed in place; in the end the result.

    `conditions`: what the network reads besides latents and time, by the input's name, `encoder_hidden_states` (rows, tokens, dim) among
    them; all of one row, the prompt; or of two, negative prompt first, for classifier-free guidance (Ho and Salimans 2022, equation 6, as
    ε_u + s(ε_c − ε_u)). `extra`: further channels of the network's `sample`, (1, C', h, w), the same at every step.
    `hold(i, latents)` may put back, after evaluation i, what the picture must keep. `at`: the evaluation that comes next.
    `interval`: guidance at noise levels σ in (low, high] alone (Kynkäänniemi et al. 2024); elsewhere the prompt's row flies by itself.
    `colours` makes `preview` anew at each evaluation.
    """

    latents: Latents
    stepper: Stepper
    conditions: Mapping[str, NDArray[np.float32]]
    guidance: float
    hold: Hold | None = None
    control: Control | None = None
    at: int = 0
    interval: tuple[float, float] | None = None
    colours: ColourMap | None = None
    preview: Preview | None = None
    extra: Latents | None = None
    _scaled: Latents = field(init=False)
    _shown: Latents | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._scaled = np.empty_like(self.latents)

    @property
    def left(self) -> int:
        """Network evaluations to go."""
        return len(self.stepper.timesteps) - self.at

    @property
    def rows(self) -> int:
        """Rows of the network's batch that the next evaluation takes."""
        if self.interval is None:
            return len(self.conditions["encoder_hidden_states"])
        low, high = self.interval
        return len(self.conditions["encoder_hidden_states"]) if low < self.stepper.noise_level(self.at) <= high else 1

    @property
    def key(self) -> tuple[object, ...]:
        """Flights with the same key fit into one network call."""
        conditions = sorted((name, values.shape[1:]) for name, values in self.conditions.items())
        return (self.latents.shape, self.channels, *conditions)

    @property
    def channels(self) -> int:
        """Of the network's `sample`."""
        own: int = self.latents.shape[1]
        return own if self.extra is None else own + self.extra.shape[1]

    def board(self, inputs: Mapping[str, Array], place: slice) -> None:
        """Writes this flight's rows of the network's inputs."""
        own, count = self.latents.shape[1], place.stop - place.start
        sample = inputs["sample"][place]
        sample[:, :own] = self.stepper.scale_model_input(self.latents, self.at, self._scaled)
        if self.extra is not None:
            sample[:, own:] = self.extra
        inputs["timestep"][place] = self.stepper.timesteps[self.at]
        for name, values in self.conditions.items():
            inputs[name][place] = values[-count:]

    def land(self, output: Latents) -> None:
        """Takes the step that this flight's rows of the network's output lead to; `output` may be changed."""
        answer = output
        if len(output) == 2:
            without, answer = output[:1], output[1:]
            answer -= without
            answer *= np.float32(self.guidance)
            answer += without
        if self.colours is not None:
            self._shown = np.empty_like(self.latents) if self._shown is None else self._shown
            self.preview = self.colours(self.stepper.denoised(answer, self.at, self._scaled, self._shown))
        self.stepper.step(answer, self.at, self.latents, self.latents)
        if self.hold is not None:
            self.hold(self.at, self.latents)
        self.at += 1


class Workspace:
    """The network's input and output arrays, kept from call to call. One for each thread that flies."""

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
    rows = [flight.rows for flight in flights]
    first, total = flights[0], sum(rows)
    shapes = {"sample": (first.channels, *first.latents.shape[2:]), "timestep": ()}
    shapes |= {name: values.shape[1:] for name, values in first.conditions.items()}
    inputs = {name: space.take(name, (total, *shape)) for name, shape in shapes.items()}
    output = space.take("output", (total, *first.latents.shape[1:]))
    ends = np.cumsum(rows)
    parts = [slice(end - count, end) for end, count in zip(ends, rows, strict=True)]
    for flight, part in zip(flights, parts, strict=True):
        flight.board(inputs, part)
    # A network that overflows is the caller's to find in the latents, not numpy's to warn of on the way.
    with np.errstate(over="ignore", invalid="ignore"):
        run_into(unet, inputs, {"out_sample": output})
        for flight, part in zip(flights, parts, strict=True):
            flight.land(output[part])


def denoise(unet: Engine, flights: Sequence[Flight], batch: int, on_step: OnStep | None = None) -> None:
    """Flies all of them to their end, at most `batch` in one network call. `on_step` hears of each call when it is done.

    Raises `EngineError`, and what the flights' controls raise.
    """
    space = Workspace()
    groups = [flights[first : first + batch] for first in range(0, len(flights), batch)]
    total, done = sum(max(flight.left for flight in group) for group in groups), 0
    began = last = time.perf_counter()
    for group in groups:
        while active := [flight for flight in group if flight.left]:
            for flight in active:
                if flight.control is not None:
                    flight.control.check()
            advance(unet, active, space)
            done += 1
            if on_step is not None:
                now = time.perf_counter()
                on_step(Step(done, total, (now - last) * 1000, (now - began) * 1000, previews(flights, active)))
                last = time.perf_counter()


def previews(flights: Sequence[Flight], active: Sequence[Flight]) -> dict[int, Preview]:
    """Those of the `active` ones that have any, by their place among `flights`."""
    flown = {id(flight) for flight in active}
    return {k: flight.preview for k, flight in enumerate(flights) if flight.preview is not None and id(flight) in flown}
