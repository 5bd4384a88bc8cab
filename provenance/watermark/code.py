"""Error correction: a tail-biting convolutional code of rate 1/6 and constraint length 15, with a soft-decision list decoder.

Generators 46321, 51271, 63667, 70535, 73277, 76513 (octal): the rate-1/6 code flown on Cassini (JPL TDA Progress Report 42-102). Eight more
memory cells than is usual: numpy runs over all states at once, so that they cost little, and each brings the code nearer to what is
possible. Source of the decoder: Viterbi 1967; tail-biting by running on around the word; the list is the best path into each of the
likeliest final states. Knows bits and soft values, nothing of pictures.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

GENERATORS = (0o46321, 0o51271, 0o63667, 0o70535, 0o73277, 0o76513)
RATE = len(GENERATORS)
MEMORY = 14
LIST = 32  # words tried against the check for one reading
_HALF = 1 << (MEMORY - 1)
_MARGIN = 56  # steps run before and after the word, for the path to forget where it began


def encode(bits: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Bits (n,) → symbols (6n,) of ±1, bit 0 as +1. The encoder starts in the state that it ends in; n must be 14 or more."""
    past = np.stack([np.roll(bits, lag) for lag in range(MEMORY + 1)], axis=1)  # column k: the bit k steps ago
    taps = np.array([[g >> (MEMORY - lag) & 1 for g in GENERATORS] for lag in range(MEMORY + 1)], dtype=np.uint8)
    return np.asarray(1.0 - 2.0 * ((past @ taps) & 1), dtype=np.float32).ravel()


def decode(soft: NDArray[np.float32], words: int = 1) -> NDArray[np.uint8]:
    """Soft symbols (6n,), positive for bit 0, larger for surer → up to `words` different words (m, n), the likeliest first."""
    steps = soft.reshape(-1, RATE)
    n = len(steps)
    around = np.arange(-_MARGIN, n + _MARGIN) % n
    gains = (steps @ _branch_signs())[around]
    metric, survivor = np.zeros(2 * _HALF, dtype=np.float32), np.empty((len(around), 2 * _HALF), dtype=np.bool_)
    plus, minus = np.empty(_HALF, dtype=np.float32), np.empty(_HALF, dtype=np.float32)
    for t, gain in enumerate(gains):
        # New state = bit << 13 | old >> 1, so its two predecessors differ in their lowest bit. Every generator taps the newest and the
        # oldest bit: flipping either one flips all symbols of the branch, and one gain serves four branches.
        even, odd = metric[::2].copy(), metric[1::2].copy()
        for new, first, second in ((slice(0, _HALF), np.add, np.subtract), (slice(_HALF, None), np.subtract, np.add)):
            first(even, gain, out=plus)
            second(odd, gain, out=minus)
            np.greater(minus, plus, out=survivor[t, new])
            np.maximum(plus, minus, out=metric[new])
        if t % 32 == 0:
            metric -= metric[0]
    ends = np.argpartition(metric, -words)[-words:]
    return _distinct(_trace_back(survivor, ends[np.argsort(-metric[ends])])[:, _MARGIN : _MARGIN + n])


def _trace_back(survivor: NDArray[np.bool_], state: NDArray[np.intp]) -> NDArray[np.uint8]:
    bits = np.empty((len(state), len(survivor)), dtype=np.uint8)
    for t in range(len(survivor) - 1, -1, -1):
        bits[:, t] = state >> (MEMORY - 1)
        state = (state << 1 | survivor[t, state]) & (2 * _HALF - 1)
    return bits


def _distinct(words: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The words without repetition, in their order."""
    _, first = np.unique(words, axis=0, return_index=True)
    return words[np.sort(first)]


@functools.cache
def _branch_signs() -> NDArray[np.float32]:
    """(6, 8192): the six symbols on the branch from old state 2 m to new state m (newest and oldest bit 0)."""
    register = np.arange(_HALF) << 1  # from the newest bit, 14, to the oldest, 0
    parity = [np.bitwise_count(register & g) & 1 for g in GENERATORS]
    return np.asarray(1.0 - 2.0 * np.stack(parity), dtype=np.float32)
