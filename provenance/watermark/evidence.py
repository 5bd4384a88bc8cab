"""What each cell of a picture says for the mark, given its payload and place: the correlation with the known carrier, and its spread.

The picture is levelled twice: in place, so that edges and texture count little, and in frequency. The carrier is the one that was written,
each frequency at the strength at which it came through on the whole. How far the correlation strays by chance is seen from the same carrier
at other shifts of its tile, where nothing was written. Knows nothing of decisions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from platemark.provenance.watermark import code, dither
from platemark.provenance.watermark.key import WatermarkKey
from platemark.provenance.watermark.layout import CANONICAL_SIDE, HIGH, LOW, PERIOD, carriers, lattice, turns
from platemark.provenance.watermark.mask import perceptual_mask
from platemark.provenance.watermark.payload import Payload, seal
from platemark.provenance.watermark.search import Place, Search
from platemark.provenance.watermark.spectrum import Float, box_mean, luma, odd, shrink

CELLS = 32  # of the layout `full`, on a side of a square picture
_PIXEL_BLOCKS = 2  # blocks of the layout `pixel` a cell, on each side
_WINDOW, _FLOOR = 7, 2.0
_FINE = 512  # samples of a tile on a side
_RINGS = 8
_NULLS = 4
_LEVEL = 9  # lattice points over which frequencies are levelled
_SURE = 2.0  # statistic from which a cell is taken to hold the mark when its level is measured
_ENDS = 3.0  # levels from black and white within which half of every wave was cut off


@dataclass(frozen=True)
class Evidence:
    """One number a cell, (rows, columns) each. `heard`: the correlation, 0 on average without a mark; `expected`: what the mark gives, up
    to a common factor; `spread`: the standard deviation of `heard` by chance; `activity`: levels of texture;
    `own`: levels that the mark alone would make, less than which no cell that still holds it can have.
    `edges`: where the cells' rows and columns begin and end, in pixels of the picture."""

    heard: Float
    expected: Float
    spread: Float
    activity: Float
    own: Float
    edges: tuple[NDArray[np.intp], NDArray[np.intp]]


def full_evidence(image: NDArray[np.uint8], search: Search, key: WatermarkKey, place: Place, payload: Payload) -> Evidence:
    """For the layout `full`: `place` as the search found it in this picture, uint8 (H, W, 3)."""
    work = shrink(image)
    levelled, weight, residual, activity = _levelled(work, place.matrix)
    tile = _tile(_amplitudes(search, key, place, payload))
    rows, columns = (_edges(side, count) for side, count in zip(work.shape, _grid(work.shape), strict=True))
    wave = _sampled(tile, work.shape, place.matrix, (0.0, 0.0))
    room = _mask(image, work.shape) * np.where((work < _ENDS) | (work > 255 - _ENDS), np.float32(0.5), np.float32(1))
    expected = _cells(weight * room * wave * wave, rows, columns)
    scale = tuple(full / side for full, side in zip(image.shape[:2], work.shape, strict=True))
    edges = np.rint(rows * scale[0]).astype(np.intp), np.rint(columns * scale[1]).astype(np.intp)
    heard, spread = _cells(levelled * wave, rows, columns), _spread(levelled, tile, place.matrix, rows, columns)
    sure = heard > _SURE * spread
    level = float(_cells(weight * residual * wave, rows, columns)[sure].sum()) / max(float(expected[sure].sum()), 1e-12)
    own = max(level, 0.0) * _cells(room, rows, columns, mean=True)
    return Evidence(heard, expected, spread, _cells(activity, rows, columns, mean=True), own, edges)


def pixel_evidence(image: NDArray[np.uint8], key: WatermarkKey, salt: int, step: float, payload: Payload) -> Evidence:
    """For the layout `pixel`: each coefficient says its sign by itself, so that a cell of a few blocks is enough."""
    plane = luma(image)
    values = dither.transform(plane)
    keyed = dither.cells(key, values.size)[salt]
    signs = np.ones(values.size, dtype=np.float32)
    signs[keyed.data] = code.encode(seal(payload, key))[keyed.symbol]
    said = dither.heard(values, keyed.offset, step).real * signs
    shape = plane.shape[0] // dither.BLOCK, plane.shape[1] // dither.BLOCK
    blocks = said.reshape(*shape, -1).sum(axis=2).astype(np.float32)
    count = np.full(shape, values.size / (shape[0] * shape[1]), dtype=np.float32)
    rows, columns = (_edges(side, max(1, round(side / _PIXEL_BLOCKS))) for side in shape)
    held = _cells(count, rows, columns)
    edges = rows * dither.BLOCK, columns * dither.BLOCK
    return Evidence(_cells(blocks, rows, columns), held, np.sqrt(held / 2), np.ones_like(held), np.zeros_like(held), edges)


def _grid(shape: tuple[int, ...]) -> tuple[int, int]:
    """Cells of nearly square form, `CELLS`² in all."""
    ratio = math.sqrt(shape[0] / shape[1])
    return max(4, round(CELLS * ratio)), max(4, round(CELLS / ratio))


def _edges(side: int, count: int) -> NDArray[np.intp]:
    return np.rint(np.linspace(0, side, count + 1)).astype(np.intp)


def _cells(plane: Float, rows: NDArray[np.intp], columns: NDArray[np.intp], *, mean: bool = False) -> Float:
    sums = np.add.reduceat(np.add.reduceat(plane, rows[:-1], axis=0), columns[:-1], axis=1)
    return np.asarray(sums / np.outer(np.diff(rows), np.diff(columns)) if mean else sums, dtype=np.float32)


