"""Checks overlap with rendering, and nothing else changes: order, seeds, errors, and that nothing unchecked comes out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from platemark import rendering
from platemark.errors import SafetyUnavailable
from platemark.overlap import ahead
from platemark.press import Press
from platemark.runtime import sizes
from platemark.runtime.pipeline import Pipeline
from platemark.runtime.request import GenerationRequest


def test_items_keep_their_order_and_are_made_on_one_thread() -> None:
    threads: set[int] = set()

    def items() -> Iterator[int]:
        for number in range(20):
            threads.add(threading.get_ident())
            yield number

    assert list(ahead(items())) == list(range(20))
    assert len(threads) == 1
    assert threads != {threading.get_ident()}


def test_the_next_item_is_made_meanwhile_and_no_further() -> None:
    made: list[int] = []
    second = threading.Event()

    def items() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            if number == 1:
                second.set()
            yield number

    stream = ahead(items())
    assert next(stream) == 0
    assert second.wait(30)
    assert max(made) <= 3  # one handed over, one waiting, one in the making
    stream.close()
    assert max(made) <= 4


def test_an_error_comes_where_its_item_would_have() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise SafetyUnavailable("broken", "mend it")

    stream = ahead(items())
    assert next(stream) == 1
    with pytest.raises(SafetyUnavailable, match="broken"):
        next(stream)
    assert next(stream, None) is None


def test_a_consumer_that_goes_away_closes_the_source_and_waits_for_it() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.set()

    stream = ahead(items())
    next(stream)
    stream.close()
    assert closed.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name == "platemark-ahead"]


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every picture a batch of its own, as pictures of full size are."""
    monkeypatch.setattr(sizes, "MAX_BATCH", 1)


@pytest.mark.usefixtures("one_by_one")
def test_a_picture_is_checked_while_the_next_is_rendered(studio: Any, tmp_path: Path) -> None:
    rendering_second, overlapped = threading.Event(), []

    def draw(seed: int) -> Any:
        if seed == 6:
            rendering_second.set()
        return studio.drawn(seed)

    def nsfw(image: Any) -> Any:
        if studio.seed_in(image) == 5:
            overlapped.append(rendering_second.wait(15))  # a press that renders only after the check would wait in vain
        return studio.saw("nsfw", ("sexual", 0.01))

    made: Press = studio.press(tmp_path, draw=draw, nsfw=nsfw)
    results = made.generate("a cat", seed=5, n=4)
    assert overlapped == [True]
    assert [(r.status, r.seed) for r in results] == [("released", seed) for seed in (5, 6, 7, 8)]
    assert [r["image_index"] for r in made.log.search(lambda r: r["stage"] == "output_image")] == [0, 1, 2, 3]


@pytest.mark.usefixtures("one_by_one")
def test_every_picture_is_checked_before_it_is_stamped(studio: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []

    def nsfw(image: Any) -> Any:
        checked.append(studio.seed_in(image))
        return studio.saw("nsfw", ("sexual", 0.95 if checked[-1] == 7 else 0.01))

    made: Press = studio.press(tmp_path, nsfw=nsfw)
    real, stamped = made.stamp.apply, []

    def apply(picture: Any, *rest: Any, **more: Any) -> Any:
        stamped.append((studio.seed_in(picture), studio.seed_in(picture) in checked))
        return real(picture, *rest, **more)

    monkeypatch.setattr(made.stamp, "apply", apply)
    assert [r.status for r in made.generate("a cat", seed=5, n=4)] == ["released", "released", "withheld", "released"]
    assert stamped == [(5, True), (6, True), (8, True)]


@pytest.mark.usefixtures("one_by_one")
def test_an_iterator_that_is_dropped_ends_the_rendering(studio: Any, tmp_path: Path) -> None:
    made: Press = studio.press(tmp_path)
    stream = made.run(made.admit("a cat", seed=5, n=40))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert len(made.pipeline.rendered) < 10  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name == "platemark-ahead"]


@pytest.mark.parametrize(("side", "batch"), [(64, 8), (128, 8), (192, 3), (256, 2), (384, 1), (1024, 1)])
def test_batches_of_the_press_are_those_of_the_pipeline(studio: Any, monkeypatch: pytest.MonkeyPatch, side: int, batch: int) -> None:
    """So that a picture of full size is checked while the next is rendered, and not after the last."""
    monkeypatch.setattr(sizes, "one_size_only", lambda manifest: False)  # a model that renders what it is asked for
    pipeline = Pipeline.load(studio.bundle)
    asked: list[int] = []
    drawn = pipeline.generate

    def generate(part: GenerationRequest, **options: Any) -> Any:
        asked.append(part.n)
        return drawn(replace(part, n=1, height=64, width=64, num_inference_steps=1))

    monkeypatch.setattr(pipeline, "generate", generate)
    request = GenerationRequest.make(studio.bundle.manifest, prompt="a cat", height=side, width=side, n=9)
    list(rendering.proofs(pipeline, request, list(range(9)), rendering.Watch()))
    assert asked == [min(batch, 9 - first) for first in range(0, 9, batch)]
