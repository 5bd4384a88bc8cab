"""Pictures that a request brings, through the one door for image bytes; the file is kept, as the ingredient of what is made of it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from platemark.errors import InputError
from platemark.imaging import decode, encode, read_bytes, sniff

Source = str | Path | bytes | NDArray[np.uint8] | PIL.Image.Image


@dataclass(frozen=True)
class InputPicture:
    """`pixels`: uint8 RGB (height, width, 3), upright and on white. `data`: the file that they came from."""

    pixels: NDArray[np.uint8]
    data: bytes


def open_picture(source: Source) -> InputPicture:
    """A picture from a path, a file's bytes, a uint8 RGB array or a Pillow image. Raises `ImageError` and `InputError`."""
    data = _bytes(source)
    return InputPicture(decode(data).array, data)


def open_mask(source: Source, *, invert: bool = False) -> NDArray[np.uint8]:
    """A mask as gray levels, uint8 (height, width): 128 and more is painted. Colours count by their luma, transparency as white.

    `invert` takes black for what is painted. Raises `ImageError` and `InputError`.
    """
    if isinstance(source, np.ndarray) and source.dtype == np.uint8 and source.ndim == 2:
        gray: NDArray[np.uint8] = source
    else:
        gray = np.asarray(PIL.Image.fromarray(decode(_bytes(source)).array).convert("L"))
    return 255 - gray if invert else gray


def _bytes(source: Source) -> bytes:
    if isinstance(source, PIL.Image.Image):
        written = io.BytesIO()
        source.save(written, "png")
        return written.getvalue()
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
            raise InputError("the image is not a uint8 array (H, W, 3)", "give RGB levels of 0 to 255, or a file")
        return encode(source)
    data = read_bytes(source)
    if sniff(data) is None:
        raise InputError("the input is not a PNG, JPEG, WebP, AVIF, TIFF or GIF", "save the picture in one of these formats")
    return data
