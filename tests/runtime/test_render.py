"""Resizing, and telling a picture from a render that went wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from platemark.errors import RenderError
from platemark.runtime.render import check_render, is_flat, to_array, to_uint8
from platemark.runtime.resize import fit


def noise(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def test_the_same_size_is_the_same_picture() -> None:
    picture = noise(32, 48)
    assert fit(picture, 32, 48) is picture


def test_whole_scale_is_pillows_lanczos() -> None:
    picture = noise(32, 32)
    assert np.array_equal(fit(picture, 128, 128), np.asarray(Image.fromarray(picture).resize((128, 128), Image.Resampling.LANCZOS)))


def test_the_middle_is_kept() -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, 16:48] = 255
    assert fit(picture, 128, 64)[:, 1:-1].min() > 240  # the outermost columns blend with what was cut
    assert fit(picture, 64, 128)[:, :24].max() < 40


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 80), st.integers(1, 80))
def test_any_size_comes_out(height: int, width: int, rows: int, columns: int) -> None:
    out = fit(np.full((rows, columns, 3), 77, np.uint8), height, width)
    assert out.shape == (height, width, 3)
    assert np.all(out == 77)


def test_extreme_aspects_stay_cheap() -> None:
    assert fit(noise(128, 128), 64, 4096).shape == (64, 4096, 3)


def test_decoder_output_becomes_levels() -> None:
    decoded = np.array([-2.0, -1.0, 0.0, 1.0, 2.0, 0.5], np.float32).reshape(3, 1, 2)
    array = to_array(decoded)
    assert array.shape == (1, 2, 3)
    assert to_uint8(array).tolist() == [[[0, 128, 255], [0, 255, 191]]]


@pytest.mark.parametrize("value", [0, 128, 255])
def test_flat_pictures(value: int) -> None:
    flat = np.full((16, 16, 3), value, np.uint8)
    assert is_flat(flat)
    flat[3, 3, 1] = abs(value - 2)
    assert is_flat(flat)
    flat[3, 3, 1] = abs(value - 3)
    assert not is_flat(flat)


def test_a_flat_colour_is_flat_though_its_channels_differ() -> None:
    assert is_flat(np.tile(np.array([250, 10, 90], np.uint8), (8, 8, 1)))


@pytest.mark.parametrize(
    "bad", [np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 0.5, np.float32), np.full((8, 8, 3), np.nan, np.float32)]
)
def test_renders_that_cannot_be_right(bad: Any) -> None:
    with pytest.raises(RenderError):
        check_render(bad)


def test_one_nan_is_enough() -> None:
    picture = np.random.default_rng(0).random((8, 8, 3)).astype(np.float32)
    check_render(picture)
    picture[1, 1, 1] = np.inf
    with pytest.raises(RenderError):
        check_render(picture)
