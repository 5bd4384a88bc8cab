"""Where the mark lies: which layout a picture gets, and the keyed carriers of the layout `full`.

`full` is a tile of keyed sinusoids, repeated over the picture, in canonical pixels, of which the square root of a picture's area holds 512
whatever its real size: a resize does not move it. The key fixes each carrier's phase, which carriers are pilots (known signs, to find the
mark by) and which coded symbol each of the others carries. `pixel`, for small pictures, is in `dither`. Knows nothing of pixels' values.
"""

from __future__ import annotations

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
LOW, HIGH = 0.05, 0.27  # cycles per canonical pixel
REACH = math.floor(HIGH * PERIOD)  # the highest lattice index on an axis
NYQUIST_MARGIN = 0.42  # cycles per real pixel above which a carrier is neither written nor read
SYMBOLS = SEALED_BITS * RATE  # 528
_PILOT_SHARE = 0.22


def layout_for(height: int, width: int) -> LayoutName:
    """The layout that a picture of this size is marked with."""
    return "full" if min(height, width) >= FULL_MIN_SIDE else "pixel"


def pixel_period(height: int, width: int) -> float:
    """The tile's period in real pixels, in a picture of this size that was marked at this size."""
    return PERIOD * math.sqrt(height * width) / CANONICAL_SIDE


@dataclass(frozen=True)
class Carriers:
    """The lattice frequencies of one half plane under one key. Arrays of length n, except `pilots` and `data`, which index into them.

    `ky`, `kx`: cycles per tile; `phase`: unit complex, secret; `symbol`: for each of `data`, the coded symbol (0..527) that it carries.
    """

    ky: NDArray[np.intp]
    kx: NDArray[np.intp]
    phase: NDArray[np.complex64]
    pilots: NDArray[np.intp]
    data: NDArray[np.intp]
    symbol: NDArray[np.intp]


def carriers(key: WatermarkKey) -> Carriers:
    """Derives the carriers from the key (well under a millisecond)."""
    ky, kx = np.meshgrid(np.arange(-REACH, REACH + 1), np.arange(REACH + 1), indexing="ij")
    radius = np.hypot(ky, kx) / PERIOD
    chosen = (radius >= LOW) & (radius <= HIGH) & ((kx > 0) | (ky > 0))
    ky, kx = ky[chosen], kx[chosen]
    phase = np.exp(2j * np.pi * key.uniform("full/phase", ky.size)).astype(np.complex64)
    order = key.permutation("full/order", ky.size)
    split = round(_PILOT_SHARE * ky.size)
    data = order[split:]
    return Carriers(ky, kx, phase, np.sort(order[:split]), data, np.arange(data.size) % SYMBOLS)


def aligned(grid: NDArray[np.complex64], tile: Carriers, shift: tuple[float, float]) -> NDArray[np.complex64]:
    """Values of the carriers (n,), with phase and tile shift (rows, columns; canonical pixels) taken out: real where all is right."""
    return np.asarray(grid[tile.ky + REACH, tile.kx + REACH] * (tile.phase * turns(tile, shift)).conj())


def turns(tile: Carriers, shift: tuple[float, float]) -> NDArray[np.complex64]:
    """What moving the tile by `shift` does to each carrier: unit complex (n,)."""
    return np.exp((-2j * np.pi / PERIOD) * (tile.ky * shift[0] + tile.kx * shift[1])).astype(np.complex64)


def strength_of(values: NDArray[np.floating[Any]], power: NDArray[np.floating[Any]]) -> float:
    """Sum of in-phase parts over their spread under random phases: N(0, 1) where there is no mark, 0 where there is nothing at all."""
    spread = math.sqrt(float(power.sum()) / 2)
    return float(values.sum()) / spread if spread > 0 else 0.0
