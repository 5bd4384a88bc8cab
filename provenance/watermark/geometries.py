"""Which geometries are searched: lists of 2×2 matrices, the likeliest kinds first. Fixed by the picture's size alone.

Every matrix stands for eight orientations (quarter turns, mirrored or not), which the scan tries together. Steps are relative and follow
from the picture's extent: a wrong scale or angle moves the tile most at the picture's rim, and a step may move it there by a part of the
wavelength of the pilots that scan. Knows nothing of keys or pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from platemark.provenance.watermark.layout import CANONICAL_SIDE

ORIGINAL_SIDES = (512, 768, 1024)  # square roots of the areas of uncut originals: their crops keep the tile's size in pixels
MIN_SCALE, MAX_SCALE = 0.3, 3.3  # of the tile, against that of a picture marked at this size
_STEP = 0.0085  # at an extent of 512 canonical pixels
_AFFINE_REACH = 0.048
_ASPECT_REACH = 0.19  # of the logarithm of width over height
_ASPECT_SCALES = 0.7, 1.6
_FRAMED_SCALES, _FRAMED_TURN, _OUT_OF_SQUARE = (0.78, 1.12), 0.07, 0.014

Matrices = NDArray[np.float32]


@dataclass(frozen=True)
class Stage:
    """A list of geometries (m, 2, 2) and the largest distance, in the entries of I + E, of a geometry that it covers from the nearest."""

    name: str
    matrices: Matrices
    step: float


def direct(own: NDArray[np.float64], working: float) -> Stage:
    """The picture's own geometry and those of cuts at unchanged scale from originals of usual sizes. `working`: working pixels a pixel."""
    scales = [1.0]
    for side in ORIGINAL_SIDES:
        scale = math.sqrt(own[0, 0] * own[1, 1]) * working * side / CANONICAL_SIDE
        if MIN_SCALE <= scale <= MAX_SCALE and abs(scale - 1) > 0.004:
            scales.append(scale)
    return Stage("direct", _scaled(own, np.eye(2)[None], np.array(scales)), 0.004)


def stages(own: NDArray[np.float64], extent: float) -> list[Stage]:
    """The lists of the deep search, in order."""
    step = _STEP * CANONICAL_SIDE / extent
    return [_affine(own, step), _aspects(own, step), _framed(own, step), _similar(own, step)]


def _affine(own: NDArray[np.float64], step: float) -> Stage:
    """All small affine changes: slight turns, stretches, shears; what remains of a slight perspective."""
    axis = np.arange(-round(_AFFINE_REACH / step), round(_AFFINE_REACH / step) + 1) * step
    entries = np.stack(np.meshgrid(axis, axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 2, 2)
    order = np.argsort(np.abs(entries).sum(axis=(1, 2)), kind="stable")
    return Stage("affine", _scaled(own, np.eye(2) + entries[order], np.ones(1)), step)


def _aspects(own: NDArray[np.float64], step: float) -> Stage:
    """Upright pictures made wider or narrower, cut or on a page."""
    stretch = np.arange(-round(_ASPECT_REACH / step / 1.5), round(_ASPECT_REACH / step / 1.5) + 1) * 1.5 * step
    matrices = np.zeros((stretch.size, 2, 2))
    matrices[:, 0, 0], matrices[:, 1, 1] = np.exp(stretch / 2), np.exp(-stretch / 2)
    return Stage("aspect", _scaled(own, matrices, _scale_axis(*_ASPECT_SCALES, step)), step)


def _framed(own: NDArray[np.float64], step: float) -> Stage:
    """Pictures within a margin, a little turned and out of square, as a photograph of a print is. In square ones are among the similar."""
    angle = np.arange(-round(_FRAMED_TURN / step), round(_FRAMED_TURN / step) + 1) * step
    turned = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=1).reshape(-1, 1, 2, 2)
    moves = np.array([(a, s) for a in (-1, 0, 1) for s in (-1, 0, 1) if a or s]) * _OUT_OF_SQUARE
    bent = np.eye(2) + np.stack([moves[:, 0], moves[:, 1], moves[:, 1], -moves[:, 0]], axis=1).reshape(-1, 2, 2)
    return Stage("framed", _scaled(own, (turned @ bent).reshape(-1, 2, 2), _scale_axis(*_FRAMED_SCALES, step)), step)


def _similar(own: NDArray[np.float64], step: float) -> Stage:
    """All turns and scales."""
    parts = []
    for scale in _scale_axis(MIN_SCALE, MAX_SCALE, step):
        count = max(1, math.ceil(math.pi / 2 / (step * max(1.0, scale))))
        angle = np.arange(count) * (math.pi / 2 / count)
        turned = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=1).reshape(-1, 2, 2)
        parts.append(_scaled(own, turned, np.array([scale])))
    return Stage("similar", np.concatenate(parts), step)


def _scale_axis(low: float, high: float, step: float) -> NDArray[np.float64]:
    """From 1 outwards to both bounds; steps widen with the scale, as less and less of the original is in view."""
    up, down = [1.0], [1.0]
    while up[-1] * (1 + step * up[-1]) <= high:
        up.append(up[-1] * (1 + step * up[-1]))
    while down[-1] / (1 + step) >= low:
        down.append(down[-1] / (1 + step))
    return np.array(up + down[1:])


def _scaled(own: NDArray[np.float64], changes: NDArray[Any], scales: NDArray[np.float64]) -> Matrices:
    """A for every change (canonical side) and scale: change · own / scale."""
    matrices = (changes @ own)[None] / scales[:, None, None, None]
    return np.asarray(matrices.reshape(-1, 2, 2), dtype=np.float32)
