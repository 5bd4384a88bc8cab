"""A request's pictures as proofs: rendered a batch at a time, each by itself where one is broken. Checks and releases nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from platemark.errors import RenderError
from platemark.runtime.denoise import Control, OnStep, Step
from platemark.runtime.noise import image_seed
from platemark.runtime.pipeline import Pipeline
from platemark.runtime.preview import Preview
from platemark.runtime.request import GenerationRequest, UpscaleRequest
from platemark.runtime.sizes import batch_size, render_size, side_multiple
from platemark.safety.decision import Decision

Noise = Callable[[int, int], NDArray[np.float32]]
_NEXT_SEED = 0x9E3779B9


@dataclass(frozen=True)
class Watch:
    """How a request is watched and ended while it runs: `Watch(on_step=print, previews=True, control=Control(deadline=20))`.

    `on_stage` hears the name of each stage as it begins, from whichever thread it runs on; `on_step` of each network call. `previews`: with
    what the pictures look like by then, latent-sized and unchecked; only under a policy that allows it. `control` ends the request, by
    hand or after a time: before a picture is stamped, it is not released any more.
    """

    on_stage: Callable[[str], None] = lambda stage: None
    on_step: OnStep | None = None
    previews: bool = False
    control: Control = field(default_factory=Control)

    def of_run(self) -> Watch:
        """This watch with a control of its own, so that a run whose pictures nobody waits for any more can be ended."""
        return replace(self, control=Control(above=self.control))

    def of_batch(self, first: int, size: int, batches: int) -> Watch:
        """For the batch that begins with picture `first`: its steps and pictures counted among those of the whole request."""
        batch = first // size
        return self._heard(
            lambda one: replace(one, step=batch * one.total + one.step, total=batches * one.total, previews=_moved(one, first))
        )

    def of_picture(self, k: int) -> Watch:
        """For picture `k` rendered by itself."""
        return self._heard(lambda one: replace(one, previews=_moved(one, k)))

    def _heard(self, change: Callable[[Step], Step]) -> Watch:
        hear = self.on_step
        return self if hear is None else replace(self, on_step=lambda one: hear(change(one)))


def _moved(step: Step, first: int) -> dict[int, Preview]:
    return {first + k: preview for k, preview in step.previews.items()}


@dataclass(frozen=True)
class Proof:
    """A rendered picture before the stamp, uint8 RGB (H, W, 3), never handed out; None where `error` says that it did not come out as one.

    `request` is for this picture alone; `index` counts the pictures of the whole request; `content_id` is the one reserved for it.
    `resampled_from`: (height, width) as rendered, where the picture was resampled from that.
    """

    request: GenerationRequest
    picture: NDArray[np.uint8] | None
    timings: dict[str, float]
    notes: tuple[str, ...] = ()
    error: RenderError | None = None
    decision: Decision | None = None
    index: int = 0
    content_id: int = 0
    resampled_from: tuple[int, int] | None = None


def proofs(
    pipeline: Pipeline, request: GenerationRequest, content_ids: list[int], watch: Watch, noise: Noise | None = None
) -> Iterator[Proof]:
    """The pictures of `request` in their order; picture k has `content_ids[k]`.

    Raises `InputError`, `EngineError`, and what the watch's control raises.

    `noise` gives the latents (C, h, w) that a picture of that seed and content id begins with; None: the seed's own.
    """
    manifest, multiple = pipeline.bundle.manifest, side_multiple(pipeline.bundle)
    # As many as the pipeline puts into one network call: while those are checked, the next call runs.
    size = batch_size(manifest, render_size(manifest, multiple, request.height, request.width))
    batches = -(-request.n // size)
    for first in range(0, request.n, size):
        part = replace(request, seed=image_seed(request.seed, first), n=min(size, request.n - first))
        ids = content_ids[first : first + size]
        for k, one in enumerate(_batch(pipeline, part, ids, watch.of_batch(first, size, batches), noise), first):
            yield replace(one, index=k)


def anew(pipeline: Pipeline, proof: Proof, watch: Watch, noise: Noise | None = None) -> Proof:
    """The same picture with another seed: far from those of the request's other pictures, and the same on every run."""
    request = replace(proof.request, seed=(proof.request.seed + _NEXT_SEED) % 2**64)  # the noise knows the low 32 bits only
    unheard = Watch(control=watch.control)
    return replace(next(_batch(pipeline, request, [proof.content_id], unheard, noise)), index=proof.index)


def enlarged(pipeline: Pipeline, request: UpscaleRequest, content_id: int, watch: Watch) -> Proof:
    """The request's picture, enlarged. Raises `InputError`, `EngineError`, and what the watch's control raises."""
    assert request.image is not None
    watch.control.check()
    began = time.perf_counter()
    try:
        picture = pipeline.enlarged(request.image, request.upscale)
    except RenderError as error:
        return Proof(request, None, {}, error=error, content_id=content_id)
    timings = {"upscale": round((time.perf_counter() - began) * 1000, 3)}
    return Proof(request, picture, timings, content_id=content_id, resampled_from=(request.height, request.width))


def _batch(pipeline: Pipeline, part: GenerationRequest, ids: list[int], watch: Watch, noise: Noise | None) -> Iterator[Proof]:
    """The pictures of one batch. Where one of them is broken each is rendered by itself, so that the others come out."""
    latents = None if noise is None else np.stack([noise(image_seed(part.seed, k), ids[k]) for k in range(part.n)])
    try:
        output = pipeline.generate(part, latents=latents, on_step=watch.on_step, control=watch.control, previews=watch.previews)
    except RenderError as error:
        if part.n == 1:
            yield Proof(part, None, {}, error=error, content_id=ids[0])
            return
        for k in range(part.n):
            yield from _batch(pipeline, replace(part, seed=image_seed(part.seed, k), n=1), ids[k : k + 1], watch.of_picture(k), noise)
        return
    for k, picture in enumerate(output.images):
        one = replace(part, n=1, seed=output.seeds[k])
        yield Proof(one, picture, dict(output.timings), output.notes, content_id=ids[k], resampled_from=output.resampled_from)
