"""A large array through a network in overlapping tiles, blended so that no seam shows, in bounded memory. Knows nothing about networks.

Beside an inner edge a network sees less than it would of the whole, as far in as its reach: `margin` cells there count for nothing. Next to
them lie `feather` cells over which one tile fades into the next. So the result equals the whole wherever the reach is within the margin.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Compute = Callable[[slice, slice], Float]


@dataclass(frozen=True)
class Tiling:
    """`tile`: cells a side of what the network sees at once. Neighbours share at least `overlap` = 2·`margin` + `feather` cells."""

    tile: int
    margin: int
    feather: int = 8

    def __post_init__(self) -> None:
        if self.margin < 0 or self.feather < 1 or self.tile < 3 * self.overlap + 2:
            # With less, a cell could lie where three tiles fade into each other, whose weights do not add up to one.
            raise ValueError(f"tiles of {self.tile} cells cannot overlap by {self.overlap}")

    @property
    def overlap(self) -> int:
        return 2 * self.margin + self.feather

    def spans(self, length: int) -> list[Span]:
        """The tiles along one axis, spread evenly; one span of the whole axis where that is no longer than a tile."""
        if length <= self.tile:
            return [Span(0, length, None, None)]
        count = -(-(length - self.overlap) // (self.tile - self.overlap))
        starts = [round(k * (length - self.tile) / (count - 1)) for k in range(count)]
        cuts = [(left + self.tile + right) / 2 for left, right in itertools.pairwise(starts)]
        return [
            Span(start, start + self.tile, cuts[k - 1] if k else None, cuts[k] if k < count - 1 else None) for k, start in enumerate(starts)
        ]

    def bands(self, compute: Compute, size: tuple[int, int], channels: int, factor: int = 1) -> Iterator[tuple[int, Float]]:
        """The result from the top down, as (first row, rows): float32 (channels, rows, factor · width), each row once.

        `size` is (height, width) of the input in cells; `compute(rows, columns)` gives (channels, factor · h, factor · w) of those cells.
        Two rows of tiles are held at a time.
        """
        height, width = size
        rows, columns = self.spans(height), self.spans(width)
        fades = [span.weights(factor, self.feather) for span in columns]
        kept = np.zeros((channels, 0, factor * width), np.float32)
        for k, row in enumerate(rows):
            band = np.zeros((channels, factor * (row.stop - row.start), factor * width), np.float32)
            band[:, : kept.shape[1]] = kept
            down = row.weights(factor, self.feather)[:, np.newaxis]
            for column, across in zip(columns, fades, strict=True):
                part = compute(slice(row.start, row.stop), slice(column.start, column.stop))
                band[:, :, factor * column.start : factor * column.stop] += part * (down * across)
            done = factor * ((rows[k + 1].start if k + 1 < len(rows) else row.stop) - row.start)
            yield factor * row.start, band[:, :done]
            kept = band[:, done:]

    def whole(self, compute: Compute, size: tuple[int, int], channels: int, factor: int = 1) -> Float:
        """The result of `bands` as one array."""
        out = np.empty((channels, factor * size[0], factor * size[1]), np.float32)
        for first, rows in self.bands(compute, size, channels, factor):
            out[:, first : first + rows.shape[1]] = rows
        return out


@dataclass(frozen=True)
class Span:
    """Cells `start` to `stop` of an axis. `before`, `after`: where the neighbours' parts meet this one's; None at the array's own edge."""

    start: int
    stop: int
    before: float | None
    after: float | None

    def weights(self, factor: int, feather: int) -> Float:
        """How much each cell of the result counts, float32 (factor · length,); those of neighbours add up to 1."""
        centres = self.start + (np.arange(factor * (self.stop - self.start)) + 0.5) / factor
        weights = np.ones(len(centres))
        for cut, sign in ((self.before, 1.0), (self.after, -1.0)):
            if cut is not None:
                weights *= np.clip(0.5 + sign * (centres - cut) / feather, 0.0, 1.0)
        return weights.astype(np.float32)
