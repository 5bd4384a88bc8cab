"""A request's pictures as flights: each with its own noise, plan and beginning. Knows nothing about engines or sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from platemark.runtime import noise
from platemark.runtime.denoise import Control, Flight
from platemark.runtime.preview import ColourMap
from platemark.runtime.request import GenerationRequest
from platemark.runtime.schedulers import Scheduler
from platemark.runtime.start import Kept, Origin, first_evaluation, mixed

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Scene:
    """What all pictures of a request have in common: `conditions` and `extra` as a `Flight` has them, and the input."""

    conditions: Mapping[str, Float]
    origin: Origin | None = None
    extra: Float | None = None


def launch(
    request: GenerationRequest,
    scheduler: Scheduler,
    shape: tuple[int, ...],
    scene: Scene,
    latents: Float | None = None,
    control: Control | None = None,
    colours: ColourMap | None = None,
) -> list[Flight]:
    """One flight for each of the request's pictures, with latents of `shape`, (1, C, h, w).

    `latents` (n, C, h, w) takes the place of the seeds' noise; `colours` makes previews. Raises `InputError` for impossible steps.
    """
    flights = []
    for k in range(request.n):
        generator = noise.Generator(noise.image_seed(request.seed, k))
        drawn = generator.randn(shape)  # also where latents are given: later steps' noise must not be what those were made from
        own = drawn if latents is None else latents[k : k + 1]
        if request.variation_seed is not None:
            own = mixed(own, noise.randn(request.variation_seed, shape), request.variation_strength)
        flight = _one(request, scheduler, generator, own, scene)
        flight.control, flight.colours, flight.interval = control, colours, request.guidance_interval
        flights.append(flight)
    return flights


def _one(
    request: GenerationRequest,
    scheduler: Scheduler,
    generator: noise.Generator,
    own: Float,
    scene: Scene,
) -> Flight:
    """From noise alone, or from an input's latents at the noise of the step that its strength begins with."""
    origin = scene.origin
    stepper = scheduler.plan(request.num_inference_steps, lambda: generator.randn(own.shape))
    strength = 1.0 if request.strength is None else request.strength
    hold, at, cells = None, 0, None if origin is None else origin.canvas.cells
    if origin is not None:
        at = first_evaluation(stepper, request.num_inference_steps, strength)
    if origin is not None and cells is not None and scene.extra is None:  # a UNet that reads the mask keeps the rest by itself
        hold = Kept(stepper, origin.latents, own, cells)
    if origin is None or (cells is not None and strength == 1.0):  # nothing of what is painted over shall show through
        start: Float = own * np.float32(stepper.init_noise_sigma)
    else:
        start = stepper.add_noise(origin.latents, own, at)
    return Flight(start, stepper, scene.conditions, request.guidance_scale, hold, at=at, extra=scene.extra)
