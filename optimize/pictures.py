"""Test pictures for networks that look at pictures, and how they become input. Plain numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
_DISCS, _SHADED_DISCS = 12, 8


def noise(side: int, seed: int) -> Picture:
    """uint8 RGB (side, side, 3) from numpy's PCG64."""
    return np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (side, side, 3), dtype=np.uint8)


def drawn(side: int, count: int, seed: int = 0) -> list[Picture]:
    """`count` pictures of coloured discs on ramps: smooth and full of edges, as noise is not."""
    rng = np.random.Generator(np.random.PCG64(seed))
    rows, columns = np.mgrid[:side, :side] / side
    found = []
    for _ in range(count):
        ends = rng.integers(0, 256, (2, 2, 3))
        ramp = ends[0, 0] * (1 - rows[..., None]) + ends[0, 1] * rows[..., None] + (ends[1, 0] - 128) * columns[..., None]
        picture = np.clip(ramp, 0, 255).astype(np.uint8)
        for _ in range(_DISCS):
            row, column, radius = rng.random(), rng.random(), rng.uniform(0.04, 0.3)
            picture[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = rng.integers(0, 256, 3)
        found.append(picture)
    return found


def shaded(side: int, count: int, seed: int = 0) -> list[Picture]:
    """`count` pictures of shaded discs on one colour: white, black, any, and white again. Large plain parts, and few edges."""
    rng = np.random.Generator(np.random.PCG64(seed))
    rows, columns = np.mgrid[:side, :side] / side
    found = []
    for k in range(count):
        ground = (np.full(3, 255), np.zeros(3), rng.integers(0, 256, 3), np.full(3, 255))[k % 4]
        picture = np.broadcast_to(ground, (side, side, 3)).astype(np.float64)
        for _ in range(_SHADED_DISCS):
            row, column, radius = rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8), rng.uniform(0.05, 0.35)
            light = 1 + rng.uniform(-1, 1) * (rows - row) + rng.uniform(-1, 1) * (columns - column)
            inside = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
            picture[inside] = light[inside, None] * rng.integers(0, 256, 3)
        found.append(np.clip(picture, 0, 255).astype(np.uint8))
    return found


def normalised(picture: Picture, mean: Sequence[float], std: Sequence[float], rescale: float = 1 / 255) -> NDArray[np.float32]:
    """(S, S, 3) as float32 (1, 3, S, S): (v * rescale - mean) / std."""
    values = (picture.astype(np.float32) * np.float32(rescale) - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None], np.float32)
