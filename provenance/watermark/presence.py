"""Is a mark there at all: the pilots' statistic over all shifts of the tile, and the probability of it by chance.

Under no mark, or a mark of another key, the pilots' phases are independent of the picture. For any one shift the statistic
z = Σ Re(v) / sqrt(Σ |v|² / 2) then is a sum of bounded independent terms of variance 1 with P(z > x) ≤ exp(-x²/2) (each term is
a·cos(uniform), whose moment generating function I0(ta) ≤ exp(t²a²/4)), and over shifts a smooth random field on the torus, whose maximum
exceeds x with the probability 1 - exp(-(2π)^(1/2) · sqrt(det K) · x · exp(-x²/2)), K the mean of k kᵀ under the weights |v|² (Adler &
Taylor, Random Fields and Geometry, ch. 12). Knows nothing of payloads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from platemark.provenance.watermark.layout import PERIOD, REACH, Carriers, strength_of

_OVERSAMPLING = 1.5  # grid points per canonical pixel in the shift search
_SEEDS, _NEWTON_STEPS = 3, 3


@dataclass(frozen=True)
class Peak:
    """The best shift of the tile (rows, columns; canonical pixels), its statistic, and the probability of one as high by chance."""

    shift: tuple[float, float]
    score: float
    p_value: float


def find_peak(grid: NDArray[np.complex64], tile: Carriers) -> Peak:
    """Searches all shifts of the tile in one orientation. `grid`: lattice coefficients as `spectrum.coefficients` gives them."""
    ky, kx = tile.ky[tile.pilots], tile.kx[tile.pilots]
    values = grid[ky + REACH, kx + REACH] * tile.phase[tile.pilots].conj()
    power = values.real**2 + values.imag**2
    if not power.any():
        return Peak((0.0, 0.0), 0.0, 1.0)
    radians = 2 * np.pi / PERIOD * np.stack([ky, kx])
    score, shift = max((_climb(values, power, radians, start) for start in _candidates(values, ky, kx)), key=lambda top: top[0])
    return Peak((float(shift[0]) % PERIOD, float(shift[1]) % PERIOD), score, chance(score, power, ky, kx))


def chance(score: float, power: NDArray[np.float32], ky: NDArray[np.intp], kx: NDArray[np.intp]) -> float:
    """The probability that the largest statistic over all shifts reaches `score` without a mark."""
    if score <= 1:  # the approximation is one of high levels
        return 1.0
    weights = power / power.sum()
    spread = float((weights * ky * ky).sum() * (weights * kx * kx).sum() - (weights * ky * kx).sum() ** 2)
    expected = math.sqrt(2 * math.pi * max(spread, 0.0)) * score * math.exp(-min(score * score / 2, 700))
    return -math.expm1(-expected)


def _candidates(values: NDArray[np.complex64], ky: NDArray[np.intp], kx: NDArray[np.intp]) -> list[NDArray[np.float64]]:
    """The highest points of the statistic on a grid of shifts: one inverse FFT."""
    size = round(_OVERSAMPLING * PERIOD)
    half = np.zeros((size, size // 2 + 1), dtype=np.complex64)
    half[ky % size, kx] = values
    axis = kx == 0  # the transform wants this column Hermitian in itself
    half[-ky[axis] % size, 0] = values[axis].conj()
    surface = np.fft.irfft2(half, s=(size, size)).ravel()
    top = np.argpartition(surface, -_SEEDS)[-_SEEDS:]
    return [np.array(divmod(int(place), size)) * (PERIOD / size) for place in top]


def _climb(
    values: NDArray[np.complex64], power: NDArray[np.float32], radians: NDArray[np.floating[Any]], shift: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """Newton's steps to the top of the peak; a step that does not go up is not taken."""
    turned = values * np.exp(1j * (shift @ radians))
    score = strength_of(turned.real, power)
    for _ in range(_NEWTON_STEPS):
        gradient = -radians @ turned.imag
        curvature = (radians * turned.real) @ radians.T
        (yy, yx), (xy, xx) = curvature
        determinant = yy * xx - yx * xy
        if determinant <= 0:
            break
        moved = shift + np.array([xx * gradient[0] - yx * gradient[1], yy * gradient[1] - xy * gradient[0]]) / determinant
        there = values * np.exp(1j * (moved @ radians))
        higher = strength_of(there.real, power)
        if higher <= score:
            break
        shift, turned, score = moved, there, higher
    return score, shift
