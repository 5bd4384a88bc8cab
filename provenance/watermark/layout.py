"""Where the mark lies: which layout a picture gets, and the keyed carriers of the layout `full`.

`full` is a tile of keyed sinusoids, repeated over the picture, in canonical pixels, of which the square root of a picture's area holds 512
whatever its real size: a resize does not move it. The lattice of frequencies is public and the same for every key; the key fixes each
carrier's phase and which coded symbol each data carrier holds. The pilots (known signs, to find the mark by) are the lattice points whose
two indices are multiples of four: a tile of a quarter of the period, so that a search over its shifts is 16 times smaller, and a set that
mirroring and quarter turns map onto itself, so that one sampling serves eight orientations. Which of the 16 quarters it is, the `fine`
pilots say. Carriers on the axes are no pilots: straight edges and JPEG's grid lie there. `pixel`, for small pictures, is in `dither`.
Knows nothing of pixels' values.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from platemark.provenance.watermark.code import RATE
from platemark.provenance.watermark.key import WatermarkKey
from platemark.provenance.watermark.payload import SEALED_BITS

LayoutName = Literal["full", "pixel"]
FULL_MIN_SIDE, PIXEL_MIN_SIDE = 256, 64
CANONICAL_SIDE = 512
PERIOD = 128  # canonical pixels a tile
COARSE = 4  # pilots: every fourth lattice point
LOW, HIGH = 0.05, 0.27  # cycles per canonical pixel
REACH = math.floor(HIGH * PERIOD)  # the highest lattice index on an axis
NYQUIST_MARGIN = 0.45  # cycles per real pixel above which a carrier is neither written nor read
SYMBOLS = SEALED_BITS * RATE  # 528
REPEATS = 3  # carriers of one symbol: one of each third of the band, so that what takes one third leaves the others


def layout_for(height: int, width: int) -> LayoutName:
    """The layout that a picture of this size is marked with."""
    return "full" if min(height, width) >= FULL_MIN_SIDE else "pixel"


def pixel_period(height: int, width: int) -> float:
    """The tile's period in real pixels, in a picture of this size that was marked at this size."""
    return PERIOD * math.sqrt(height * width) / CANONICAL_SIDE


@dataclass(frozen=True)
class Lattice:
    """The public frequencies of one half plane. `points` (n, 2): cycles per tile (ky, kx); the others index into them: `coarse` and `fine`
    pilots, and the data carriers from low to high frequency."""

    points: NDArray[np.intp]
    coarse: NDArray[np.intp]
    fine: NDArray[np.intp]
    data: NDArray[np.intp]

    @functools.cached_property
    def pilots(self) -> NDArray[np.intp]:
        return np.concatenate([self.coarse, self.fine])

    @functools.cached_property
    def radius(self) -> NDArray[np.float32]:
        """(n,): cycles per canonical pixel."""
        return np.asarray(np.hypot(*self.points.T) / PERIOD, dtype=np.float32)


@functools.cache
def lattice() -> Lattice:
    """The lattice: 1,812 points, of which 96 coarse pilots, 1,584 data carriers and the rest, spread evenly over the band, fine pilots."""
    ky, kx = np.meshgrid(np.arange(-REACH, REACH + 1), np.arange(REACH + 1), indexing="ij")
    radius = np.hypot(ky, kx) / PERIOD
    chosen = (radius >= LOW) & (radius <= HIGH) & ((kx > 0) | (ky > 0))
    ky, kx, radius = ky[chosen], kx[chosen], radius[chosen]
    coarse = (ky % COARSE == 0) & (kx % COARSE == 0) & (ky != 0) & (kx != 0)
    others = np.flatnonzero(~coarse)
    others = others[np.lexsort((kx[others], ky[others], radius[others]))]
    spare = others.size - REPEATS * SYMBOLS
    fine = np.linspace(0, others.size, spare, endpoint=False).astype(np.intp)
    return Lattice(np.stack([ky, kx], axis=1), np.flatnonzero(coarse), others[fine], np.delete(others, fine))


@dataclass(frozen=True)
class Carriers:
    """The lattice under one key. `phase`: unit complex (n,), secret; `symbol`: for each data carrier, the coded symbol (0..527)."""

    phase: NDArray[np.complex64]
    symbol: NDArray[np.intp]


@functools.lru_cache(maxsize=64)
def carriers(key: WatermarkKey) -> Carriers:
    """Derives the carriers from the key."""
    phase = np.exp(2j * np.pi * key.uniform("full/phase", len(lattice().points))).astype(np.complex64)
    symbol = np.concatenate([key.permutation(f"full/order/{third}", SYMBOLS) for third in range(REPEATS)])
    return Carriers(phase, symbol)


def turns(points: NDArray[Any], shift: NDArray[np.floating[Any]] | tuple[float, float]) -> NDArray[np.complex64]:
    """What moving the tile by `shift` (rows, columns; canonical pixels) does to carriers (n, 2): unit complex (n,)."""
    return np.asarray(np.exp((-2j * np.pi / PERIOD) * (points @ np.asarray(shift))), dtype=np.complex64)


def strength_of(values: NDArray[np.floating[Any]], power: NDArray[np.floating[Any]]) -> float:
    """Sum of in-phase parts over their spread under random phases: N(0, 1) where there is no mark, 0 where there is nothing at all."""
    spread = math.sqrt(float(power.sum()) / 2)
    return float(values.sum()) / spread if spread > 0 else 0.0
