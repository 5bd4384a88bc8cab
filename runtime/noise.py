"""Initial noise of a seed, equal to torch's CPU generator without torch: mt19937, 24-bit uniforms, Box-Muller.

`randn(seed, shape)` is what `torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))` gives: the uniform stream exactly,
the normals within 2e-6. Only the first draw of a fresh generator is reproduced, which is all that the initial latents need. Knows nothing
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


def randn(seed: int, shape: Sequence[int]) -> NDArray[np.float32]:
    """Standard normals, float32, of `shape`; `seed` in [0, 2^64), of which torch's generator uses the low 32 bits."""
    size = math.prod(shape)
    words = _words(seed, size)
    values = _scalar_normals(words, size) if size < _BLOCK else _block_normals(words, size)
    return values.reshape(tuple(shape))


def uniform(seed: int, size: int) -> NDArray[np.float32]:
    """`torch.rand(size)` of a fresh generator: the low 24 bits of each 32-bit word over 2^24, in [0, 1)."""
    return _uniform24(_words(seed, size)[:size])


def _words(seed: int, size: int) -> NDArray[np.uint32]:
    """Enough 32-bit mt19937 outputs for `size` normals: one each and a tail block, or four for each pair on the scalar path."""
    count = max(size + _BLOCK, 4 * ((size + 1) // 2))
    # RandomState's stream is frozen by numpy's compatibility promise, and an int seed runs the same init_genrand as torch.
    return np.frombuffer(np.random.RandomState(seed & 0xFFFFFFFF).bytes(4 * count), dtype="<u4")


def _uniform24(words: NDArray[np.uint32]) -> NDArray[np.float32]:
    return (words & np.uint32(0xFFFFFF)).astype(np.float32) * np.float32(2.0**-24)


def _block_normals(words: NDArray[np.uint32], size: int) -> NDArray[np.float32]:
    """Whole blocks of 16 in place; where a remainder is left, torch draws 16 new uniforms and recomputes the last 16 values."""
    uniforms = _uniform24(words)
    whole = size - size % _BLOCK
    out = np.empty(size, dtype=np.float32)
    out[:whole] = _box_muller(uniforms[:whole])
    if whole != size:
        out[-_BLOCK:] = _box_muller(uniforms[size : size + _BLOCK])
    return out


def _box_muller(uniforms: NDArray[np.float32]) -> NDArray[np.float32]:
    """Blocks of 16 uniforms (8 radii, then 8 angles) to 16 normals (8 cosines, then 8 sines). Box and Muller, 1958."""
    blocks = uniforms.reshape(-1, 2, _BLOCK // 2)
    radius = np.sqrt(-2.0 * np.log((np.float32(1.0) - blocks[:, 0]).astype(np.float64)))
    # The angle is rounded to float32, as torch rounds it: at 2π that moves a normal by up to 1e-6.
    theta = (blocks[:, 1] * np.float32(2.0 * math.pi)).astype(np.float64)
    return np.stack([radius * np.cos(theta), radius * np.sin(theta)], axis=1).astype(np.float32).reshape(-1)


def _scalar_normals(words: NDArray[np.uint32], size: int) -> NDArray[np.float32]:
    """The path for fewer than 16 values: double-precision pairs from 53-bit uniforms, the second of each pair kept for the next call."""
    quads = words[: 4 * ((size + 1) // 2)].astype(np.uint64).reshape(-1, 2, 2)  # pair, (angle, radius), (high, low)
    uniforms = (((quads[..., 0] << np.uint64(32)) | quads[..., 1]) & np.uint64(2**53 - 1)).astype(np.float64) * 2.0**-53
    theta = 2.0 * math.pi * uniforms[:, 0]
    radius = np.sqrt(-2.0 * np.log1p(-uniforms[:, 1]))
    return np.stack([radius * np.cos(theta), radius * np.sin(theta)], axis=1).reshape(-1)[:size].astype(np.float32)
