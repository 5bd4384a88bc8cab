"""A request's pictures as flights: each with its own noise, plan and beginning. Knows nothing about engines or sizes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from platemark.runtime import noise
from platemark.runtime.denoise import Control, Flight
from platemark.runtime.preview import ColourMap
from platemark.runtime.request import GenerationRequest
from platemark.runtime.schedulers import Scheduler
from platemark.runtime.start import Kept, Origin, first_evaluation, mixed

Float = NDArray[np.float32]


def launch(
    request: GenerationRequest,
    scheduler: Scheduler,
    shape: tuple[int, ...],
    hidden: Float,
    latents: Float | None = None,
    origin: Origin | None = None,
    control: Control | None = None,
    colours: ColourMap | None = None,
) -> list[Flight]:
    """One flight for each of the request's pictures, with latents of `shape`, (1, C, h, w); `hidden` is what all of them attend to.

    `latents` (n, C, h, w) takes the place of the seeds' noise; `origin` is the input picture; `colours` makes previews.
    Raises `InputError` for impossible steps.
    """
    flights = []
    for k in range(request.n):
        generator = noise.Generator(noise.image_seed(request.seed, k))
        drawn = generator.randn(shape)  # also where latents are given: later steps' noise must not be what those were made from
        own = drawn if latents is None else latents[k : k + 1]
        if request.variation_seed is not None:
            own = mixed(own, noise.randn(request.variation_seed, shape), request.variation_strength)
        flight = _one(request, scheduler, generator, own, hidden, origin)
        flight.control, flight.colours, flight.interval = control, colours, request.guidance_interval
        flights.append(flight)
    return flights


def _one(
    request: GenerationRequest,
    scheduler: Scheduler,
    generator: noise.Generator,
    own: Float,
    hidden: Float,
    origin: Origin | None,
) -> Flight:
    """From noise alone, or from an input's latents at the noise of the step that its strength begins with."""
    stepper = scheduler.plan(request.num_inference_steps, lambda: generator.randn(own.shape))
    strength = 1.0 if request.strength is None else request.strength
    hold, at = None, 0
    if origin is not None:
        at = first_evaluation(stepper, request.num_inference_steps, strength)
        hold = None if origin.canvas.cells is None else Kept(stepper, origin.latents, own, origin.canvas.cells)
    if origin is None or (hold is not None and strength == 1.0):  # nothing of what is painted over shall show through
        start: Float = own * np.float32(stepper.init_noise_sigma)
    else:
        start = stepper.add_noise(origin.latents, own, at)
    return Flight(start, stepper, hidden, request.guidance_scale, hold, at=at)
