"""Writes the layout `full`: as faint as it can be and still be read after JPEG, between two bounds of PSNR.

The strength is found by trying: the marked picture is compressed in memory, read at its known geometry, and marked stronger until the
reading has a margin; frequencies that the picture or the compression works against get less of the energy.
White keeps its level: on pure white only the half-waves that darken remain, and that carries more of the mark per PSNR than making room
for both halves does (for a normal wave of any strength the best room is none; measured, too).
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from platemark.provenance.watermark import code, spectrum
from platemark.provenance.watermark.channel import NEEDED, WANTED_MARGIN, Attempt, Rows, after_jpeg, psnr, shifted
from platemark.provenance.watermark.key import WatermarkKey
from platemark.provenance.watermark.layout import (
    NYQUIST_MARGIN,
    PERIOD,
    REACH,
    carriers,
    lattice,
    pixel_period,
    strength_of,
    turns,
)
from platemark.provenance.watermark.mask import FLAT, Mask, perceptual_mask
from platemark.provenance.watermark.payload import Payload, seal
from platemark.provenance.watermark.reading import response
from platemark.provenance.watermark.spectrum import Float

_NEEDED_PILOTS = 7.5  # the statistic at which a whole search finds the tile
_ATTEMPTS, _ROUNDS = 4, 2  # tries; those after which an unchanged strength is not tried again
_LOST, _MILD_JPEG = 0.9, 75  # margin under which the picture is judged after a milder JPEG
_RINGS, _SHAPING = 8, 0.5
_TILT = 0.5  # amplitude falls with frequency to this power before the picture has its say
_COARSE_GAIN = 3.0  # amplitude of the coarse pilots against the other carriers: a third of the energy
_FLAT_STRENGTH = 255 / 10 ** (45 / 20) / FLAT  # the strength that leaves 45 dB in flat parts
_CREST = 2.8  # standard deviations: a higher crest would show, again and again at the tile's period
_SAMPLE = 1 << 17  # pixels from which the strength for a PSNR is estimated


@dataclass(frozen=True)
class Bounds:
    """What the strength may be: between two bounds of PSNR (dB), or just `strength` (levels) where that keeps the lower one."""

    min_psnr: float
    max_psnr: float
    strength: float | None = None


@dataclass(frozen=True)
class _Job:
    """One picture with everything that stays the same over the attempts. `phase`, `signs` (±1, pilots +1), `base` (amplitude): (n,)."""

    image: NDArray[np.uint8]
    phase: NDArray[np.complex64]
    signs: Float
    base: Float
    period: float
    mask: Mask


def write(image: NDArray[np.uint8], payload: Payload, key: WatermarkKey, bounds: Bounds, *, rng: np.random.Generator | None) -> Attempt:
    """Marks uint8 (H, W, 3), 256 px a side or more. The caller reads the result back: at `min_psnr` it may still be too faint."""
    job = _prepare(image, payload, key, rng)
    gains = np.ones_like(job.signs)
    best: Attempt | None = None
    strength = 0.0
    for attempt in range(_ATTEMPTS):
        pattern = _pattern(job, gains)
        least, most = _range(image, pattern, bounds)
        marked, strength = _within(image, pattern, min(most, max(least, strength)), bounds.min_psnr)
        margin, values = _judge(job, after_jpeg(marked))
        if best is None or margin > best.margin:
            best = Attempt(marked, strength, 0, margin)
        if attempt and (margin >= WANTED_MARGIN or (most - strength < 0.02 * strength and attempt == _ROUNDS)):
            break
        if margin < _LOST:  # what is lost says nothing of where it would have come through
            values = _judge(job, after_jpeg(marked, _MILD_JPEG))[1]
        gains = _shaped(job, gains, values)
        strength *= min(2.5, max(1.0, 1.05 * WANTED_MARGIN / max(margin, 0.1)))
    assert best is not None
    return best


def _prepare(image: NDArray[np.uint8], payload: Payload, key: WatermarkKey, rng: np.random.Generator | None) -> _Job:
    net, keyed = lattice(), carriers(key)
    signs = np.ones(len(net.points), dtype=np.float32)
    signs[net.data] = code.encode(seal(payload, key))[keyed.symbol]
    base = net.radius**-_TILT
    base[net.coarse] *= _COARSE_GAIN
    shift = _draw(rng) * PERIOD, _draw(rng) * PERIOD
    period = pixel_period(image.shape[0], image.shape[1])
    base *= net.radius * PERIOD <= NYQUIST_MARGIN * period
    return _Job(image, keyed.phase * turns(net.points, shift), signs, base, period, perceptual_mask(image))


def _draw(rng: np.random.Generator | None) -> float:
    return float(rng.random()) if rng is not None else secrets.randbelow(1 << 32) / 2.0**32


def _pattern(job: _Job, gains: Float) -> Rows:
    """The change at strength 1: the tile, of standard deviation 1, times the mask."""
    amplitude = job.base * gains * job.signs * job.phase
    amplitude *= math.sqrt(2) / np.linalg.norm(amplitude)
    grid = np.zeros((2 * REACH + 1, REACH + 1), dtype=np.complex64)
    grid[lattice().points[:, 0] + REACH, lattice().points[:, 1]] = amplitude
    width = job.image.shape[1]

    def rows(index: NDArray[np.intp]) -> Float:
        wave = spectrum.wave(grid, index, width, job.period)
        return np.clip(wave, -_CREST, _CREST, out=wave) * job.mask.rows(index)

    return rows


def _range(image: NDArray[np.uint8], pattern: Rows, bounds: Bounds) -> tuple[float, float]:
    """The least and the greatest strength: those that keep the bounds of PSNR on a sample of the rows, by bisection."""
    if bounds.strength is not None:
        return bounds.strength, bounds.strength
    step = max(1, image.shape[0] * image.shape[1] // _SAMPLE)
    index = np.arange(step // 2, len(image), step)
    sample, change = image[index], pattern(index).__getitem__
    least, most = 0.0, _FLAT_STRENGTH
    for number, wanted in enumerate((bounds.max_psnr, bounds.min_psnr)):
        low, high = 0.05, _FLAT_STRENGTH
        for _ in range(9):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if psnr(sample, shifted(sample, change, middle)) > wanted else (low, middle)
        least, most = (low, most) if number == 0 else (least, low)
        if bounds.max_psnr == bounds.min_psnr:
            return low, low
    return least, most


def _within(image: NDArray[np.uint8], pattern: Rows, strength: float, min_psnr: float) -> tuple[NDArray[np.uint8], float]:
    """The marked picture, weakened where the sample's estimate went over the bound by a little."""
    marked = shifted(image, pattern, strength)
    while psnr(image, marked) < min_psnr and strength > 0.05:
        strength *= 0.98
        marked = shifted(image, pattern, strength)
    return marked, strength


