"""A request's pictures as proofs: rendered a batch at a time, each by itself where one is broken. Checks and releases nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from platemark.errors import RenderError
from platemark.runtime.noise import image_seed
from platemark.runtime.pipeline import Pipeline
from platemark.runtime.request import GenerationRequest
from platemark.runtime.sizes import batch_size, render_size, side_multiple
from platemark.safety.decision import Decision

OnStep = Callable[[int, int], None]
Noise = Callable[[int, int], NDArray[np.float32]]
_NEXT_SEED = 0x9E3779B9


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
    pipeline: Pipeline, request: GenerationRequest, content_ids: list[int], on_step: OnStep, noise: Noise | None = None
) -> Iterator[Proof]:
    """The pictures of `request` in their order; picture k has `content_ids[k]`. Raises `InputError` and `EngineError`.

    `noise` gives the latents (C, h, w) that a picture of that seed and content id begins with; None: the seed's own.
    """
    manifest, multiple = pipeline.bundle.manifest, side_multiple(pipeline.bundle)
    # As many as the pipeline puts into one network call: while those are checked, the next call runs.
    size = batch_size(manifest, render_size(manifest, multiple, request.height, request.width))
    batches = -(-request.n // size)
    for first in range(0, request.n, size):
        part = replace(request, seed=image_seed(request.seed, first), n=min(size, request.n - first))
        ids = content_ids[first : first + size]
        for k, one in enumerate(_batch(pipeline, part, ids, _shifted(on_step, first // size, batches), noise), first):
            yield replace(one, index=k)


def anew(pipeline: Pipeline, proof: Proof, noise: Noise | None = None) -> Proof:
    """The same picture with another seed: far from those of the request's other pictures, and the same on every run."""
    request = replace(proof.request, seed=(proof.request.seed + _NEXT_SEED) % 2**64)  # the noise knows the low 32 bits only
    return replace(next(_batch(pipeline, request, [proof.content_id], lambda step, total: None, noise)), index=proof.index)


def _batch(pipeline: Pipeline, part: GenerationRequest, ids: list[int], on_step: OnStep, noise: Noise | None) -> Iterator[Proof]:
    """The pictures of one batch. Where one of them is broken each is rendered by itself, so that the others come out."""
    latents = None if noise is None else np.stack([noise(image_seed(part.seed, k), ids[k]) for k in range(part.n)])
    try:
        output = pipeline.generate(part, latents=latents, on_step=on_step)
    except RenderError as error:
        if part.n == 1:
            yield Proof(part, None, {}, error=error, content_id=ids[0])
            return
        for k in range(part.n):
            yield from _batch(pipeline, replace(part, seed=image_seed(part.seed, k), n=1), ids[k : k + 1], on_step, noise)
        return
    for k, picture in enumerate(output.images):
        one = replace(part, n=1, seed=output.seeds[k])
        yield Proof(one, picture, dict(output.timings), output.notes, content_id=ids[k], resampled_from=output.resampled_from)


def _shifted(on_step: OnStep, batch: int, batches: int) -> OnStep:
    """Counts the steps of one batch among those of all batches."""
    return lambda step, total: on_step(batch * total + step, batches * total)


class Cancelled(Exception):  # noqa: N818 - says what happened
    """Ends a rendering whose consumer went away; nobody is left to see it."""


class Cancel:
    """Hears the steps for `on_step`; once its `with` block is left, the next step ends the rendering."""

    def __init__(self, on_step: OnStep | None) -> None:
        self._on_step, self._gone = on_step, threading.Event()

    def __call__(self, step: int, total: int) -> None:
        if self._gone.is_set():
            raise Cancelled
        if self._on_step is not None:
            self._on_step(step, total)

    def __enter__(self) -> Cancel:
        return self

    def __exit__(self, *cause: object) -> None:
        self._gone.set()
