"""What the VAE decoder gives, as pictures; and whether a picture can be right. Knows nothing about prompts or policies."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from platemark.errors import RenderError

FLAT_LEVELS = 2.0  # of 255: a picture whose channels all vary by no more shows nothing
_REMEDY = "try another seed or a lower guidance_scale; if it persists, rebuild the bundle with `platemark build`"


def to_array(decoded: NDArray[np.float32]) -> NDArray[np.float32]:
    """Decoder output (3, H, W) in about [-1, 1] as (H, W, 3) in [0, 1]."""
    unit: NDArray[np.float32] = np.clip(decoded.transpose(1, 2, 0) * np.float32(0.5) + np.float32(0.5), 0.0, 1.0)
    return np.ascontiguousarray(unit)


def to_uint8(array: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[0, 1] to 0 … 255, rounded to the nearest level."""
    return np.round(array * np.float32(255.0)).astype(np.uint8)


def is_flat(picture: NDArray[Any]) -> bool:
    """True for one colour throughout (black among them): no channel varies by more than `FLAT_LEVELS`. uint8, or float in [0, 1]."""
    return not _varies(picture[::16, ::16]) and not _varies(picture)  # nearly every picture is decided by a few of its pixels


def _varies(picture: NDArray[Any]) -> bool:
    unit = 1.0 if picture.dtype == np.uint8 else 255.0
    spread = np.ptp(picture.reshape(-1, picture.shape[-1]), axis=0).astype(np.float64) * unit
    return not bool(spread.max() <= FLAT_LEVELS)  # NaN is for `check_finite` to find, and not flat


def check_finite(values: NDArray[Any], what: str) -> None:
    """Raises `RenderError` naming `what` where a value is NaN or infinite."""
    if not np.isfinite(values).all():
        raise RenderError(f"{what} holds NaN or infinite values", _REMEDY)


def check_render(picture: NDArray[Any]) -> None:
    """Raises `RenderError` for a picture (H, W, 3) that cannot be right: NaN or infinite values, or one flat colour."""
    check_finite(picture, "the picture")
    if is_flat(picture):
        raise RenderError("the picture is one flat colour", _REMEDY)
