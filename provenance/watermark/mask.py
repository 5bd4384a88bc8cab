"""How much change each place can take without showing: flat parts and isolated edges little, texture more.

Beside an edge the local activity is high, yet a change there is seen against the flat side. So the activity of a place is the least that
is found around it: beside or on a lone edge some neighbourhood is flat, within texture none is.
"""

from __future__ import annotations

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from platemark.provenance.watermark.layout import CANONICAL_SIDE
from platemark.provenance.watermark.spectrum import Float, box_mean, odd, shrink

_WINDOW = 7  # pixels at the mask's own size (square root of area 512 at most), like all lengths here
_AROUND = 8
_THRESHOLD = 2.0  # levels of activity up to which a place counts as flat
_POWER = 0.35
FLAT = 0.7  # factor where a picture is smooth to the last level, as drawings are and photographs hardly ever
_SMOOTH, _GRAIN = 0.15, 0.4  # levels of activity at which it applies in full and no more


def perceptual_mask(image: NDArray[np.uint8]) -> Float:
    """A picture (H, W, 3) → amplitude factors (H, W): 0.7 where flat, 1 where nearly so, up to about 3 in strong texture."""
    work = shrink(image, CANONICAL_SIDE)
    residual = work - box_mean(work, _WINDOW)
    activity = np.sqrt(box_mean(residual * residual, _WINDOW)[::2, ::2])
    steady = box_mean(_least_around(activity, _AROUND // 2), odd(_WINDOW / 2))
    factors = np.maximum(1, steady / _THRESHOLD) ** np.float32(_POWER)
    factors *= np.interp(steady, (_SMOOTH, _GRAIN), (FLAT, 1)).astype(np.float32)
    size = image.shape[1], image.shape[0]
    # Every second sample was kept, so the grid is stretched by two over the working size, which may end half way.
    box = (0.0, 0.0, work.shape[1] / 2, work.shape[0] / 2)
    return np.asarray(PIL.Image.fromarray(factors).resize(size, PIL.Image.Resampling.BILINEAR, box=box), dtype=np.float32)


def _least_around(plane: Float, reach: int) -> Float:
    """Least of the value itself and of those `reach` away in eight directions."""
    height, width = plane.shape
    padded = np.pad(plane, reach, mode="edge")
    least = plane
    for down in (0, reach, 2 * reach):
        for right in (0, reach, 2 * reach):
            least = np.minimum(least, padded[down : down + height, right : right + width])
    return least
