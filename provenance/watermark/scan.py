"""The scan: the pilots' statistic of many geometries, in eight orientations each, over a grid of shifts of the pilots' tile.

Coherent: signs and phases count, not magnitudes alone, because a structured picture has larger magnitudes than a mark. The samples of a
geometry serve all orientations and all keys; what a key adds is one matrix product. First the low pilots alone, which bear twice the error
of scale and angle; then, near the best of them, all pilots. Knows nothing of data carriers.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from platemark.provenance.watermark.key import WatermarkKey
from platemark.provenance.watermark.layout import COARSE, PERIOD, REACH, carriers, lattice
from platemark.provenance.watermark.spectrum import Float

LOW_PILOTS = 0.205  # cycles per canonical pixel
_LOW_SHIFTS, _ALL_SHIFTS = 20, 20  # points a side of the grid of shifts
_CHUNK = 1024
_FLIP, _TURN = np.array([[1, 0], [0, -1]]), np.array([[0, 1], [-1, 0]])
ORIENTATIONS = tuple(
    m for turn in (np.eye(2, dtype=int), _TURN) for flip in (np.eye(2, dtype=int), _FLIP) for m in (turn @ flip, -turn @ flip)
)


@dataclass(frozen=True)
class Pilots:
    """The pilots of one scan under one key. `points` (n, 2); `cosine`, `sine` (n, 4 · shifts²): weights of real and imaginary parts for
    every second orientation; the others differ by the sign of `sine`."""

    points: NDArray[np.intp]
    cosine: Float
    sine: Float
    side: int

    def shift(self, place: NDArray[np.intp]) -> NDArray[np.float64]:
        """Grid places → canonical shifts (m, 2)."""
        return np.stack(np.divmod(place, self.side), axis=-1) * (PERIOD / COARSE / self.side)


@dataclass(frozen=True)
class Hits:
    """The best shift and orientation of each geometry: `score` (m,), `orientation` (m,) into `ORIENTATIONS`, `shift` (m, 2)."""

    score: Float
    orientation: NDArray[np.intp]
    shift: NDArray[np.float64]


@functools.lru_cache(maxsize=64)
def pilots(key: WatermarkKey, low: bool) -> Pilots:
    """Derives the tables of one scan from the key (a millisecond)."""
    chosen = lattice().coarse
    if low:
        chosen = chosen[lattice().radius[chosen] <= LOW_PILOTS]
    points, side = lattice().points[chosen], _LOW_SHIFTS if low else _ALL_SHIFTS
    step = PERIOD // COARSE / side
    shifts = np.stack(np.divmod(np.arange(side * side), side), axis=1) * step
    tables = []
    for orientation in ORIENTATIONS[::2]:
        turned = points @ orientation.T
        wave = np.exp((2j * np.pi / PERIOD) * (turned @ shifts.T)) * _phase(key, turned).conj()[:, None]
        tables.append(wave)
    table = np.concatenate(tables, axis=1)
    return Pilots(points, np.ascontiguousarray(table.real, dtype=np.float32), np.ascontiguousarray(table.imag, dtype=np.float32), side)


def _phase(key: WatermarkKey, points: NDArray[np.intp]) -> NDArray[np.complex64]:
    """Phases of lattice points of either half plane."""
    place = _index()[points[:, 0] + REACH, points[:, 1] + REACH]
    phase = carriers(key).phase[np.abs(place) - 1]
    return np.asarray(np.where(place > 0, phase, phase.conj()))


@functools.cache
def _index() -> NDArray[np.intp]:
    """(2r+1, 2r+1): the number of a lattice point, from 1, negative for its mirror image through the origin."""
    table = np.zeros((2 * REACH + 1, 2 * REACH + 1), dtype=np.intp)
    numbers = np.arange(1, len(lattice().points) + 1)
    table[tuple((REACH - lattice().points).T)] = -numbers
    table[tuple((REACH + lattice().points).T)] = numbers
    return table


def scan(values: NDArray[np.complex64], table: Pilots) -> Hits:
    """Samples (m, n) at the pilots under m geometries → each one's best orientation and shift. Scores are N(0, 1) by chance."""
    parts = [_scan(values[top : top + _CHUNK], table) for top in range(0, len(values), _CHUNK)]
    return Hits(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("score", "orientation", "shift")))


def _scan(values: NDArray[np.complex64], table: Pilots) -> Hits:
    real, imag = np.ascontiguousarray(values.real), np.ascontiguousarray(values.imag)
    power = np.sqrt(((real * real).sum(axis=1) + (imag * imag).sum(axis=1)) / 2)
    even, odd = real @ table.cosine, imag @ table.sine
    # The statistic is Re(sample · conj(phase) · turn): cosines of one sign, sines of both, for an orientation and for its half turn.
    plain, turned = even - odd, even + odd
    first, second = plain.argmax(axis=1), turned.argmax(axis=1)
    rows = np.arange(len(values))
    one, two = plain[rows, first], turned[rows, second]
    best = np.where(one >= two, first, second)
    kind, place = np.divmod(best, table.side**2)
    return Hits(np.maximum(one, two) / np.maximum(power, 1e-6), 2 * kind + (one < two), table.shift(place))
