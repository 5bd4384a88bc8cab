"""From pixels to carriers: luma, working size, noise-limiting, and the lattice's Fourier coefficients.

The picture's own content is noise to the mark. It is held down by taking the local mean away, by weighting each pixel with a power of
the local variance (edges and texture count little, flat parts much), and by levelling neighbouring frequencies.
Knows nothing of keys or payloads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from platemark.provenance.watermark.layout import CANONICAL_SIDE, Layout, within_nyquist

Float = NDArray[np.float32]
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as in JPEG
WORKING_SIDE = 1024  # square root of the area that larger pictures are averaged down to for reading
_MEAN_WINDOW, _VARIANCE_WINDOW = 15 / CANONICAL_SIDE, 9 / CANONICAL_SIDE  # of the square root of the area
_FLOOR = 1.0  # levels: residuals below this are rounding and compression
_WEIGHT_POWER = 0.7  # of the variance
_LEVEL_RADIUS = 4  # lattice points over which frequencies are levelled
_LIMIT = 2.5  # times the local RMS: where a coefficient is cut


@dataclass(frozen=True)
class Field:
    """A picture made ready: `values` (h, w) at working size; `height`, `width` of the picture itself, in pixels."""

    values: Float
    height: int
    width: int

    def periods(self, period: float) -> tuple[float, float]:
        """A length in the picture's pixels → in rows and columns of `values`."""
        return period * self.values.shape[0] / self.height, period * self.values.shape[1] / self.width


def luma(image: NDArray[np.uint8]) -> Float:
    """uint8 (H, W, 3) → float32 (H, W) in 0..255, unrounded; strip by strip."""
    out = np.empty(image.shape[:2], dtype=np.float32)
    for top in range(0, len(image), 256):
        np.matmul(image[top : top + 256].astype(np.float32), LUMA, out=out[top : top + 256])
    return out


def shrink(plane: Float, side: int = WORKING_SIDE) -> Float:
    """Averages a plane down to a square root of area of at most `side`; smaller ones are returned as they are."""
    height, width = plane.shape
    factor = side / math.sqrt(height * width)
    if factor >= 1:
        return plane
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(PIL.Image.fromarray(plane).resize(size, PIL.Image.Resampling.BOX), dtype=np.float32)


def box_mean(plane: Float, window: int) -> Float:
    """Mean over `window` × `window` (odd), edges mirrored."""
    return _run_mean(_run_mean(plane, window).T, window).T


def _run_mean(plane: Float, window: int) -> Float:
    half = min(window // 2, len(plane) - 1)
    padded = np.pad(plane, ((half + 1, half), (0, 0)), mode="symmetric")
    total = np.cumsum(padded, axis=0, dtype=np.float64)
    return ((total[2 * half + 1 :] - total[: -2 * half - 1]) / (2 * half + 1)).astype(np.float32)


def odd(length: float) -> int:
    """The nearest odd window length, 3 at least."""
    return max(3, 2 * round((length - 1) / 2) + 1)


def prepare(plane: Float, layout: Layout) -> tuple[Field, Float]:
    """Luma at picture size → the field to read carriers from, and the weights by which a change of the luma enters it."""
    work = shrink(plane)
    side = math.sqrt(work.size) if layout.canonical else CANONICAL_SIDE
    residual = work - box_mean(work, odd(_MEAN_WINDOW * side))
    variance = box_mean(residual * residual, odd(_VARIANCE_WINDOW * side))
    weight = (variance + _FLOOR**2) ** -_WEIGHT_POWER
    return Field(residual * weight, *plane.shape), weight


def coefficients(field: Field, layout: Layout, period: float) -> NDArray[np.complex64]:
    """Levelled lattice coefficients (2r+1, 2r+1), indexed [ky + r, kx + r], for a tile of `period` picture pixels.

    A separable discrete Fourier transform at exactly these frequencies, so that any real period will do; coordinates are pixel centres.
    """
    rows, columns = (_waves(n, p, layout.reach) for n, p in zip(field.values.shape, field.periods(period), strict=True))
    products = (rows.T @ (field.values @ columns)).reshape(2, layout.reach + 1, 2, layout.reach + 1)
    (cos_cos, cos_sin), (sin_cos, sin_sin) = products[0].swapaxes(0, 1), products[1].swapaxes(0, 1)
    down = (cos_cos - sin_sin) - 1j * (sin_cos + cos_sin)
    up = (cos_cos + sin_sin) + 1j * (sin_cos - cos_sin)
    half = np.concatenate([up[:0:-1], down])
    grid = np.concatenate([half[::-1, :0:-1].conj(), half], axis=1)
    return _level(grid, layout, period)


def _waves(n: int, period: float, reach: int) -> Float:
    """(n, 2r+2): cosines, then sines, of 0 to r cycles a period, at pixel centres."""
    angle = (2 * np.pi / period) * np.outer(np.arange(n) + 0.5, np.arange(reach + 1))
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def _level(grid: NDArray[np.complex64], layout: Layout, period: float) -> NDArray[np.complex64]:
    """Divides by the local RMS over neighbouring frequencies and cuts what sticks out; zero outside the band."""
    band = _band(layout, period)
    power = np.where(band, grid.real**2 + grid.imag**2, 0).astype(np.float32)
    window = 2 * _LEVEL_RADIUS + 1
    share = np.maximum(_around(band.astype(np.float32), window), 1e-6)
    scale = np.sqrt(_around(power, window) / share) + 1e-9
    size = np.sqrt(power) / scale
    return np.asarray(np.where(band, grid / scale * np.minimum(1, _LIMIT / np.maximum(size, 1e-9)), 0), dtype=np.complex64)


def _band(layout: Layout, period: float) -> NDArray[np.bool_]:
    axis = np.arange(-layout.reach, layout.reach + 1)
    ky, kx = np.meshgrid(axis, axis, indexing="ij")
    radius = np.hypot(ky, kx) / layout.period
    return np.asarray((radius >= layout.low) & (radius <= layout.high) & within_nyquist(layout, period, ky, kx))


def _around(plane: Float, window: int) -> Float:
    """Mean over `window` × `window`, zeros beyond the edges."""
    half = window // 2
    inner = (slice(half, -half),) * 2
    return box_mean(np.pad(plane, half), window)[inner]


def synthesise(amplitude: NDArray[np.complex64], ky: NDArray[np.intp], kx: NDArray[np.intp], layout: Layout) -> NDArray[np.complex64]:
    """Places half-plane amplitudes (n,) on the lattice: (2r+1, r+1), indexed [ky + r, kx]."""
    grid = np.zeros((2 * layout.reach + 1, layout.reach + 1), dtype=np.complex64)
    grid[ky + layout.reach, kx] = amplitude
    return grid


def wave(grid: NDArray[np.complex64], height: int, width: int, period: float, rows: slice) -> Float:
    """The real wave Σ Re(c·exp(2πi k·x/period)) in some rows of a picture of this size, float32."""
    reach = grid.shape[1] - 1
    along = np.exp((2j * np.pi / period) * np.outer(np.arange(height)[rows] + 0.5, np.arange(-reach, reach + 1))).astype(np.complex64)
    across = _waves(width, period, reach)
    lines = along @ grid
    return np.concatenate([lines.real, -lines.imag], axis=1) @ across.T
