"""What may come in as a picture or a mask, and that it comes in upright, in RGB and on white."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from platemark.errors import ImageError, InputError
from platemark.imaging import encode
from platemark.input_picture import open_mask, open_picture

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def saved(image: PIL.Image.Image, name: str = "png", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def test_paths_bytes_arrays_and_pillow_images_are_the_same_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(RGB))
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), encode(RGB), RGB, PIL.Image.fromarray(RGB)):
        opened = open_picture(source)
        assert np.array_equal(opened.pixels, RGB)
        assert np.array_equal(np.asarray(PIL.Image.open(io.BytesIO(opened.data)).convert("RGB")), RGB)


def test_every_mode_comes_in_as_rgb_on_white() -> None:
    alpha = np.dstack([RGB, np.zeros((20, 30), np.uint8)])
    assert (open_picture(saved(PIL.Image.fromarray(alpha))).pixels == 255).all()
    palette = PIL.Image.fromarray(RGB).quantize(16)
    assert np.array_equal(open_picture(saved(palette)).pixels, np.asarray(palette.convert("RGB")))
    deep = PIL.Image.fromarray(np.full((20, 30), 0x80FF, np.uint16))
    assert (open_picture(saved(deep)).pixels == 0x80).all()
    turned = PIL.Image.fromarray(RGB)
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned right
    assert open_picture(saved(turned, exif=exif)).pixels.shape == (30, 20, 3)


def test_a_mask_is_gray_and_can_be_inverted() -> None:
    half = np.zeros((20, 30), np.uint8)
    half[:, :10] = 255
    for source in (half, saved(PIL.Image.fromarray(half)), np.repeat(half[..., None], 3, axis=2)):
        assert np.array_equal(open_mask(source), half)
        assert np.array_equal(open_mask(source, invert=True), 255 - half)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (b"no picture", InputError),
        (b"", InputError),
        (RGB.astype(np.float32), InputError),
        (RGB[..., 0], InputError),
        (encode(RGB)[:80], ImageError),
    ],
)
def test_what_is_no_picture_is_refused(source: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        open_picture(source)
