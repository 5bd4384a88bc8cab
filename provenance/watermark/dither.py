"""The layout `pixel`, for pictures under 256 px a side: keyed dither modulation of 8×8 cosine coefficients, at the picture's own pixels.

Few pixels leave a spread-spectrum mark too little room against the picture's own content. Here that content is no noise: each chosen
coefficient of the luma is moved to the nearest point of a keyed lattice, which says +1, or of the same lattice half a step on, which says
-1 (Chen & Wornell, Quantization Index Modulation, 2001). The blocks are those of JPEG, so JPEG adds only its rounding. The price: a crop or
a resize moves the blocks and the mark is gone. The lattice offsets come from the key and a salt drawn for each picture.
"""

from __future__ import annotations

import functools
import math
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from platemark.provenance.watermark import code
from platemark.provenance.watermark.channel import NEEDED, WANTED_MARGIN, Attempt, after_jpeg, psnr, shifted
from platemark.provenance.watermark.finding import Finding, Symbols
from platemark.provenance.watermark.key import WatermarkKey
from platemark.provenance.watermark.layout import SYMBOLS, strength_of
from platemark.provenance.watermark.payload import Payload, seal
from platemark.provenance.watermark.spectrum import Float, luma

STEPS = (9.0, 10.5, 12.5, 15.0, 18.0, 21.5)  # lattice steps, in levels of an orthonormal transform
SALTS = 16
HYPOTHESES = SALTS * len(STEPS)
HEADROOMS = (0, 1, 2, 3)
BLOCK = 8
_ROUNDS = 4
_JPEG = 75
_PLACES = ((0, 1), (1, 0), (2, 0), (1, 1), (0, 2), (0, 3), (1, 2), (2, 1), (3, 0))  # (row, column) of a block: lowest frequencies first
_PILOT_SHARE = 1 / 8
_SALT_STRIDE = 1009  # cells; prime, so that no salt moves whole blocks onto blocks in step with the picture


@dataclass(frozen=True)
class Cells:
    """The keyed part of a picture's n cells (blocks × places). `pilots` and `data` index them; `symbol`: what each of `data` carries."""

    offset: Float  # (n,), in steps
    pilots: NDArray[np.intp]
    data: NDArray[np.intp]
    symbol: NDArray[np.intp]


def cells(key: WatermarkKey, count: int) -> list[Cells]:
    """The cells of a picture with `count` of them, under each salt."""
    offset, order = key.uniform("pixel/offset", count).astype(np.float32), key.permutation("pixel/order", count)
    split = round(_PILOT_SHARE * count)
    symbol = np.arange(count - split) % SYMBOLS
    # A salt moves the one keyed sequence along: under each, the offsets of a picture's cells stay independent and uniform.
    return [Cells(np.roll(offset, salt * _SALT_STRIDE), order[:split], order[split:], symbol) for salt in range(SALTS)]


def transform(plane: Float) -> Float:
    """Luma (H, W) → the chosen coefficients (n,) of all whole blocks."""
    return np.asarray(np.einsum("nij,kij->nk", _blocks(plane), _basis(), optimize=True), dtype=np.float32).ravel()


