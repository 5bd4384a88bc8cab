"""From a rough geometry to an exact one: a climb on the pilots' statistic over all six parameters of an affine map.

First on the low pilots, whose peak is wide, then on all. Works on many candidates at once. Then the fine pilots tell the tile's quarter.
Knows nothing of data carriers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from platemark.provenance.watermark.key import WatermarkKey
from platemark.provenance.watermark.layout import COARSE, PERIOD, carriers, lattice
from platemark.provenance.watermark.samples import Samples
from platemark.provenance.watermark.spectrum import Float

_BANDS = (0.165, 0.22, 1.0)  # cycles per canonical pixel, of the pilots used in each round
_KEPT = (240, 40, 12)  # candidates that enter each round
_STEPS = (3, 2, 3)
_SHRINK = 0.55
_NEWTON = 1  # steps on the shift for every place tried
_TILT = 0.5  # pilots count with frequency to the power of minus this: high ones are the first to be lost
_MOVES = np.concatenate([np.zeros((1, 2, 2)), np.eye(4).reshape(4, 2, 2), -np.eye(4).reshape(4, 2, 2)])
_QUARTERS = np.stack(np.divmod(np.arange(COARSE * COARSE), COARSE), axis=1) * (PERIOD / COARSE)

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Places:
    """Candidates: geometries (m, 2, 2) with their orientation, canonical shifts (m, 2), statistics (m,)."""

    matrices: Doubles
    shifts: Doubles
    scores: Doubles

    def best(self, count: int) -> Places:
        """The `count` highest, the highest first."""
        order = np.argsort(-self.scores)[:count]
        return Places(self.matrices[order], self.shifts[order], self.scores[order])


def climb(samples: Samples, key: WatermarkKey, start: Places, reach: float) -> Places:
    """The candidates at their local optimum, the best first. `reach`: how far, in the entries of I + E, the start may be off."""
    places = start
    for band, kept, steps in zip(_BANDS, _KEPT, _STEPS, strict=True):
        places = places.best(kept)
        view = _View.of(samples, key, band)
        size = reach
        for _ in range(steps):
            places = view.step(places, size)
            size *= _SHRINK
        reach *= _SHRINK
    return places.best(len(places.scores))


def polish(samples: Samples, key: WatermarkKey, start: Places, reach: float) -> Places:
    """Two steps on all pilots for candidates that are nearly right."""
    view = _View.of(samples, key, 1.0)
    return view.step(view.step(start, reach / 2), reach / 4)


@dataclass(frozen=True)
class _View:
    """The pilots of one band. `turn` (n,): conjugate phases times weights; `radians` (n, 2)."""

    samples: Samples
    points: NDArray[np.intp]
    turn: NDArray[np.complex64]
    weight: Float
    radians: Float

    @classmethod
    def of(cls, samples: Samples, key: WatermarkKey, band: float) -> _View:
        chosen = lattice().coarse
        chosen = chosen[lattice().radius[chosen] <= band]
        weight = lattice().radius[chosen] ** -_TILT
        points = lattice().points[chosen]
        radians = np.asarray(points * (2 * np.pi / PERIOD), dtype=np.float32)
        return cls(samples, points, carriers(key).phase[chosen].conj() * weight, weight, radians)

    def step(self, places: Places, size: float) -> Places:
        """One step of every candidate: along each parameter to the top of a parabola, or to the best place tried where that is higher."""
        count = len(places.scores)
        moved = ((np.eye(2) + size * _MOVES)[None] @ places.matrices[:, None]).reshape(-1, 2, 2)
        shifts, scores = self.best_shift(moved, np.repeat(places.shifts, len(_MOVES), axis=0))
        table = scores.reshape(count, len(_MOVES))
        here, up, down = table[:, :1], table[:, 1:5], table[:, 5:]
        curvature = np.maximum(2 * here - up - down, 0.05)
        change = np.clip((up - down) / (2 * curvature), -1.5, 1.5) * size
        jumped = (np.eye(2) + change.reshape(-1, 2, 2)) @ places.matrices
        start = shifts.reshape(count, len(_MOVES), 2)
        there, height = self.best_shift(jumped, start[:, 0])
        pick, rows = table.argmax(axis=1), np.arange(count)
        higher = height >= table[rows, pick]
        matrices = np.where(higher[:, None, None], jumped, moved.reshape(count, len(_MOVES), 2, 2)[rows, pick])
        return Places(matrices, np.where(higher[:, None], there, start[rows, pick]), np.where(higher, height, table[rows, pick]))

    def best_shift(self, matrices: Doubles, shifts: Doubles) -> tuple[Doubles, Doubles]:
        """Newton's steps on the shift alone: (m, 2) and the statistics (m,)."""
        values = self.samples.exact(matrices, self.points)
        power = np.sqrt(((values.real**2 + values.imag**2) @ (self.weight**2)) / 2) + 1e-6
        values *= self.turn
        for _ in range(_NEWTON):
            turned = values * np.exp(1j * (shifts.astype(np.float32) @ self.radians.T))
            slope = -turned.imag @ self.radians
            yy, yx, xx = ((turned.real * (self.radians[:, a] * self.radians[:, b])).sum(axis=1) for a, b in ((0, 0), (0, 1), (1, 1)))
            det = np.maximum(yy * xx - yx * yx, 1e-3 * (np.abs(yy * xx) + 1e-6))
            move = np.stack([xx * slope[:, 0] - yx * slope[:, 1], yy * slope[:, 1] - yx * slope[:, 0]], axis=1) / det[:, None]
            shifts = shifts + np.where((yy > 0)[:, None] & (xx > 0)[:, None], np.clip(move, -1.5, 1.5), 0)
        turned = values * np.exp(1j * (shifts.astype(np.float32) @ self.radians.T))
        return shifts, np.asarray(turned.real.sum(axis=1) / power, dtype=np.float64)


def settle(samples: Samples, key: WatermarkKey, places: Places) -> Places:
    """Finds the tile's quarter for each candidate; the statistic then is that of all pilots, coarse and fine."""
    fine, coarse = lattice().fine, lattice().coarse
    values = samples.exact(places.matrices, lattice().points[lattice().pilots])
    pilots, radius = carriers(key).phase[lattice().pilots], lattice().radius[lattice().pilots]
    weight = radius**-_TILT
    power = np.sqrt(((values.real**2 + values.imag**2) @ (weight**2)) / 2) + 1e-6
    values *= pilots.conj() * weight
    where = places.shifts[:, None] + _QUARTERS
    split = coarse.size
    turn = np.exp(2j * np.pi / PERIOD * (where @ lattice().points[fine].T))
    heard = (values[:, None, split:] * turn).real.sum(axis=2)
    pick, rows = heard.argmax(axis=1), np.arange(len(heard))
    base = (values[:, :split] * np.exp(2j * np.pi / PERIOD * (places.shifts @ lattice().points[coarse].T))).real.sum(axis=1)
    return Places(places.matrices, where[rows, pick], (base + heard[rows, pick]) / power)


def empty() -> Places:
    none: NDArray[Any] = np.empty(0)
    return Places(np.empty((0, 2, 2)), np.empty((0, 2)), none)
