"""Error correction: a tail-biting convolutional code of rate 1/6 and constraint length 9, and its soft-decision Viterbi decoder.

Generators 457, 755, 551, 637, 625, 727 (octal): the rate-1/6 code of 3GPP2 C.S0002 (cdma2000), free distance 37.
Knows bits and soft values, nothing of pictures. Source of the decoder: Viterbi 1967; tail-biting by running once around with a margin.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

GENERATORS = (0o457, 0o755, 0o551, 0o637, 0o625, 0o727)
RATE = len(GENERATORS)
MEMORY = 8  # constraint length 9
_STATES = 1 << MEMORY
_MARGIN = 6 * MEMORY  # steps run before and after the word, for the path to forget where it began


def encode(bits: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Bits (n,) → symbols (6n,) of ±1, bit 0 as +1. The encoder starts in the state that it ends in; n must be 8 or more."""
    past = np.stack([np.roll(bits, lag) for lag in range(MEMORY + 1)], axis=1)  # column k: the bit k steps ago
    taps = np.array([[g >> (MEMORY - lag) & 1 for g in GENERATORS] for lag in range(MEMORY + 1)], dtype=np.uint8)
    return np.asarray(1.0 - 2.0 * ((past @ taps) & 1), dtype=np.float32).ravel()


def decode(soft: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Soft symbols (6n,), positive for bit 0, larger for surer → the likeliest bits (n,)."""
    steps = soft.reshape(-1, RATE)
    n = len(steps)
    around = np.arange(-_MARGIN, n + _MARGIN) % n
    branch = (steps @ _branch_signs())[around].reshape(-1, 2, _STATES // 2, 2)
    metric = np.zeros(_STATES, dtype=np.float32)
    survivor = np.empty((len(around), _STATES), dtype=np.uint8)
    for t, gain in enumerate(branch):
        # New state s = (old << 1 | bit) & 255, so its two predecessors differ in their highest bit.
        low, high = metric.reshape(2, _STATES // 2, 1) + gain
        survivor[t] = (high > low).ravel()
        metric = np.maximum(low, high).ravel()
        metric -= metric[0]
    return _trace_back(survivor, int(metric.argmax()))[_MARGIN : _MARGIN + n]


def _trace_back(survivor: NDArray[np.uint8], state: int) -> NDArray[np.uint8]:
    bits = np.empty(len(survivor), dtype=np.uint8)
    for t in range(len(survivor) - 1, -1, -1):
        bits[t] = state & 1
        state = state >> 1 | int(survivor[t, state]) << (MEMORY - 1)
    return bits


@functools.cache
def _branch_signs() -> NDArray[np.float32]:
    """(6, 512): the six symbols on the branch (predecessor's high bit, new state >> 1, new bit)."""
    high, middle, bit = np.meshgrid(np.arange(2), np.arange(_STATES // 2), np.arange(2), indexing="ij")
    register = (high << MEMORY | middle << 1 | bit).ravel()  # bit k: the bit k steps ago
    parity = []
    for generator in GENERATORS:
        mirrored = int(f"{generator:0{MEMORY + 1}b}"[::-1], 2)
        parity.append(np.bitwise_count(register & mirrored) & 1)
    return np.asarray(1.0 - 2.0 * np.stack(parity), dtype=np.float32)
