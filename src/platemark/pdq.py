"""PDQ, a perceptual hash of 256 bits, in numpy alone.

After its public description ("The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing Algorithm", ThreatExchange, hashing.pdf):
luma → two passes of a box filter (which together make a tent, after Jarosz) → 64 x 64 samples → 16 x 16 coefficients of the discrete
cosine transform without its constant row and column → one bit a coefficient: above the median or not.
Sums run in single precision and in the reference's order, so that the bits of vanishing coefficients (of flat or symmetric pictures), which
are the signs of rounding errors, come out as they do there.
Knows nothing of files.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]
SMALLEST = 5  # pixels a side, below which every picture hashes to zeros
_LUMA = (0.299, 0.587, 0.114)
_SAMPLES, _COEFFICIENTS = 64, 16
_QUALITY_SCALE = 90  # of summed gradients (percent of full range), which makes 100 the mark of a picture with detail enough
_CHUNK = 1 << 16  # values that a step holds at once: stays in the processor's cache


def pdq(array: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], int]:
    """The hash of uint8 RGB (height, width, 3): 256 bits (0 or 1) from the highest frequency down, and the quality, 0 to 100.

    Under 50 PDQ's makers advise to discard a hash: the picture has too little detail. All bits are 0 under 5 pixels a side.
    """
    if min(array.shape[:2]) < SMALLEST:
        return np.zeros(_COEFFICIENTS**2, dtype=np.uint8), 0
    small = _reduced(_luma(array))
    coefficients = _product(_product(_cosines(), small), _cosines().T)
    median = np.partition(coefficients, _COEFFICIENTS**2 // 2 - 1, axis=None)[_COEFFICIENTS**2 // 2 - 1]  # the lower one of two
    return (coefficients > median).astype(np.uint8).ravel()[::-1], _quality(small)


def _luma(array: NDArray[np.uint8]) -> Plane:
    """BT.601 luma, 0 to 255 (height, width)."""
    out = np.empty(array.shape[:2], dtype=np.float32)
    for rows in _chunks(len(array), array.shape[1]):
        red, green, blue = (array[rows, :, channel] * weight for channel, weight in enumerate(_LUMA))
        out[rows] = red + green + blue
    return out


def _reduced(plane: Plane) -> Plane:
    """The filtered plane at the centres of a 64 x 64 grid. The last pass is computed only where it is sampled."""
    height, width = plane.shape
    if plane.shape == (_SAMPLES, _SAMPLES):
        return plane
    rows, columns = (np.arange(_SAMPLES) * 2 + 1) * height // (2 * _SAMPLES), (np.arange(_SAMPLES) * 2 + 1) * width // (2 * _SAMPLES)
    once = _box(_box(plane, np.arange(width)).T, np.arange(height)).T
    return _box(_box(once, columns).T, rows).T


def _box(plane: Plane, keep: NDArray[np.intp]) -> Plane:
    """Means over a window along each row, at the columns `keep`; at the ends the window is cut. Returns (rows, len(keep)).

    The window is 1/128 of the row, rounded up; one of even length reaches one farther to the right.
    """
    length = plane.shape[1]
    window = -(-length // (2 * _SAMPLES))
    ahead = window // 2
    counts = np.minimum(keep + ahead, length - 1) - np.maximum(keep + ahead - window, -1)
    out = np.empty((len(plane), len(keep)), dtype=np.float32)
    for rows in _chunks(len(plane), 2 * length):
        part = plane[rows]
        steps = np.zeros((len(part), length + window, 2), dtype=np.float32)  # what comes into the window, and what goes
        steps[:, :length, 0] = part
        np.negative(part, out=steps[:, window:, 1])
        sums = np.cumsum(steps.reshape(len(part), -1), axis=1, dtype=np.float32)
        out[rows] = sums[:, 2 * (keep + ahead) + 1] / counts.astype(np.float32)
    return out


def _chunks(rows: int, width: int) -> list[slice]:
    step = max(1, _CHUNK // width)
    return [slice(start, start + step) for start in range(0, rows, step)]


@cache
def _cosines() -> Plane:
    """Rows 1 to 16 of the orthonormal DCT-II of 64 samples (16, 64)."""
    frequency, sample = np.mgrid[1 : _COEFFICIENTS + 1, 0:_SAMPLES]
    cosines = np.cos(np.pi / (2 * _SAMPLES) * frequency * (2 * sample + 1))
    factor = float(np.float32(np.sqrt(2 / _SAMPLES)))  # in single precision, as the reference keeps it
    matrix: Plane = (factor * cosines).astype(np.float32)
    return matrix


def _product(one: Plane, other: Plane) -> Plane:
    """The matrix product, each sum taken term by term: a library's own order would make the signs of vanishing sums its own."""
    return np.cumsum(one[:, None, :] * other.T[None, :, :], axis=2, dtype=np.float32)[:, :, -1]


def _quality(small: Plane) -> int:
    """How much detail there is: the gradients, each in whole percent of the full range, summed and scaled."""
    total = sum(int(np.abs(np.trunc(np.diff(small, axis=axis) * 100 / 255)).sum()) for axis in (0, 1))
    return min(100, total // _QUALITY_SCALE)
