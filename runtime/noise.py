"""Noise of a seed, equal to torch's CPU generator without torch: mt19937, 24-bit uniforms, Box-Muller.

`randn(seed, shape)` is what `torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))` gives: the uniform stream exactly,
the normals within 2e-6. A `Generator` goes on from there, draw after draw, for samplers that add noise at their steps. Knows nothing
about latents or schedulers.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SEEDS = 2**64
_BLOCK = 16  # torch fills 16 normals at a time, and takes a scalar path below that size


def image_seed(seed: int, k: int) -> int:
    """Seed of image `k` (from 0) of a request: `seed + k`, modulo 2^64."""
    return (seed + k) % SEEDS


def draw_seed() -> int:
    """A fresh seed in [0, 2^63), from the operating system's randomness (63 bits: every JSON reader with int64 can hold it)."""
    return secrets.randbits(63)


class Generator:
    """One image's noise: torch's CPU generator, draw after draw. Not for several threads at once.

    `seed` in [0, 2^64), of which torch's generator uses the low 32 bits.
    """

    def __init__(self, seed: int) -> None:
        # RandomState's stream is frozen by numpy's compatibility promise, and an int seed runs the same init_genrand as torch.
        self._state = np.random.RandomState(seed & 0xFFFFFFFF)
        self._kept: float | None = None  # the second normal of a pair, when the last draw under 16 values was of odd size

    def randn(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """The next standard normals, float32, of `shape`."""
        size = math.prod(shape)
        values = self._scalar_normals(size) if size < _BLOCK else self._block_normals(size)
        return values.reshape(tuple(shape))

    def uniform(self, size: int) -> NDArray[np.float32]:
        """`torch.rand(size)`: the low 24 bits of each 32-bit word over 2^24, in [0, 1)."""
        return _uniform24(self._words(size))

    def _words(self, count: int) -> NDArray[np.uint32]:
        """The next 32-bit mt19937 outputs."""
        # Asked for no bytes, numpy would take a word from the stream all the same.
        return np.frombuffer(self._state.bytes(4 * count) if count else b"", dtype="<u4")

    def _block_normals(self, size: int) -> NDArray[np.float32]:
        """Whole blocks of 16 in place; where a remainder is left, torch draws 16 new uniforms and recomputes the last 16 values."""
        uniforms = self.uniform(size)
        whole = size - size % _BLOCK
        out = np.empty(size, dtype=np.float32)
        out[:whole] = _box_muller(uniforms[:whole])
        if whole != size:
            out[-_BLOCK:] = _box_muller(self.uniform(_BLOCK))
        return out

    def _scalar_normals(self, size: int) -> NDArray[np.float32]:
        """The path for fewer than 16 values: pairs in double precision, the second of a pair kept for the next draw on this path."""
        kept = [] if self._kept is None or size == 0 else [self._kept]
        pairs = _pairs(self._words(4 * ((size - len(kept) + 1) // 2)))
        values = [*kept, *pairs]
        if size > 0:
            self._kept = values[size] if len(values) > size else None
        return np.asarray(values[:size], dtype=np.float32)


def randn(seed: int, shape: Sequence[int]) -> NDArray[np.float32]:
    """`torch.randn(shape)` of a fresh generator."""
    return Generator(seed).randn(shape)


def uniform(seed: int, size: int) -> NDArray[np.float32]:
    """`torch.rand(size)` of a fresh generator."""
    return Generator(seed).uniform(size)


def draws(generators: Sequence[Generator], shape: Sequence[int]) -> NDArray[np.float32]:
    """The next normals of several images, (n, *shape): row k comes from `generators[k]` alone, so no image depends on its neighbours."""
    out = np.empty((len(generators), *shape), np.float32)
    for row, generator in zip(out, generators, strict=True):
        row[...] = generator.randn(shape)
    return out


def _uniform24(words: NDArray[np.uint32]) -> NDArray[np.float32]:
    return (words & np.uint32(0xFFFFFF)).astype(np.float32) * np.float32(2.0**-24)


def _box_muller(uniforms: NDArray[np.float32]) -> NDArray[np.float32]:
    """Blocks of 16 uniforms (8 radii, then 8 angles) to 16 normals (8 cosines, then 8 sines). Box and Muller, 1958."""
    blocks = uniforms.reshape(-1, 2, _BLOCK // 2)
    radius = np.sqrt(-2.0 * np.log((np.float32(1.0) - blocks[:, 0]).astype(np.float64)))
    # The angle is rounded to float32, as torch rounds it: at 2π that moves a normal by up to 1e-6.
    theta = (blocks[:, 1] * np.float32(2.0 * math.pi)).astype(np.float64)
    return np.stack([radius * np.cos(theta), radius * np.sin(theta)], axis=1).astype(np.float32).reshape(-1)


def _pairs(words: NDArray[np.uint32]) -> list[float]:
    """Normals in double precision from 53-bit uniforms, two from each four words."""
    quads = words.astype(np.uint64).reshape(-1, 2, 2)  # pair, (angle, radius), (high, low)
    uniforms = (((quads[..., 0] << np.uint64(32)) | quads[..., 1]) & np.uint64(2**53 - 1)).astype(np.float64) * 2.0**-53
    theta = 2.0 * math.pi * uniforms[:, 0]
    radius = np.sqrt(-2.0 * np.log1p(-uniforms[:, 1]))
    normals: list[float] = np.stack([radius * np.cos(theta), radius * np.sin(theta)], axis=1).reshape(-1).tolist()
    return normals
