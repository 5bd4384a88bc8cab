"""The safety checker's rule by itself, with a tower that is plain numpy. Its equality with diffusers is in tests/optimize."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from platemark.errors import SafetyUnavailable
from platemark.safety.detectors.checker import FLAGGED, CheckerFile, Judgement, Rule, SafetyChecker, pixel_values

DIM, SIDE, SEED = 6, 8, 5
Array = NDArray[Any]


def unit(place: int, lean: float = 0.0) -> tuple[float, ...]:
    row = np.full(DIM, lean)
    row[place] = 1.0
    return tuple(float(v) for v in row / np.linalg.norm(row))


class MeanTower:
    """An `Engine`: the embedding is the mean of R, G and B and of their halves. `spoil` breaks it."""

    inputs: tuple[Any, ...] = ()
    outputs: tuple[Any, ...] = ()

    def __init__(self) -> None:
        self.spoil: Callable[[Array], Array] = lambda rows: rows

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        pixels = inputs["pixel_values"]
        halves = pixels[..., : SIDE // 2].mean(axis=(2, 3))
        return {"image_embeds": self.spoil(np.concatenate([pixels.mean(axis=(2, 3)), halves], axis=1).astype(np.float32))}


def content(**changes: Any) -> dict[str, Any]:
    noise = np.random.Generator(np.random.PCG64(SEED)).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    preprocess = {"image_size": SIDE, "resize": SIDE, "interpolation": "bicubic", "rescale": 1 / 255, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    pixels = (noise.astype(np.float32) / 255).transpose(2, 0, 1)[None]
    golden = MeanTower().run({"pixel_values": pixels})["image_embeds"][0]
    found = {
        "format_version": 1,
        "preprocess": preprocess,
        "special_care": (unit(0), unit(1)),
        "special_care_thresholds": (0.5, 0.6),
        "concepts": (unit(2), unit(3, 0.2), unit(4, 0.1)),
        "concept_thresholds": (0.3, 0.4, 0.5),
        "golden_seed": SEED,
        "golden_embedding": tuple(float(v) for v in golden),
    }
    return found | changes


def file(**changes: Any) -> CheckerFile:
    return CheckerFile.model_validate(content(**changes))


def embedding(**cosines: float) -> NDArray[np.float32]:
    """A vector with these cosines with the axes (`x0`, `x2`, …), the rest on the last axis."""
    row = np.zeros(DIM, np.float32)
    for name, value in cosines.items():
        row[int(name[1:])] = value
    row[DIM - 1] = np.sqrt(max(0.0, 1 - float((row**2).sum())))
    return row * 7  # the length says nothing


def test_scores_are_cosines_less_thresholds_to_three_digits() -> None:
    judged = Rule(file()).judge(embedding(x0=0.4, x2=0.25))
    assert judged.special_care == (pytest.approx(-0.1, abs=1e-6), pytest.approx(-0.6, abs=1e-6))
    assert judged.concepts[0] == pytest.approx(-0.05, abs=1e-6)
    assert not judged.flagged
    assert all(abs(score * 1000 - round(score * 1000)) < 1e-3 for score in judged.concepts)


@pytest.mark.parametrize(
    ("special", "concept", "flagged"),
    [(0.4, 0.3004, False), (0.4, 0.302, True), (0.51, 0.292, True), (0.51, 0.289, False), (0.4, 0.295, False), (0.5004, 0.295, False)],
)
def test_special_care_makes_the_rest_stricter_by_a_hundredth(special: float, concept: float, flagged: bool) -> None:
    judged = Rule(file()).judge(embedding(x0=special, x2=concept))
    assert judged.flagged is flagged
    assert (judged.score >= FLAGGED) is flagged
    assert judged.worst == 0


def test_a_later_special_care_concept_is_judged_more_strictly_too() -> None:
    alone, after = Rule(file()).judge(embedding(x1=0.595)), Rule(file()).judge(embedding(x0=0.55, x1=0.595))
    assert alone.special_care[1] == pytest.approx(-0.005, abs=1e-6)
    assert after.special_care[1] == pytest.approx(0.005, abs=1e-6)


@pytest.mark.parametrize(
    ("top", "score"), [(-0.5, 0.0), (-0.046, 0.0), (-0.019, 0.4), (0.0, 0.685), (0.001, 0.7), (0.05, 0.945), (0.2, 1.0)]
)
def test_the_score_reaches_the_presets_where_the_checker_flags(top: float, score: float) -> None:
    judged = Judgement((-0.1,), (-0.7, top))
    assert judged.score == pytest.approx(score, abs=1e-9)
    assert judged.flagged == (score >= FLAGGED)


UNLOADED: dict[str, dict[str, Any]] = {
    "ones": {"concepts": ((1.0,) * DIM,) * 3},
    "one constant": {"special_care": (unit(0), (0.5,) * DIM)},
    "two equal": {"concepts": (unit(2), unit(2), unit(4))},
    "not a number": {"concepts": (unit(2), unit(3), (float("nan"),) * DIM)},
    "thresholds of one": {"concept_thresholds": (1.0, 1.0, 1.0)},
    "a threshold less": {"concept_thresholds": (0.3, 0.4)},
    "another length": {"special_care": ((1.0, 0.0), (0.0, 1.0))},
    "lengths mixed": {"special_care": ((1.0, 0.0), unit(1))},
}


@pytest.mark.parametrize("change", UNLOADED.values(), ids=UNLOADED)
def test_vectors_that_never_loaded_do_not_score(change: dict[str, Any]) -> None:
    """Replay: a checker whose weights never loaded scores happily with ones."""
    with pytest.raises(SafetyUnavailable):
        SafetyChecker(MeanTower(), file(**change), "0" * 64)


SPOILED: dict[str, Callable[[Array], Array]] = {
    "nan": lambda rows: rows * np.float32("nan"),
    "zeros": np.zeros_like,
    "halves": lambda rows: rows.astype(np.float16),
    "longer": lambda rows: np.concatenate([rows, rows], axis=1),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_tower_that_breaks_later_is_no_answer(spoil: Any) -> None:
    tower = MeanTower()
    checker = SafetyChecker(tower, file(), "0" * 64)
    picture = np.full((8, 8, 3), 90, np.uint8)
    assert len(checker.observe(picture).signals) == 1
    tower.spoil = spoil
    with pytest.raises(SafetyUnavailable):
        checker.observe(picture)


def test_another_tower_does_not_give_the_golden_embedding() -> None:
    tower = MeanTower()
    tower.spoil = lambda rows: rows[:, ::-1] * np.linspace(1, 4, DIM, dtype=np.float32)
    with pytest.raises(SafetyUnavailable, match="golden embedding"):
        SafetyChecker(tower, file(), "0" * 64)


@pytest.mark.parametrize("wrong", [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), None])
def test_anything_but_uint8_rgb_is_refused(wrong: Any) -> None:
    with pytest.raises(SafetyUnavailable, match="a picture to check must be"):
        SafetyChecker(MeanTower(), file(), "0" * 64).observe(wrong)


def test_oblong_pictures_are_seen_by_their_middle_and_whole() -> None:
    """What stands at the edge of a wide picture is looked at; the checker alone would crop it away."""
    checker = SafetyChecker(MeanTower(), file(concepts=(unit(2), unit(5)), concept_thresholds=(0.3, 0.95)), "0" * 64)
    wide = np.zeros((16, 64, 3), np.uint8)
    wide[:, :20, 2] = 250  # blue at the left edge, black in the middle
    wide[:, 30:34, 0] = 4
    middle = checker.judge(np.ascontiguousarray(wide[:, 24:40]))
    assert (checker.judge(wide).flagged, middle.flagged) == (True, False)


def test_input_is_the_middle_square_normalised() -> None:
    preprocess = file(preprocess=content()["preprocess"] | {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.25, 0.125)}).preprocess
    tall = np.full((32, SIDE, 3), 51, np.uint8)
    tall[:8] = 255
    values = pixel_values(tall, preprocess)
    assert (values.shape, values.dtype) == ((1, 3, SIDE, SIDE), np.float32)
    np.testing.assert_allclose(values[0, :, 3, 3], [-0.6, -0.8, -0.8], rtol=1e-5)
    assert values.max() < 0
