"""A request's pictures as proofs: rendered a batch at a time, each by itself where one is broken. Checks and releases nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from platemark.errors import RenderError
from platemark.runtime.noise import image_seed
from platemark.runtime.pipeline import MAX_BATCH, Pipeline
from platemark.runtime.request import GenerationRequest
from platemark.safety.decision import Decision

OnStep = Callable[[int, int], None]
_NEXT_SEED = 0x9E3779B9


@dataclass(frozen=True)
class Proof:
    """A rendered picture before the stamp, uint8 RGB (H, W, 3), never handed out; None where `error` says that it did not come out as one.

    `request` is for this picture alone; `index` counts the pictures of the whole request; `content_id` is the one reserved for it.
    """

    request: GenerationRequest
    picture: NDArray[np.uint8] | None
    timings: dict[str, float]
    notes: tuple[str, ...] = ()
    error: RenderError | None = None
    decision: Decision | None = None
    index: int = 0
    content_id: int = 0


def proofs(pipeline: Pipeline, request: GenerationRequest, content_ids: list[int], on_step: OnStep) -> Iterator[Proof]:
    """The pictures of `request` in their order; picture k has `content_ids[k]`. Raises `InputError` and `EngineError`."""
    batches = -(-request.n // MAX_BATCH)
    for first in range(0, request.n, MAX_BATCH):
        part = replace(request, seed=image_seed(request.seed, first), n=min(MAX_BATCH, request.n - first))
        for k, one in enumerate(_batch(pipeline, part, _shifted(on_step, first // MAX_BATCH, batches)), first):
            yield replace(one, index=k, content_id=content_ids[k])


def anew(pipeline: Pipeline, proof: Proof) -> Proof:
    """The same picture with another seed: far from those of the request's other pictures, and the same on every run."""
    request = replace(proof.request, seed=(proof.request.seed + _NEXT_SEED) % 2**64)  # the noise knows the low 32 bits only
    return replace(next(_batch(pipeline, request, lambda step, total: None)), index=proof.index, content_id=proof.content_id)


def _batch(pipeline: Pipeline, part: GenerationRequest, on_step: OnStep) -> Iterator[Proof]:
    """The pictures of one batch. Where one of them is broken each is rendered by itself, so that the others come out."""
    try:
        output = pipeline.generate(part, on_step=on_step)
    except RenderError as error:
        if part.n == 1:
            yield Proof(part, None, {}, error=error)
            return
        for k in range(part.n):
            yield from _batch(pipeline, replace(part, seed=image_seed(part.seed, k), n=1), on_step)
        return
    for k, picture in enumerate(output.images):
        yield Proof(replace(part, n=1, seed=output.seeds[k]), picture, dict(output.timings), output.notes)


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