def _levelled(work: Float, matrix: NDArray[np.float64]) -> tuple[Float, Float, Float, Float]:
    """The plane levelled in place and in frequency; each pixel's weight, distance from the local mean, and activity (levels)."""
    window = odd(_WINDOW * max(1.0, math.sqrt(work.size) / CANONICAL_SIDE))
    residual = np.asarray(work - box_mean(work, window), dtype=np.float32)
    variance = box_mean(residual * residual, window)
    weight = np.asarray(1 / (variance + np.float32(_FLOOR**2)), dtype=np.float32)
    return _whitened(residual * weight, matrix), weight, residual, np.asarray(np.sqrt(variance))


def _whitened(plane: Float, matrix: NDArray[np.float64]) -> Float:
    """Keeps the band of the carriers, each frequency divided by the RMS around it."""
    spectrum = np.fft.rfft2(plane)
    frequencies = np.fft.fftfreq(plane.shape[0])[:, None], np.fft.rfftfreq(plane.shape[1])[None]
    back = np.linalg.inv(matrix)
    y, x = (back[0, n] * frequencies[0] + back[1, n] * frequencies[1] for n in (0, 1))  # k / PERIOD = A⁻ᵀ f
    inside = (np.hypot(y, x) >= LOW) & (np.hypot(y, x) <= HIGH)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    window = [odd(_LEVEL * side * math.sqrt(abs(float(np.linalg.det(matrix)))) / PERIOD) for side in plane.shape]
    smooth = box_mean(power, min(window))
    return np.fft.irfft2(np.where(inside, spectrum / np.sqrt(smooth + 1e-12), 0), plane.shape).astype(np.float32)


def _amplitudes(search: Search, key: WatermarkKey, place: Place, payload: Payload) -> NDArray[np.complex64]:
    """The carriers (n,) as written and received: sign, phase and shift of each, and the mean strength of its ring and kind."""
    net, keyed = lattice(), carriers(key)
    signs = np.ones(len(net.points), dtype=np.float32)
    signs[net.data] = code.encode(seal(payload, key))[keyed.symbol]
    said = search.received(key, place.matrix, place.shift).real * signs
    strength = np.zeros(len(net.points), dtype=np.float32)
    for kind in (net.coarse, np.concatenate([net.fine, net.data])):
        edges = np.quantile(net.radius[kind], np.linspace(0, 1, _RINGS + 1))
        ring = np.clip(np.searchsorted(edges, net.radius[kind], side="right") - 1, 0, _RINGS - 1)
        mean = np.bincount(ring, said[kind], _RINGS) / np.bincount(ring, minlength=_RINGS)
        strength[kind] = np.maximum(mean, 0)[ring]
    return np.asarray(strength * signs * keyed.phase * turns(net.points, place.shift), dtype=np.complex64)


def _tile(amplitudes: NDArray[np.complex64]) -> Float:
    """One period of the wave (_FINE, _FINE), of standard deviation 1; row and column 0 at the tile's origin."""
    grid = np.zeros((_FINE, _FINE), dtype=np.complex64)
    ky, kx = lattice().points.T
    grid[ky % _FINE, kx % _FINE] = amplitudes
    tile = np.fft.ifft2(grid).real
    return np.asarray(tile / max(float(tile.std()), 1e-12), dtype=np.float32)


def _sampled(tile: Float, shape: tuple[int, ...], matrix: NDArray[np.float64], shift: tuple[float, float]) -> Float:
    """The wave at the pixels of a picture, from the nearest sample of the tile; `shift` of the tile in canonical pixels."""
    down, right = (np.arange(side, dtype=np.float32) - np.float32((side - 1) / 2) for side in shape)
    scale = (matrix * (_FINE / PERIOD)).astype(np.float32)
    start = np.array(shift, dtype=np.float32) * np.float32(_FINE / PERIOD) - np.float32(
        0.5 + 64 * _FINE
    )  # positive, so that whole is floor
    y, x = (((scale[n, 0] * down - start[n])[:, None] + scale[n, 1] * right[None]).astype(np.int32) for n in (0, 1))
    return np.asarray(tile.ravel().take((y & (_FINE - 1)) * np.int32(_FINE) + (x & (_FINE - 1))))


def _mask(image: NDArray[np.uint8], shape: tuple[int, ...]) -> Float:
    """How strong the mark was allowed to be, at the working size."""
    factors = perceptual_mask(image)
    step = image.shape[0] / shape[0], image.shape[1] / shape[1]
    rows = np.minimum((np.arange(shape[0]) + 0.5) * step[0], image.shape[0] - 1).astype(np.intp)
    columns = np.minimum((np.arange(shape[1]) + 0.5) * step[1], image.shape[1] - 1).astype(np.intp)
    return factors.rows(rows)[:, columns]


def _spread(levelled: Float, tile: Float, matrix: NDArray[np.float64], rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Float:
    """The correlation's standard deviation in each cell: the energy there, times what other shifts of the tile show it to come to."""
    energy = np.maximum(_cells(levelled * levelled, rows, columns), 1e-12)
    rng, ratios = np.random.default_rng(0), []
    for _ in range(_NULLS):
        wave = _sampled(tile, levelled.shape, matrix, (float(rng.uniform(0, PERIOD)), float(rng.uniform(0, PERIOD))))
        ratios.append(_cells(levelled * wave, rows, columns) ** 2 / energy)
    return np.sqrt(energy * np.float32(np.mean(ratios)))
