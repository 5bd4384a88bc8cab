"""Where the mark lies: a tile of keyed sinusoids, repeated over the picture, in coordinates that a resize does not change.

A layout fixes the tile's period and the frequency band; the key fixes each carrier's phase, which carriers are pilots (known signs, to
find the mark by) and which coded symbol each of the others carries. `full` counts lengths in canonical pixels, of which the square root
of a picture's area holds 512 whatever its real size; `pixel` counts them in the picture's own.
Knows nothing of pixels' values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from platemark.provenance.watermark.code import RATE
from platemark.provenance.watermark.key import WatermarkKey
from platemark.provenance.watermark.payload import SEALED_BITS

LayoutName = Literal["full", "pixel"]
CANONICAL_SIDE = 512
FULL_MIN_SIDE, PIXEL_MIN_SIDE = 256, 64
PILOT_SHARE = 0.22
SYMBOLS = SEALED_BITS * RATE  # 528
NYQUIST_MARGIN = 0.42  # cycles per real pixel above which a carrier is neither written nor read


@dataclass(frozen=True)
class Layout:
    """`period` of the tile in layout pixels; band from `low` to `high` cycles per layout pixel; `canonical`: lengths follow the area."""

    name: LayoutName
    period: int
    low: float
    high: float
    canonical: bool

    @property
    def reach(self) -> int:
        """The highest lattice index on an axis."""
        return math.floor(self.high * self.period)

    def pixel_period(self, height: int, width: int) -> float:
        """The tile's period in real pixels, in a picture of this size that was marked at this size."""
        return self.period * (math.sqrt(height * width) / CANONICAL_SIDE if self.canonical else 1.0)


FULL = Layout("full", 128, 0.05, 0.27, canonical=True)
PIXEL = Layout("pixel", 64, 0.04, 0.36, canonical=False)


def layout_for(height: int, width: int) -> Layout:
    """The layout that a picture of this size is marked with."""
    return FULL if min(height, width) >= FULL_MIN_SIDE else PIXEL


@dataclass(frozen=True)
class Carriers:
    """The lattice frequencies of one half plane under one key. Arrays of length n, except `pilots` and `data`, which index into them.

    `ky`, `kx`: cycles per tile; `phase`: unit complex, secret; `symbol`: for each of `data`, the coded symbol (0..527) that it carries.
    """

    layout: Layout
    ky: NDArray[np.intp]
    kx: NDArray[np.intp]
    phase: NDArray[np.complex64]
    pilots: NDArray[np.intp]
    data: NDArray[np.intp]
    symbol: NDArray[np.intp]


def carriers(key: WatermarkKey, layout: Layout) -> Carriers:
    """Derives the carriers of a layout from the key (about a millisecond)."""
    reach = layout.reach
    ky, kx = np.meshgrid(np.arange(-reach, reach + 1), np.arange(reach + 1), indexing="ij")
    radius = np.hypot(ky, kx) / layout.period
    chosen = (radius >= layout.low) & (radius <= layout.high) & ((kx > 0) | (ky > 0))
    ky, kx = ky[chosen], kx[chosen]
    phase = np.exp(2j * np.pi * key.uniform(f"{layout.name}/phase", ky.size)).astype(np.complex64)
    order = key.permutation(f"{layout.name}/order", ky.size)
    split = round(PILOT_SHARE * ky.size)
    data = order[split:]
    return Carriers(layout, ky, kx, phase, np.sort(order[:split]), data, np.arange(data.size) % SYMBOLS)


def within_nyquist(layout: Layout, period: float, ky: NDArray[np.intp], kx: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Which lattice points a picture can hold in which the tile is `period` real pixels long."""
    return np.asarray(np.hypot(ky, kx) / period <= NYQUIST_MARGIN)
