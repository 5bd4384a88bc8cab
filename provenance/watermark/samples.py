"""The spectrum of a picture, levelled, ready to be sampled at the lattice under any affine geometry.

A geometry is a 2×2 matrix A: canonical offset = A · picture offset from the centre (rows first, working pixels), so that the lattice point
k lies at the frequency Aᵀ k / 128 of the picture. One transform, padded to twice the size, serves all geometries and all keys: `near`
takes the nearest coefficient (a fifth of the signal lost at worst), `exact` interpolates with a cubic over 4 × 4 (Keys 1981).
Knows nothing of keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from platemark.provenance.watermark.layout import CANONICAL_SIDE, NYQUIST_MARGIN, PERIOD
from platemark.provenance.watermark.spectrum import Field, Float, around

_PAD = 2
_POOL = 8  # coefficients a side over which power is pooled before it is smoothed
_LEVEL_REACH = 4.0  # lattice points over which frequencies are levelled
_LIMIT = 1.5  # times the local RMS: where a coefficient is cut


@dataclass(frozen=True)
class Samples:
    """`grid`: complex64 (rows, columns), zero frequency in the middle, rows and columns even. `nyquist`: per axis, the highest frequency
    that may be read, cycles per working pixel. `own`: the geometry of a picture that was marked at this size. `side`: see `extent`."""

    grid: NDArray[np.complex64]
    nyquist: tuple[float, float]
    own: NDArray[np.float64]
    extent: float

    def near(self, geometries: NDArray[np.floating[Any]], points: NDArray[Any]) -> NDArray[np.complex64]:
        """(m, 2, 2) and (n, 2) → nearest coefficients (m, n), zero beyond the band."""
        y, x, outside = self._places(geometries, points)
        columns = self.grid.shape[1]
        place = np.rint(y).astype(np.int32) * np.int32(columns) + np.rint(x).astype(np.int32)
        place[outside] = 0
        return np.asarray(self.grid.ravel().take(place))

    def exact(self, geometries: NDArray[np.floating[Any]], points: NDArray[Any]) -> NDArray[np.complex64]:
        """(m, 2, 2) and (n, 2) → interpolated coefficients (m, n), zero beyond the band."""
        y, x, outside = self._places(geometries, points)
        y[outside] = x[outside] = 2
        top, left = np.floor(y), np.floor(x)
        down, right = _keys(y - top), _keys(x - left)
        columns, flat = self.grid.shape[1], self.grid.ravel()
        corner = (top.astype(np.int32) - 1) * np.int32(columns) + left.astype(np.int32) - 1
        total = np.zeros(y.shape, dtype=np.complex64)
        for row in range(4):
            line = np.zeros(y.shape, dtype=np.complex64)
            for column in range(4):
                line += flat.take(corner + (row * columns + column)) * right[column]
            total += line * down[row]
        total[outside] = 0
        return total

    def _places(self, geometries: NDArray[np.floating[Any]], points: NDArray[Any]) -> tuple[Float, Float, NDArray[np.bool_]]:
        """Fractional grid places of the frequencies and whether they lie beyond the band."""
        matrix = np.asarray(geometries, dtype=np.float32) / np.float32(PERIOD)
        k = points.astype(np.float32)
        y = matrix[:, 0, 0, None] * k[:, 0] + matrix[:, 1, 0, None] * k[:, 1]
        x = matrix[:, 0, 1, None] * k[:, 0] + matrix[:, 1, 1, None] * k[:, 1]
        outside = (np.abs(y) > self.nyquist[0]) | (np.abs(x) > self.nyquist[1])
        rows, columns = self.grid.shape
        y *= np.float32(rows)
        x *= np.float32(columns)
        y += np.float32(rows // 2)
        x += np.float32(columns // 2)
        return y, x, outside


def _keys(t: Float) -> list[Float]:
    """Weights of the four neighbours at -1, 0, 1, 2 for a place `t` in 0..1 after the second."""
    t2, t3 = t * t, t * t * t
    weights = (-t3 + 2 * t2 - t) / 2, (3 * t3 - 5 * t2 + 2) / 2, (-3 * t3 + 4 * t2 + t) / 2, (t3 - t2) / 2
    return [np.asarray(weight, dtype=np.float32) for weight in weights]


def sample(field: Field) -> Samples:
    """Transforms and levels a prepared picture."""
    height, width = field.values.shape
    rows, columns = (_length(_PAD * side) for side in (height, width))
    spectrum = np.fft.fft(np.fft.rfft(field.values, columns, axis=1), rows, axis=0).astype(np.complex64, copy=False)
    down, right = (np.exp(2j * np.pi * _frequencies(n) * (side - 1) / 2) for n, side in ((rows, height), (columns, width)))
    spectrum *= down.astype(np.complex64)[:, None]  # offsets count from the centre
    spectrum *= right[: spectrum.shape[1]].astype(np.complex64)
    own = np.diag(
        [
            CANONICAL_SIDE / math.sqrt(field.height * field.width) * full / side
            for full, side in ((field.height, height), (field.width, width))
        ]
    )
    spectrum *= _levels(spectrum, (rows * own[0, 0] / PERIOD, columns * own[1, 1] / PERIOD))
    grid = np.empty((rows, columns), dtype=np.complex64)
    half = np.fft.fftshift(spectrum, axes=0)
    middle = columns // 2
    grid[:, middle:] = half[:, :middle]
    grid[1:, :middle] = half[:0:-1, middle:0:-1].conj()
    grid[0] = 0
    grid[:, 0] = 0
    scale = tuple(min(0.48, NYQUIST_MARGIN * max(1.0, full / side)) for full, side in ((field.height, height), (field.width, width)))
    return Samples(grid, (scale[0], scale[1]), own, max(height * own[0, 0], width * own[1, 1]))


def _frequencies(n: int) -> NDArray[np.float64]:
    return np.asarray(np.fft.fftfreq(n), dtype=np.float64)


def _levels(spectrum: NDArray[np.complex64], unit: tuple[float, float]) -> Float:
    """The factor for each coefficient: one over the local RMS, less where it sticks out. `unit`: coefficients per lattice point."""
    power = spectrum.real**2 + spectrum.imag**2
    rows, columns = power.shape
    padded = np.pad(power, ((0, -rows % _POOL), (0, -columns % _POOL)), mode="edge")
    pooled = padded.reshape(padded.shape[0] // _POOL, _POOL, -1, _POOL).mean(axis=(1, 3))
    reach = [max(1, round(_LEVEL_REACH * step / _POOL)) for step in unit]
    smooth = around(around(pooled, reach[0]).T, reach[1]).T
    inverse = np.repeat(np.repeat(1 / np.sqrt(smooth + 1e-12), _POOL, 0), _POOL, 1)[:rows, :columns]
    cut = _LIMIT / np.maximum(np.sqrt(power) * inverse, _LIMIT)
    return np.asarray(inverse * cut, dtype=np.float32)


def _length(least: int) -> int:
    """The least even length of at least `least` that has no prime factor over five."""
    n = least + least % 2
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 2
