"""Lanczos resampling of finished pictures to the requested size: cover, then crop the middle. Knows nothing about models."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.uint8]


def fit(picture: Picture, height: int, width: int) -> Picture:
    """`picture` (H, W, 3) as (height, width, 3): its largest centred part of that aspect, resampled by Lanczos (a = 3, Pillow's).

    The cut is made before resampling and to fractions of a pixel, so an extreme aspect needs no large image in between.
    A picture that has the size already is returned as it is.
    """
    rows, columns = picture.shape[:2]
    if (rows, columns) == (height, width):
        return picture
    scale = max(height / rows, width / columns)
    keep_rows, keep_columns = min(rows, height / scale), min(columns, width / scale)
    top, left = (rows - keep_rows) / 2, (columns - keep_columns) / 2
    box = (left, top, left + keep_columns, top + keep_rows)
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS, box=box))
