"""Open watermarks of other programs: the `dwtDct` marks that Stable Diffusion scripts and diffusers pipelines write by default.

The method (package invisible-watermark, MIT; re-implemented from how it works, not from its code): of the U plane of BT.601 YUV the Haar
approximation band is cut into 4x4 blocks in reading order; block k carries bit k mod L in its largest coefficient (the first one left out),
whose magnitude is moved to 1/4 (bit 0) or 3/4 (bit 1) of a step of 36. The messages are public and there is no key: anybody can write such
a mark, so it is an unsigned claim. It survives neither cropping nor scaling, and little JPEG compression.
Knows nothing of our own watermark.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FALSE_POSITIVES = 1e-8  # per picture, over all messages; strict, because pictures that repeat themselves have fewer free bits
SMALLEST = 256 * 256  # pixels, below which the writers refuse
_STEP = 36.0
_BLOCK = 4
_ROWS = 512  # rows worked on at once: memory stays bounded on big pictures


@dataclass(frozen=True)
class Message:
    """One public message. `zero`: the U value of gray as its writer had it (128 for 8-bit pixels, 0.5 for floats, OpenCV's convention);
    `swapped`: the writer gave red where the method takes blue."""

    name: str
    bits: tuple[int, ...]
    zero: float
    swapped: bool = False


@dataclass(frozen=True)
class WildMark:
    """A public message that was found. `p_value`: that an unmarked picture agrees as well with any of the messages, for random bits."""

    name: str
    matching_bits: int
    bits: int
    p_value: float


def _text(text: str) -> tuple[int, ...]:
    return tuple(int(bit) for byte in text.encode() for bit in f"{byte:08b}")


def _number(value: int) -> tuple[int, ...]:
    """As the pipelines make bits of a number: without leading zeros."""
    return tuple(int(bit) for bit in f"{value:b}")


_SDXL = _number(0b101100111110110010010000011110111011000110011110)
MESSAGES = (
    Message("Stable Diffusion 1 script (StableDiffusionV1)", _text("StableDiffusionV1"), 128.0),
    Message("Stable Diffusion 2 script (SDV2)", _text("SDV2"), 128.0),
    Message("Stable Diffusion XL pipeline", _SDXL, 0.5),
    Message("Stable Diffusion XL pipeline (red and blue swapped)", _SDXL, 0.5, swapped=True),
    Message("FLUX.1 script", _number(0b001010101111111010000111100111001111010100101110), 0.5),
)


def find_wild(image: NDArray[np.uint8]) -> WildMark | None:
    """The public message that a picture, uint8 RGB (H, W, 3), carries; None where it carries none that we know."""
    if image.shape[0] * image.shape[1] < SMALLEST:
        return None
    planes: dict[tuple[float, bool], NDArray[np.float64]] = {}
    best: WildMark | None = None
    for message in MESSAGES:
        way = (message.zero, message.swapped)
        if way not in planes:
            planes[way] = _leanings(image, *way)
        found = _compare(planes[way], message)
        if found is not None and (best is None or found.p_value < best.p_value):
            best = found
    return best


def _leanings(image: NDArray[np.uint8], zero: float, swapped: bool) -> NDArray[np.float64]:
    """How far each block leans to bit 1, in [-1, 1], in reading order."""
    height, width = (side // 8 * 8 for side in image.shape[:2])
    parts = [_of_rows(image[top : min(top + _ROWS, height), :width], zero, swapped) for top in range(0, height, _ROWS)]
    return np.concatenate(parts).astype(np.float64)


def _of_rows(rows: NDArray[np.uint8], zero: float, swapped: bool) -> NDArray[np.float32]:
    pixels = rows.astype(np.float32)
    red, green, blue = (pixels[..., c] for c in ((2, 1, 0) if swapped else (0, 1, 2)))
    u = (blue - (0.299 * red + 0.587 * green + 0.114 * blue)) * np.float32(0.492) + np.float32(zero)
    band = (u[0::2, 0::2] + u[0::2, 1::2] + u[1::2, 0::2] + u[1::2, 1::2]) / 2  # Haar approximation, orthonormal
    high, wide = band.shape[0] // _BLOCK, band.shape[1] // _BLOCK
    blocks = band.reshape(high, _BLOCK, wide, _BLOCK).transpose(0, 2, 1, 3).reshape(high * wide, _BLOCK * _BLOCK)
    loudest: NDArray[np.float32] = np.abs(blocks[:, 1:]).max(axis=1)
    leaning: NDArray[np.float32] = -np.sin(loudest * np.float32(2 * math.pi / _STEP))
    return leaning


def _compare(leanings: NDArray[np.float64], message: Message) -> WildMark | None:
    """Averages the blocks of each bit, takes off what all have in common (a flat picture leans one way), and counts what agrees."""
    length = len(message.bits)
    whole = len(leanings) // length * length
    if not whole:
        return None
    means = leanings[:whole].reshape(-1, length).mean(axis=0)
    read = means > means.mean()
    matching = int((read == np.array(message.bits, bool)).sum())
    p_value = min(1.0, _tail(matching, length) * len(MESSAGES))
    return WildMark(message.name, matching, length, p_value) if p_value < FALSE_POSITIVES else None


def _tail(matching: int, length: int) -> float:
    """P(X >= matching) for X ~ Binomial(length, 1/2)."""
    return sum(math.comb(length, k) for k in range(matching, length + 1)) / 2.0**length