def inverse(values: Float, shape: tuple[int, int]) -> Float:
    """Coefficients (n,) → the plane (H, W) that they make; zero where no whole block fits."""
    height, width = (side // BLOCK * BLOCK for side in shape)
    blocks = np.einsum("nk,kij->nij", values.reshape(-1, len(_PLACES)), _basis(), optimize=True)
    plane = np.zeros(shape, dtype=np.float32)
    plane[:height, :width] = blocks.reshape(height // BLOCK, width // BLOCK, BLOCK, BLOCK).swapaxes(1, 2).reshape(height, width)
    return plane


def _blocks(plane: Float) -> Float:
    height, width = (side // BLOCK * BLOCK for side in plane.shape)
    tiles = plane[:height, :width].reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    return tiles.swapaxes(1, 2).reshape(-1, BLOCK, BLOCK)


@functools.cache
def _basis() -> Float:
    """(k, 8, 8): the orthonormal cosines of the chosen places."""
    angle = np.pi / BLOCK * np.outer(np.arange(BLOCK), np.arange(BLOCK) + 0.5)
    one = np.cos(angle) * np.where(np.arange(BLOCK) == 0, math.sqrt(1 / BLOCK), math.sqrt(2 / BLOCK))[:, None]
    return np.stack([np.outer(one[row], one[column]) for row, column in _PLACES]).astype(np.float32)


def towards(values: Float, signs: Float, offset: Float, step: float) -> Float:
    """What must be added to coefficients (n,) for each to say its sign: at most half a step."""
    off = offset + (1 - signs) / 4 - values / np.float32(step)
    return (off - np.rint(off)) * np.float32(step)


def heard(values: Float, offset: Float, step: float) -> NDArray[np.complex64]:
    """Unit complex (n,): real 1 on the lattice of +1, -1 on that of -1; of random phase in a picture without the mark."""
    return np.asarray(np.exp(2j * np.pi * (values / np.float32(step) - offset)), dtype=np.complex64)


def write(
    image: NDArray[np.uint8],
    payload: Payload,
    key: WatermarkKey,
    *,
    min_psnr: float,
    strength: float | None = None,
    rng: np.random.Generator | None,
) -> Attempt | None:
    """Marks uint8 (H, W, 3) with the smallest step that reads with a margin after JPEG, the headroom chosen for PSNR.

    Where none has that margin: the attempt with the largest; None where no step keeps `min_psnr`. With `strength`, only the step whose
    strength is nearest to it is tried.
    """
    count = transform(luma(image)).size
    keyed = cells(key, count)[rng.integers(SALTS) if rng is not None else secrets.randbelow(SALTS)]
    signs = np.ones(count, dtype=np.float32)
    signs[keyed.data] = code.encode(seal(payload, key))[keyed.symbol]
    best: Attempt | None = None
    best_rank = (0.0, 0.0)
    steps = STEPS if strength is None else (min(STEPS, key=lambda step: abs(strength_at(step) - strength)),)
    for step in steps:
        for headroom in HEADROOMS:
            attempt = _attempt(image, keyed, signs, key, step, headroom)
            distance = psnr(image, attempt.image)
            rank = min(attempt.margin, WANTED_MARGIN), distance
            if distance >= min_psnr and rank > best_rank:
                best, best_rank = attempt, rank
        if best is not None and best.margin >= WANTED_MARGIN:
            break
    return best


def strength_at(step: float) -> float:
    """Standard deviation of the change, in levels: each coefficient moves by a uniform part of a step."""
    return step * math.sqrt(len(_PLACES) / 12) / BLOCK


def _attempt(image: NDArray[np.uint8], keyed: Cells, signs: Float, key: WatermarkKey, step: float, headroom: int) -> Attempt:
    size = image.shape[0], image.shape[1]
    change = np.zeros(size, dtype=np.float32)
    marked = shifted(image, change.__getitem__, headroom=headroom)
    for _ in range(_ROUNDS):  # clipping and rounding undo a part of the change: what they took is asked for again
        change += inverse(towards(transform(luma(marked)), signs, keyed.offset, step), size)
        marked = shifted(image, change.__getitem__, headroom=headroom)
    received = heard(transform(luma(after_jpeg(marked, _JPEG))), keyed.offset, step)[keyed.data]
    margin = strength_of(received.real * signs[keyed.data], np.ones(received.size)) / NEEDED
    reads = Symbols(received, keyed.symbol).read(key).payload is not None
    return Attempt(marked, strength_at(step), headroom, margin if reads else min(margin, 0.95))


def findings(plane: Float, key: WatermarkKey) -> Iterator[Finding]:
    """Scores every salt and step for a picture's luma."""
    values = transform(plane)
    for salt, keyed in enumerate(cells(key, values.size)):
        for step in STEPS:
            pilots = heard(values[keyed.pilots], keyed.offset[keyed.pilots], step)
            score = strength_of(pilots.real, np.ones(pilots.size))
            # The offsets are uniform, so each term is the cosine of a uniform angle whatever the picture: normal, with lighter tails.
            p_value = 0.5 * math.erfc(score / math.sqrt(2))
            yield Finding({"step": step, "salt": salt}, score, p_value, functools.partial(_symbols, values, keyed, step))


def _symbols(values: Float, keyed: Cells, step: float) -> Symbols:
    return Symbols(heard(values[keyed.data], keyed.offset[keyed.data], step), keyed.symbol)