def _judge(job: _Job, image: NDArray[np.uint8]) -> tuple[float, Float]:
    """The margin of a reading at the known geometry, and the carriers' values (n,): positive where they say what they should."""
    net = lattice()
    grid = spectrum.coefficients(spectrum.prepare(image), pixel_period(image.shape[0], image.shape[1]))
    received = grid[net.points[:, 0] + REACH, net.points[:, 1] + REACH] * job.phase.conj() * job.signs
    values, power = received.real, received.real**2 + received.imag**2
    weight = response(received)
    pilots, data = (strength_of(values[part] * weight[part], power[part] * weight[part] ** 2) for part in (net.pilots, net.data))
    return min(data / NEEDED, pilots / _NEEDED_PILOTS), values


def _shaped(job: _Job, gains: Float, values: Float) -> Float:
    """Moves the data's energy to the rings of the lattice that come through. The pilots keep theirs, which the search is laid out for.

    To lift single carriers that the picture speaks against was tried as well, and lost more where the picture is cut or turned.
    """
    net = lattice()
    spent = gains * job.base
    ring = np.searchsorted(np.quantile(net.radius, np.linspace(0, 1, _RINGS + 1)[1:-1]), net.radius, side="right")
    count, middle, reached, paid = (np.bincount(ring, weights, _RINGS) for weights in (None, net.radius, values, spent))
    transfer = np.maximum(reached / np.maximum(paid, 1e-6), 1e-6)
    share = np.maximum(transfer / transfer.max(), 0.1) ** _SHAPING
    shaped = gains * np.interp(net.radius, middle / count, share)
    shaped[net.coarse] = gains[net.coarse]
    rest = np.setdiff1d(np.arange(gains.size), net.coarse)
    shaped[rest] *= np.linalg.norm(spent[rest]) / max(float(np.linalg.norm((shaped * job.base)[rest])), 1e-6)
    return np.asarray(shaped, dtype=np.float32)
