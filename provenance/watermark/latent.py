"""The second layer: a mark in the initial noise of a picture, read by running the sampler backwards.

The signs of the noise carry a codeword, its magnitudes stay the seed's own: to anybody without the key it is standard normal noise, and the
picture is one that the model makes anyway (the idea of Gaussian Shading, Yang et al. 2024). It is in what the picture shows, not in faint
changes of pixels, so it outlives a redrawing that takes the pixel mark. It says little: that a key of ours made the noise, and the content
id's last 12 bits, by which the registry can be asked.

The code is the first-order Reed-Muller code of length 1024 and one coset of it, spread over all positions under keyed signs. The p-value
needs no calibration: whatever the picture, the statistic of a word is a weighted sum of the key's random signs, with
P(score ≥ x) ≤ 3.18 · P(N(0,1) ≥ x) (Bentkus & Dzindzalieta 2015), times the number of words and sizes tried. It holds for a picture that is
independent of the key. `inversion` makes the noise out of a picture. Knows nothing of networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from platemark.errors import InputError
from platemark.provenance.watermark.key import WatermarkKey
from platemark.provenance.watermark.spectrum import Float
from platemark.runtime.noise import randn

RESIDUE_BITS = 12
LENGTH = 1 << 10  # of the code
FALSE_POSITIVES = 1e-6  # per picture and key
_COSETS = 1 << (RESIDUE_BITS - 11)  # each holds 2^11 words
_TAIL = 3.18  # of a sum of random signs, over that of a normal variable
_CUT = 1.5  # standard deviations beyond which a value counts no more


@dataclass(frozen=True)
class LatentDetection:
    """What was found with the likeliest key. `residue`: content id modulo 4096, None where not detected. `score`: the best word's
    statistic, N(0, 1) for one word by chance. `p_value`: the probability of it in a picture that this key has not made, over all words and
    sizes."""

    verdict: Literal["detected", "not-detected"]
    residue: int | None
    p_value: float
    score: float
    key_id: str

    def as_dict(self) -> dict[str, Any]:
        """As the JSON line shows it."""
        return {
            "verdict": self.verdict,
            "content_id_mod_4096": self.residue,
            "p_value": self.p_value,
            "score": round(self.score, 2),
            "key_id": self.key_id if self.residue is not None else None,
        }


def residue_of(content_id: int) -> int:
    """What the layer says of a content id."""
    return content_id % (1 << RESIDUE_BITS)


def noise(seed: int, shape: Sequence[int], content_id: int, key: WatermarkKey) -> Float:
    """Marked initial noise, float32 of `shape` (C, h, w): the seed's own magnitudes (`runtime.noise.randn`) with the codeword's signs.

    Give it to `Pipeline.generate(latents=...)`. Raises `InputError` where the latents have under 1024 values and cannot hold the code.
    """
    count = math.prod(shape)
    if count < LENGTH:
        raise InputError(f"latents of {count} values are too small for the latent mark", f"it needs {LENGTH}: render a larger picture")
    return np.asarray(np.abs(randn(seed, shape)) * _Spread.of(key, count).signs(residue_of(content_id)).reshape(tuple(shape)))


def read_noise(guesses: Sequence[Float], keys: Sequence[WatermarkKey]) -> LatentDetection:
    """Looks in guesses of the initial noise, float32 (C, h, w), of one picture (one a size that it may have been rendered at) for the mark
    of one of the keys. Raises `InputError` where there is no key or no guess."""
    if not keys or not guesses:
        raise InputError("no watermark key or no picture was given", "make a key with `platemark keys init`")
    return min((_with_key(guesses, key) for key in keys), key=lambda found: found.p_value)


def _with_key(guesses: Sequence[Float], key: WatermarkKey) -> LatentDetection:
    score, residue = max(_best_word(_soft(guess), key) for guess in guesses)
    p_value = min(1.0, len(guesses) * (1 << RESIDUE_BITS) * _TAIL * 0.5 * math.erfc(score / math.sqrt(2)))
    hit = p_value < FALSE_POSITIVES
    return LatentDetection("detected" if hit else "not-detected", residue if hit else None, max(p_value, 1e-300), score, key.key_id)


def _soft(guess: Float) -> Float:
    """What each value says of its sign (n,): the local mean taken away, where the picture's content lies, and large values cut."""
    padded = np.pad(guess, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    detail = guess - (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 16
    limit = _CUT * float(detail.std())
    return np.asarray(np.clip(detail, -limit, limit).ravel(), dtype=np.float32)


def _best_word(soft: Float, key: WatermarkKey) -> tuple[float, int]:
    """The highest statistic of all words, and what that word says."""
    size = float(np.linalg.norm(soft))
    if size == 0 or soft.size < LENGTH:
        return 0.0, 0
    spread = _Spread.of(key, soft.size)
    symbols = np.bincount(spread.place, soft * spread.mask, LENGTH)
    said = _hadamard(symbols * spread.cosets) / size
    coset, row = divmod(int(np.abs(said).argmax()), LENGTH)
    value = float(said[coset, row])
    word = coset << 11 | row << 1 | (value < 0)
    return abs(value), int(np.flatnonzero(spread.words == word)[0])


@dataclass(frozen=True)
class _Spread:
    """The keyed part for latents of n values: the code position that each holds (n,), its sign (n,), each coset's signs (_, 1024), and the
    word that stands for each residue (4096,): in no order, so that the ids that follow each other have no sign in common."""

    place: NDArray[np.intp]
    mask: Float
    cosets: Float
    words: NDArray[np.intp]

    @classmethod
    def of(cls, key: WatermarkKey, count: int) -> _Spread:
        place = key.permutation(f"latent/place/{count}", count) % LENGTH
        cosets = _signs(key, "latent/coset", _COSETS * LENGTH).reshape(_COSETS, LENGTH)
        return cls(place, _signs(key, f"latent/mask/{count}", count), cosets, key.permutation("latent/words", 1 << RESIDUE_BITS))

    def signs(self, residue: int) -> Float:
        """The codeword as it lies in the latents (n,), ±1."""
        number = int(self.words[residue])
        coset, row, negative = number >> 11, number >> 1 & (LENGTH - 1), number & 1
        word = 1 - 2 * (np.bitwise_count(np.arange(LENGTH) & row) & 1).astype(np.float32)  # a row of the Hadamard matrix
        return np.asarray((1 - 2 * negative) * self.mask * (word * self.cosets[coset])[self.place], dtype=np.float32)


def _signs(key: WatermarkKey, label: str, count: int) -> Float:
    return np.where(key.uniform(label, count) < 0.5, np.float32(1), np.float32(-1))


def _hadamard(rows: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Each row (m, 1024) times the Hadamard matrix, by butterflies."""
    for _ in range(LENGTH.bit_length() - 1):
        even, odd = rows[:, ::2], rows[:, 1::2]
        rows = np.concatenate([even + odd, even - odd], axis=1)
    return rows
