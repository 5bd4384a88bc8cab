"""The search for the layout `full`: hypotheses of scale and orientation, each scored by its pilots over all shifts of the tile.

Covers the picture's own scale and a short list of others, upright, mirrored and turned by quarters. Rotations by other angles, and crops
of originals whose size is not on the list, are not searched. One transform serves all orientations of a scale.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from platemark.provenance.watermark import spectrum
from platemark.provenance.watermark.finding import Finding, Symbols
from platemark.provenance.watermark.key import WatermarkKey
from platemark.provenance.watermark.layout import Carriers, aligned, carriers, pixel_period
from platemark.provenance.watermark.presence import find_peak

SCALES = (1.0, 0.5, 0.75, 1.5, 2.0)  # of the tile, against that of a picture marked at this size
ORIGINAL_SIDES = (512, 768, 1024)  # square roots of the areas of uncut originals: their crops keep the tile's size in pixels
_MIN_SHARE = 0.25  # of the band, that a picture must be able to hold for a scale to be tried


@dataclass(frozen=True)
class Hypothesis:
    """One guess of how the tile lies. `period` in picture pixels; the picture was mirrored left to right, then turned by `quarters`."""

    scale: float
    period: float
    flip: bool
    quarters: int


def plan(height: int, width: int) -> list[Hypothesis]:
    """Every hypothesis, in order, the likeliest first; fixed by the picture's size alone."""
    orientations = [(flip, quarters) for flip in (False, True) for quarters in range(4)]
    own = pixel_period(height, width)
    return [Hypothesis(period / own, period, *one) for period in _periods(height, width) for one in orientations]


def _periods(height: int, width: int) -> list[float]:
    own, whole = pixel_period(height, width), spectrum.band(math.inf).sum()
    shrunk = min(1.0, spectrum.WORKING_SIDE / math.sqrt(height * width))
    kept: list[float] = []
    for period in [own * scale for scale in SCALES] + [pixel_period(side, side) for side in ORIGINAL_SIDES]:
        holds = spectrum.band(period * shrunk).sum() >= _MIN_SHARE * whole
        if holds and all(abs(period / other - 1) > 0.002 for other in kept):
            kept.append(period)
    return kept


def findings(plane: spectrum.Float, key: WatermarkKey) -> Iterator[Finding]:
    """Scores the hypotheses of `plan` for a picture's luma, one after another, as far as the caller asks."""
    tile, field = carriers(key), spectrum.prepare(plane)
    period, grid = math.nan, np.empty(0, dtype=np.complex64)
    for hypothesis in plan(*plane.shape):
        if hypothesis.period != period:
            period = hypothesis.period
            grid = spectrum.coefficients(field, period)
        yield _score(_undo(grid, hypothesis), tile, hypothesis)


def _undo(grid: NDArray[np.complex64], hypothesis: Hypothesis) -> NDArray[np.complex64]:
    """Coefficients of the picture before it was mirrored and turned: a lattice turns with its picture, but for the shift."""
    turned = np.rot90(grid, -hypothesis.quarters)
    return turned[:, ::-1] if hypothesis.flip else turned


def _score(grid: NDArray[np.complex64], tile: Carriers, hypothesis: Hypothesis) -> Finding:
    peak = find_peak(grid, tile)
    geometry = {
        "scale": round(hypothesis.scale, 4),
        "rotation": 90 * hypothesis.quarters,
        "flip": hypothesis.flip,
        "shift": [round(part, 2) for part in peak.shift],
    }
    return Finding("full", geometry, peak.score, peak.p_value, functools.partial(_symbols, grid, tile, peak.shift))


def _symbols(grid: NDArray[np.complex64], tile: Carriers, shift: tuple[float, float]) -> Symbols:
    return Symbols(aligned(grid, tile, shift)[tile.data], tile.symbol)
