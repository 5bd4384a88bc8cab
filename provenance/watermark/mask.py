"""How much change each place can take without showing: flat parts and isolated edges little, texture more.

Beside an edge the local activity is high, yet a change there is seen against the flat side. So the activity of a place is the least that
is found around it: beside or on a lone edge some neighbourhood is flat, within texture none is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from platemark.provenance.watermark.layout import CANONICAL_SIDE
from platemark.provenance.watermark.spectrum import Float, box_mean, odd, shrink

_WINDOW = 7  # pixels at the mask's own size (square root of area 512 at most), like all lengths here
_AROUND = 8
_THRESHOLD = 2.0  # levels of activity up to which a place counts as flat
_POWER = 0.35
FLAT = 0.7  # factor where a picture is smooth to the last level, as drawings are and photographs hardly ever
_SMOOTH, _GRAIN = 0.05, 0.2  # levels of activity at which it applies in full, and no more
_CONTRAST, _MOST = (20.0, 40.0), 2.5  # levels of activity beyond which it is line art and text, not texture
_MARGIN = 1.5  # levels from black and white


@dataclass(frozen=True)
class Mask:
    """Amplitude factors on a coarse grid over a picture (`height`, `width`). `pitch`: picture pixels a grid step, rows and columns."""

    factors: Float
    height: int
    width: int
    pitch: tuple[float, float]

    def rows(self, index: NDArray[np.intp]) -> Float:
        """The factors (m, W) of some rows of the picture, interpolated."""
        low, high, share = self._between(index, 0)
        lines = self.factors[low] + (self.factors[high] - self.factors[low]) * share[:, None]
        low, high, share = self._between(np.arange(self.width), 1)
        return np.asarray(lines[:, low] + (lines[:, high] - lines[:, low]) * share, dtype=np.float32)

    def _between(self, index: NDArray[np.intp], axis: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Float]:
        last = self.factors.shape[axis] - 1
        place = np.clip((index + 0.5) / self.pitch[axis] - 0.5, 0, last)
        low = np.floor(place).astype(np.intp)
        return low, np.minimum(low + 1, last), (place - low).astype(np.float32)


def perceptual_mask(image: NDArray[np.uint8]) -> Mask:
    """For a picture (H, W, 3): factors of 0.7 where flat, 1 where nearly so, up to 2.5 in strong texture."""
    work = shrink(image, CANONICAL_SIDE)
    residual = work - box_mean(work, _WINDOW)
    activity = np.sqrt(box_mean(residual * residual, _WINDOW)[::2, ::2])
    steady = box_mean(_least_around(activity, _AROUND // 2), odd(_WINDOW / 2))
    factors = np.maximum(1, steady / _THRESHOLD) ** np.float32(_POWER)
    factors = np.minimum(factors, np.interp(steady, _CONTRAST, (_MOST, 1)).astype(np.float32))
    # At the end of the scale only half of every wave fits, so that as many decibels leave room for more of it.
    end = (work[::2, ::2] < _MARGIN) | (work[::2, ::2] > 255 - _MARGIN)
    factors = np.where(end, np.float32(1), factors * np.interp(steady, (_SMOOTH, _GRAIN), (FLAT, 1)).astype(np.float32))
    height, width = image.shape[:2]
    return Mask(factors, height, width, (2 * height / work.shape[0], 2 * width / work.shape[1]))


def _least_around(plane: Float, reach: int) -> Float:
    """Least of the value itself and of those `reach` away in eight directions."""
    height, width = plane.shape
    padded = np.pad(plane, reach, mode="edge")
    least = plane
    for down in (0, reach, 2 * reach):
        for right in (0, reach, 2 * reach):
            least = np.minimum(least, padded[down : down + height, right : right + width])
    return least
