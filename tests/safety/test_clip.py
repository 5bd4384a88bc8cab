"""The CLIP filter scores what it sees, and refuses wherever it cannot be trusted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from platemark.errors import EngineError, SafetyUnavailable
from platemark.safety.clip import ClipFilter, ClipModel, Preprocess, contrast, pixel_values, square
from platemark.safety.embeddings import cached_embeddings

CONCEPTS = {"alarm": ("red",), "caution": ("yellow", "red")}
RED, GREEN, YELLOW, WHITE = (250, 10, 10), (10, 250, 10), (250, 250, 10), (254, 254, 254)


def load(folder: Path, colours: Any) -> ClipModel:
    return ClipModel.load(folder, colours.ColourTower("image"), colours.ColourTower("text"), colours.colour_tokens)


@pytest.fixture
def model(clip_folder: Path, colours: Any) -> ClipModel:
    return load(clip_folder, colours)


def test_scores_are_probabilities_of_the_concepts(model: ClipModel, colours: Any) -> None:
    watch = ClipFilter(model, CONCEPTS, ["green", "blue", "white", "black", "red", " Red "])
    red, yellow, green = (watch.score(colours.picture(c)) for c in (RED, YELLOW, GREEN))
    assert red["alarm"].score > 0.9
    assert red["caution"].score == pytest.approx(red["alarm"].score, abs=0.1)
    assert (yellow["caution"].score > 0.9, yellow["alarm"].score < 0.1, yellow["caution"].concept) == (True, True, "yellow")
    assert green["alarm"].score < 0.05
    assert watch.probabilities(colours.picture(WHITE)).sum() == pytest.approx(1)


def test_without_a_vocabulary_a_general_list_stands_against_the_concepts(model: ClipModel, colours: Any) -> None:
    watch = ClipFilter(model, {"alarm": ("red",)})
    assert len(contrast()) > 50
    assert watch.score(colours.picture(RED))["alarm"].score > watch.score(colours.picture(WHITE))["alarm"].score
    assert watch.score(colours.picture(WHITE))["alarm"].score < 0.1


@pytest.mark.parametrize("mode", ["squash", "longest", "shortest"])
def test_no_part_of_a_picture_goes_unseen(mode: Any) -> None:
    preprocess = Preprocess(image_size=16, mean=(0.5,) * 3, std=(0.5,) * 3, context_length=4, resize_mode=mode)
    for corner in ((slice(0, 64), slice(0, 64)), (slice(-64, None), slice(-64, None))):
        image = np.full((64, 256, 3), 255, np.uint8)
        image[corner] = 0
        assert square(image, preprocess).min() < 40
    assert square(np.zeros((20, 20, 3), np.uint8), preprocess).shape == (16, 16, 3)


def test_preprocessing_follows_the_formula() -> None:
    preprocess = Preprocess(image_size=16, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.125), context_length=4)
    values = pixel_values(np.full((16, 16, 3), 51, np.uint8), preprocess)
    assert values.dtype == np.float32
    assert values.shape == (1, 3, 16, 16)
    np.testing.assert_allclose(values[0, :, 3, 5], [(0.2 - 0.5) / 0.5, (0.2 - 0.4) / 0.25, (0.2 - 0.3) / 0.125], rtol=1e-6)


@pytest.mark.parametrize(
    "array",
    [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((0, 8, 3), np.uint8),
     np.zeros((3, 8, 8), np.int64), np.zeros((1, 8, 8, 3), np.uint8), [[[0, 0, 0]]], None],
)  # fmt: skip
def test_anything_but_uint8_rgb_is_refused(model: ClipModel, array: Any) -> None:
    with pytest.raises(SafetyUnavailable, match="a picture to check"):
        model.embed_image(array)


@pytest.mark.parametrize("name", ["preprocess.json", "golden.json"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"image_size": 16}', b"\xff"])
def test_missing_or_damaged_file(clip_folder: Path, colours: Any, name: str, content: bytes | None) -> None:
    (clip_folder / name).unlink() if content is None else (clip_folder / name).write_bytes(content)
    with pytest.raises(SafetyUnavailable, match=name):
        load(clip_folder, colours)


@pytest.mark.parametrize(
    ("key", "value"), [("image_size", 0), ("logit_scale", float("nan")), ("resize_mode", "crop"), ("colour", "BGR"), ("mean", [0.5])]
)
def test_preprocessing_that_cannot_be_right(tmp_path: Path, colours: Any, key: str, value: Any) -> None:
    folder = colours.write_clip_folder(tmp_path / "clip", **{key: value})
    with pytest.raises(SafetyUnavailable, match=r"preprocess\.json"):
        load(folder, colours)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_wrong_golden_embedding_refuses_the_tower(clip_folder: Path, colours: Any, tower: str) -> None:
    golden = json.loads((clip_folder / "golden.json").read_text())
    golden[tower]["embedding"] = golden[tower]["embedding"][::-1]
    (clip_folder / "golden.json").write_text(json.dumps(golden))
    with pytest.raises(SafetyUnavailable, match=f"{tower} tower does not give its golden embedding"):
        load(clip_folder, colours)


def test_a_golden_embedding_of_zeros_or_nan_proves_nothing(clip_folder: Path, colours: Any) -> None:
    stored = json.loads((clip_folder / "golden.json").read_text())
    for value in (0.0, float("nan")):
        stored["image"]["embedding"] = [value] * 4
        (clip_folder / "golden.json").write_text(json.dumps(stored))
        with np.errstate(invalid="ignore"), pytest.raises(SafetyUnavailable):
            load(clip_folder, colours)


def test_golden_image_is_the_documented_noise(clip_folder: Path, colours: Any) -> None:
    seen = []

    class Recorder(colours.ColourTower):  # type: ignore[misc]
        def run(self, inputs: Any) -> Any:
            seen.append(inputs["pixel_values"])
            return super().run(inputs)

    ClipModel.load(clip_folder, Recorder("image"), colours.ColourTower("text"), colours.colour_tokens)
    noise = np.random.Generator(np.random.PCG64(7)).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    expected = (noise.astype(np.float32) / 255 - np.array([0.5, 0.4, 0.3], np.float32)) / np.array([0.5, 0.5, 0.25], np.float32)
    np.testing.assert_allclose(seen[0][0].transpose(1, 2, 0), expected, atol=1e-6)


SPOILED = {
    "nan": lambda rows: rows * np.float32("nan"),
    "one nan": lambda rows: np.where(np.arange(rows.shape[1]) == 0, np.float32("nan"), rows),
    "zeros": np.zeros_like,
    "longer": lambda rows: rows * 3,
    "one dimension more": lambda rows: np.concatenate([rows, rows[:, :1]], axis=1),
    "a row less": lambda rows: rows[:-1],
    "integers": lambda rows: rows.astype(np.int32),
    "flat": lambda rows: rows.reshape(-1),
    "no array": lambda rows: None,
}


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_an_output_that_is_no_unit_embedding_is_refused(clip_folder: Path, colours: Any, tower: str, spoil: Any) -> None:
    towers = {kind: colours.ColourTower(kind) for kind in ("image", "text")}
    model = ClipModel.load(clip_folder, towers["image"], towers["text"], colours.colour_tokens)
    watch = ClipFilter(model, CONCEPTS)
    towers[tower].spoil = spoil  # breaks after it was loaded well
    with pytest.raises(SafetyUnavailable):
        watch.score(colours.picture(RED)) if tower == "image" else ClipFilter(model, CONCEPTS)


def test_failing_engine_and_tokenizer(clip_folder: Path, colours: Any) -> None:
    def fail(rows: NDArray[Any]) -> NDArray[Any]:
        raise EngineError("out of memory", "buy more")

    with pytest.raises(SafetyUnavailable, match="out of memory"):
        ClipModel.load(clip_folder, colours.ColourTower("image", fail), colours.ColourTower("text"), colours.colour_tokens)
    good: Any = colours.colour_tokens
    tokenizers: list[Any] = [lambda texts: good(texts).astype(np.int32), lambda texts: good(texts)[:, :2], lambda texts: None]
    for broken in tokenizers:
        with pytest.raises(SafetyUnavailable):
            ClipModel.load(clip_folder, colours.ColourTower("image"), colours.ColourTower("text"), broken)


def test_no_concepts_is_no_check(model: ClipModel) -> None:
    for concepts in ({}, {"alarm": ()}):
        with pytest.raises(SafetyUnavailable, match="no concepts"):
            ClipFilter(model, concepts)


def test_texts_are_embedded_once_and_a_bad_cache_is_made_anew(clip_folder: Path, tmp_path: Path, colours: Any) -> None:
    names = [f"green thing {i}" for i in range(300)]
    cache = tmp_path / "cache"

    def build() -> tuple[NDArray[np.float64], int]:
        text = colours.ColourTower("text")
        model = ClipModel.load(clip_folder, colours.ColourTower("image"), text, colours.colour_tokens)
        watch = ClipFilter(model, CONCEPTS, names, cache)
        return watch.probabilities(colours.picture(RED)), text.calls

    first, many = build()
    again, few = build()
    np.testing.assert_allclose(again, first, rtol=1e-6)
    assert few < many / 2
    file = max(cache.iterdir(), key=lambda path: path.stat().st_size)  # the vocabulary; the concepts have a file of their own
    rows = np.load(file)
    for damaged in (b"", file.read_bytes()[:100], None):
        np.save(file, rows[:, ::-1].copy()) if damaged is None else file.write_bytes(damaged)
        repaired, calls = build()
        np.testing.assert_allclose(repaired, first, rtol=1e-6)
        assert calls >= many
        np.testing.assert_array_equal(np.load(file), rows)


@pytest.mark.parametrize(("row", "forged"), [(0, False), (5, False), (20, False), (0, True), (4, True), (5, True), (29, True)])
def test_a_replaced_row_is_noticed(tmp_path: Path, row: int, forged: bool) -> None:
    """Rows 0 … 5 are concepts: they and the last are not believed even where the file's own sha256 fits."""
    texts = [f"text {i}" for i in range(30)]
    table = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    asked: list[int] = []

    def embed(some: Sequence[str]) -> NDArray[np.float32]:
        asked.append(len(some))
        return table[[texts.index(text) for text in some]]

    def rows(folder: Path, own: Any = embed) -> NDArray[np.float32]:
        return cached_embeddings(own, texts, "model", folder, probes=6)

    rows(tmp_path / "cache")
    assert (rows(tmp_path / "cache") == table).all()
    assert asked == [30, 7]
    wrong = table.copy()
    wrong[row] = table[28]
    (file,) = (tmp_path / "cache").iterdir()
    rows(tmp_path / "wrong", lambda some: wrong)
    (whole,) = (tmp_path / "wrong").iterdir()
    file.write_bytes(whole.read_bytes() if forged else whole.read_bytes()[:-32] + file.read_bytes()[-32:])
    np.testing.assert_array_equal(rows(tmp_path / "cache"), table)
    assert asked[-1] == 30


def test_every_concept_of_the_policy_is_embedded_anew(clip_folder: Path, tmp_path: Path, colours: Any) -> None:
    seen: list[str] = []

    def tokens(texts: list[str]) -> Any:
        seen.extend(texts)
        return colours.colour_tokens(texts)

    model = ClipModel.load(clip_folder, colours.ColourTower("image"), colours.ColourTower("text"), tokens)
    for _ in range(2):
        seen.clear()
        ClipFilter(model, {"one": colours.WORDS[:4], "two": colours.WORDS[2:]}, [f"thing {i}" for i in range(9)], tmp_path / "cache")
    assert seen == [*colours.WORDS, "thing 8"]


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(model: ClipModel, tmp_path: Path, colours: Any) -> None:
    (tmp_path / "file").write_text("")
    watch = ClipFilter(model, CONCEPTS, ["green"], tmp_path / "file" / "cache")
    assert watch.score(colours.picture(RED))["alarm"].score > 0.9
