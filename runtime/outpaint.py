"""A larger canvas around a picture, and the mask that has the new part painted: outpainting as inpainting. Knows nothing about models."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from platemark.errors import InputError
from platemark.runtime.request import MAX_SIZE

Picture = NDArray[np.uint8]


def margins(text: str) -> tuple[int, int, int, int]:
    """Pixels to add at (left, top, right, bottom), from `64` (every side) or `0,0,256,0`. Raises `InputError`."""
    match = re.fullmatch(r"(\d{1,5})(?:,(\d{1,5}),(\d{1,5}),(\d{1,5}))?", text.replace(" ", ""))
    if match is None:
        raise InputError(
            f"cannot extend a picture by {text[:40]!r}", "give pixels for every side (64) or LEFT,TOP,RIGHT,BOTTOM (0,0,256,0)"
        )
    sides = tuple(int(side) for side in match.groups() if side is not None)
    return sides if len(sides) == 4 else (sides[0], sides[0], sides[0], sides[0])


def outpaint(image: Picture, left: int, top: int, right: int, bottom: int, mask: Picture | None = None) -> tuple[Picture, Picture]:
    """`image` (H, W, 3) on a canvas larger by these pixels, its edges drawn out over the new part, and the mask (uint8) of what to paint.

    A `mask` (H, W) of the picture itself stays in force. Raises `InputError` where nothing is added or the canvas is too large.
    """
    rows, columns = image.shape[:2]
    around = ((top, bottom), (left, right))
    if min(left, top, right, bottom) < 0 or left + top + right + bottom == 0:
        raise InputError("nothing is added to the picture", "give a number of pixels for one side at least")
    if max(rows + top + bottom, columns + left + right) > MAX_SIZE:
        raise InputError(f"the larger canvas has more than {MAX_SIZE} pixels a side", "add fewer pixels")
    inner = np.zeros((rows, columns), np.uint8) if mask is None else mask
    return np.pad(image, (*around, (0, 0)), mode="edge"), np.pad(inner, around, constant_values=255)
