"""A copy is laid back into the frame that was marked, or said to be comparable with nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from platemark.imaging import hash_distance, perceptual_hash
from platemark.provenance.verify.frame import laid_back, moved
from platemark.provenance.watermark.detect import Detection

STILL = {"scale": 1.0, "rotation": 0.0, "flip": False, "aspect": 1.0, "skew": 0.0, "shift": [0.0, 0.0]}


def found(layout: Any = "full", **geometry: Any) -> Detection:
    return Detection("detected", None, 1e-9, "key", layout, 0.0, STILL | geometry, 1, 9.0)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
@pytest.mark.parametrize("drift", [0.0, 0.02, -0.03])
def test_mirroring_and_quarter_turns_are_undone(picture: np.ndarray, flip: bool, quarters: int, drift: float) -> None:
    copy = np.rot90(picture[:, ::-1] if flip else picture, quarters)
    laid = laid_back(np.ascontiguousarray(copy), found(flip=flip, rotation=(90 * quarters + drift) % 360), None)
    assert laid is not None
    assert np.array_equal(laid, picture)


@pytest.mark.parametrize("degrees", [-4.0, -0.6, 0.6, 2.0, 94.0, 178.0])
def test_slight_turns_are_undone(picture: np.ndarray, degrees: float) -> None:
    quarters = round(degrees / 90)
    upright = Image.fromarray(np.ascontiguousarray(np.rot90(picture, quarters)))
    copy = np.asarray(upright.rotate(degrees - 90 * quarters, Image.Resampling.BICUBIC))
    laid = laid_back(copy, found(rotation=degrees % 360), None)
    assert laid is not None
    assert hash_distance(perceptual_hash(laid), perceptual_hash(picture)) <= 60


@pytest.mark.parametrize(
    "geometry",
    [{"scale": 1.03}, {"scale": 0.97}, {"rotation": 6.0}, {"rotation": 354.0}, {"rotation": 30.0}, {"rotation": 84.0}, {"skew": 0.03}],
)  # fmt: skip
def test_crops_free_turns_and_shears_cannot_be_compared(picture: np.ndarray, geometry: dict[str, Any]) -> None:
    assert laid_back(picture, found(**geometry), (320, 384)) is None


@pytest.mark.parametrize("geometry", [{"scale": 1.015}, {"aspect": 1.3}, {"rotation": 359.5}, {"skew": 0.01}])
def test_a_whole_frame_can_be_compared_whatever_its_aspect(picture: np.ndarray, geometry: dict[str, Any]) -> None:
    assert laid_back(picture, found(**geometry), None) is not None


def test_small_pictures_must_have_their_size(picture: np.ndarray) -> None:
    small = picture[:100, :120]
    tile = Detection("detected", None, 1e-9, "key", "pixel", 0.0, {"step": 9.0, "salt": 3}, 1, 9.0)
    assert laid_back(small, tile, (100, 120)) is small
    assert laid_back(small, tile, (100, 121)) is None
    assert laid_back(small, tile, None) is None
    assert moved(tile) is None


def test_what_was_done_is_said_in_words() -> None:
    assert moved(found(rotation=359.8, scale=1.01, aspect=0.99)) is None
    assert moved(found(flip=True)) == "mirrored"
    assert moved(found(rotation=90.0)) == "turned by 90° counter-clockwise"
    assert moved(found(scale=1.4, aspect=1.2)) == "cut or padded (scale 1.4), stretched (aspect 1.2)"
