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
from platemark.provenance.watermark.channel import NEEDED, WANTED_MARGIN, Attempt, after_jpeg, psnr, shifted
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
from platemark.provenance.watermark.mask import FLAT, perceptual_mask
from platemark.provenance.watermark.payload import Payload, seal
from platemark.provenance.watermark.reading import response
from platemark.provenance.watermark.spectrum import Float

_NEEDED_PILOTS = 7.5  # the statistic at which a whole search finds the tile
_ATTEMPTS = 4
_RINGS, _SHAPING = 8, 0.5
_TILT = 0.5  # amplitude falls with frequency to this power before the picture has its say
_COARSE_GAIN = 3.0  # amplitude of the coarse pilots against the other carriers: a third of the energy
_FLAT_STRENGTH = 255 / 10 ** (45 / 20) / FLAT  # the strength that leaves 45 dB in flat parts
_SAMPLE = 1 << 17  # pixels from which the strength for a PSNR is estimated


@dataclass(frozen=True)
class _Job:
    """One picture with everything that stays the same over the attempts. `signs` (n,): ±1 of each carrier, pilots +1."""

    image: NDArray[np.uint8]
    phase: NDArray[np.complex64]
    signs: Float
    base: Float
    shift: tuple[float, float]
    period: float
    mask: Float


def write(
    image: NDArray[np.uint8], payload: Payload, key: WatermarkKey, *, min_psnr: float, max_psnr: float, rng: np.random.Generator | None
) -> Attempt:
    """Marks uint8 (H, W, 3), 256 px a side or more. The caller reads the result back: at `min_psnr` it may still be too faint."""
    job = _prepare(image, payload, key, rng)
    gains = np.ones_like(job.signs)
    pattern = _pattern(job, gains)
    strength = _strength_at(image, pattern, max_psnr)
    for left in range(_ATTEMPTS - 1, -1, -1):
        marked, strength = _within(image, pattern, strength, min_psnr)
        margin, values = _judge(job, after_jpeg(marked))
        if not left or (margin >= WANTED_MARGIN and left < _ATTEMPTS - 1):
            break
        gains = _shaped(job, gains, values)
        pattern = _pattern(job, gains)
        floor, ceiling = (_strength_at(image, pattern, bound) for bound in (max_psnr, min_psnr))
        wanted = strength * min(2.5, max(1.0, 1.05 * WANTED_MARGIN / max(margin, 0.1)))
        strength = min(ceiling, max(floor, wanted))
    return Attempt(marked, strength, 0, margin)


def _prepare(image: NDArray[np.uint8], payload: Payload, key: WatermarkKey, rng: np.random.Generator | None) -> _Job:
    net, keyed = lattice(), carriers(key)
    signs = np.ones(len(net.points), dtype=np.float32)
    signs[net.data] = code.encode(seal(payload, key))[keyed.symbol]
    base = net.radius**-_TILT
    base[net.coarse] *= _COARSE_GAIN
    shift = _draw(rng) * PERIOD, _draw(rng) * PERIOD
    period = pixel_period(image.shape[0], image.shape[1])
    base *= net.radius * PERIOD <= NYQUIST_MARGIN * period
    return _Job(image, keyed.phase * turns(net.points, shift), signs, base, shift, period, perceptual_mask(image))


def _draw(rng: np.random.Generator | None) -> float:
    return float(rng.random()) if rng is not None else secrets.randbelow(1 << 32) / 2.0**32


def _pattern(job: _Job, gains: Float) -> Float:
    """The change at strength 1, (H, W): the tile, of standard deviation 1, times the mask."""
    amplitude = job.base * gains * job.signs * job.phase
    amplitude *= math.sqrt(2) / np.linalg.norm(amplitude)
    grid = np.zeros((2 * REACH + 1, REACH + 1), dtype=np.complex64)
    grid[lattice().points[:, 0] + REACH, lattice().points[:, 1]] = amplitude
    height, width = job.image.shape[:2]
    pattern = spectrum.wave(grid, height, width, job.period)
    pattern *= job.mask
    return pattern


def _strength_at(image: NDArray[np.uint8], pattern: Float, wanted: float) -> float:
    """The largest strength that keeps a PSNR of `wanted`, from a sample of the rows, by bisection."""
    step = max(1, pattern.size // _SAMPLE)
    image, pattern = image[step // 2 :: step], pattern[step // 2 :: step]
    low, high = 0.05, _FLAT_STRENGTH
    if psnr(image, shifted(image, pattern, high)) > wanted:
        return high
    for _ in range(10):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if psnr(image, shifted(image, pattern, middle)) > wanted else (low, middle)
    return low


def _within(image: NDArray[np.uint8], pattern: Float, strength: float, min_psnr: float) -> tuple[NDArray[np.uint8], float]:
    """The marked picture, weakened where the sample's estimate went over the bound by a little."""
    marked = shifted(image, pattern, strength)
    while psnr(image, marked) < min_psnr and strength > 0.05:
        strength *= 0.98
        marked = shifted(image, pattern, strength)
    return marked, strength


def _judge(job: _Job, image: NDArray[np.uint8]) -> tuple[float, Float]:
    """The margin of a reading at the known geometry, and the carriers' values (n,): positive where they say what they should."""
    net = lattice()
    grid = spectrum.coefficients(spectrum.prepare(image), job.period)
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
