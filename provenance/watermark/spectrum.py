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

from platemark.provenance.watermark.layout import CANONICAL_SIDE, HIGH, LOW, NYQUIST_MARGIN, PERIOD, REACH

Float = NDArray[np.float32]
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as in JPEG
WORKING_SIDE = 768  # square root of the area that larger pictures are averaged down to for reading
_WINDOW = 7  # pixels of local mean and variance at the canonical size, and below it
_STRIP = 64  # rows of the working size that are made at once
_FLOOR = 2.0  # levels: residuals below this are rounding and compression
_WEIGHT_POWER = 0.65  # of the variance
_LEVEL_RADIUS = 4  # lattice points over which frequencies are levelled
_LIMIT = 1.5  # times the local RMS: where a coefficient is cut


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


def shrink(image: NDArray[np.uint8], side: int = WORKING_SIDE) -> Float:
    """Luma of a picture (H, W, 3), averaged down to a square root of area of at most `side`; strip by strip."""
    height, width = image.shape[:2]
    factor = side / math.sqrt(height * width)
    if factor >= 1:
        return luma(image)
    rows, columns = max(1, round(height * factor)), max(1, round(width * factor))
    out = np.empty((rows, columns), dtype=np.float32)
    for top in range(0, rows, _STRIP):
        bottom = min(rows, top + _STRIP)
        first, last = top * height / rows, bottom * height / rows
        start, stop = math.floor(first), min(height, math.ceil(last))
        strip = PIL.Image.fromarray(luma(image[start:stop]))
        box = (0.0, first - start, float(width), min(last, height) - start)
        out[top:bottom] = strip.resize((columns, bottom - top), PIL.Image.Resampling.BOX, box=box)
    return out


def box_mean(plane: Float, window: int) -> Float:
    """Mean over `window` × `window` (odd), edges mirrored."""
    half = min(window // 2, min(plane.shape) - 1)
    window = 2 * half + 1
    padded = np.pad(plane, half, mode="symmetric")
    rows = _run_sum(padded, window)
    return _run_sum(rows.T, window).T * np.float32(1 / window**2)


def _run_sum(plane: Float, window: int) -> Float:
    """Sums of `window` rows from each row on, put together from sums over powers of two: no drift, unlike running sums."""
    count = len(plane) - window + 1
    total, start, span, sums = np.zeros_like(plane[:count]), 0, 1, plane
    while True:
        if window & span:
            total += sums[start : start + count]
            start += span
        if 2 * span > window:
            return total
        sums = sums[:-span] + sums[span:]
        span *= 2


def around(plane: Float, reach: int) -> Float:
    """Mean over `reach` rows either way, edges mirrored."""
    reach = min(reach, len(plane) - 1)
    return _run_sum(np.pad(plane, ((reach, reach), (0, 0)), mode="symmetric"), 2 * reach + 1) * np.float32(1 / (2 * reach + 1))


def odd(length: float) -> int:
    """The nearest odd window length, 3 at least."""
    return max(3, 2 * round((length - 1) / 2) + 1)


def prepare(image: NDArray[np.uint8]) -> Field:
    """A picture (H, W, 3) → the field to read carriers from."""
    work = shrink(image)
    window = odd(_WINDOW * max(1.0, math.sqrt(work.size) / CANONICAL_SIDE))
    residual = work - box_mean(work, window)
    variance = box_mean(residual * residual, window)
    weight = (variance + _FLOOR**2) ** -_WEIGHT_POWER
    return Field(residual * weight, image.shape[0], image.shape[1])


def coefficients(field: Field, period: float) -> NDArray[np.complex64]:
    """Levelled lattice coefficients (2r+1, 2r+1), indexed [ky + r, kx + r], for a tile of `period` picture pixels.

    A separable discrete Fourier transform at exactly these frequencies, so that any real period will do; coordinates are pixel centres.
    """
    periods, side = field.periods(period), REACH + 1
    rows, columns = (_waves(n, p) for n, p in zip(field.values.shape, periods, strict=True))
    products = (rows.T @ (field.values @ columns)).reshape(2, side, 2, side)
    (cos_cos, cos_sin), (sin_cos, sin_sin) = products[0].swapaxes(0, 1), products[1].swapaxes(0, 1)
    down = (cos_cos - sin_sin) - 1j * (sin_cos + cos_sin)  # ky = 0..r
    up = (cos_cos + sin_sin) + 1j * (sin_cos - cos_sin)  # ky = 0..-r
    half = np.concatenate([up[:0:-1], down])
    grid = np.concatenate([half[::-1, :0:-1].conj(), half], axis=1)
    return _level(grid, band(min(periods)))


def band(period: float) -> NDArray[np.bool_]:
    """(2r+1, 2r+1), r = `REACH`: the lattice points in the band that pixels can hold where the tile is `period` of them long."""
    axis = np.arange(-REACH, REACH + 1)
    cycles = np.hypot(axis[:, None], axis)
    inside = (cycles >= LOW * PERIOD) & (cycles <= HIGH * PERIOD)
    return np.asarray(inside & (cycles <= NYQUIST_MARGIN * period))


def _waves(n: int, period: float) -> Float:
    """(n, 2r+2): cosines, then sines, of 0 to r cycles a period, at pixel centres."""
    angle = (2 * np.pi / period) * np.outer(np.arange(n) + 0.5, np.arange(REACH + 1))
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def _level(grid: NDArray[np.complex64], inside: NDArray[np.bool_]) -> NDArray[np.complex64]:
    """Divides by the local RMS over neighbouring frequencies and cuts what sticks out; zero outside the band."""
    power = np.where(inside, grid.real**2 + grid.imag**2, 0).astype(np.float32)
    window = 2 * _LEVEL_RADIUS + 1
    share = np.maximum(_around(inside.astype(np.float32), window), 1e-6)
    scale = np.sqrt(_around(power, window) / share) + 1e-9
    cut = np.minimum(1, _LIMIT * scale / np.sqrt(power + 1e-12))
    return np.asarray(np.where(inside, grid / scale * cut, 0), dtype=np.complex64)


def _around(plane: Float, window: int) -> Float:
    """Mean over `window` × `window`, zeros beyond the edges."""
    half = window // 2
    inner = (slice(half, -half),) * 2
    return box_mean(np.pad(plane, half), window)[inner]


def wave(grid: NDArray[np.complex64], rows: NDArray[np.intp], width: int, period: float) -> Float:
    """Some rows of the real wave Σ Re(c·exp(2πi k·x/period)), float32 (m, width). `grid`: (2r+1, r+1), indexed [ky + r, kx]."""
    along = np.exp((2j * np.pi / period) * np.outer(rows + 0.5, np.arange(-REACH, REACH + 1))).astype(np.complex64)
    lines = along @ grid
    return np.asarray(np.concatenate([lines.real, -lines.imag], axis=1) @ _waves(width, period).T)
