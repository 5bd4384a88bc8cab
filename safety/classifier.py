"""The trained prompt check: multinomial logistic regression over hashed words, pieces of words, and the word lists that were met.

Small (32,768 features, int8) and shallow: it generalises over wording that the lists do not have, in the languages it was trained on
(those of the word lists), and does not understand a sentence. Words in other letters than Latin, Cyrillic, Chinese and Japanese are left
out, and a text of nothing else gets no signal: it is not judged, which does not mean that it is harmless. Other languages in those
letters are judged by what they share with the trained ones. Trained by `training/prompt_classifier.py`, whose weights lie beside this
package and are checked against their sha256. Knows no policy.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from platemark.errors import SafetyUnavailable
from platemark.safety.closed import REMEDY
from platemark.safety.lexicon import base_finder, words_of
from platemark.safety.normalize import encoded, views
from platemark.safety.signals import Observation, PromptKind, Signal

FILE, SHA256 = "prompt_classifier.safetensors", "181b961656148d2d57e07f5bbf32596cbaf6f854f06adf480d9cffb312864b69"
DIMENSIONS = 32768
BENIGN = "benign"
CLASSES = ("sexual", "violence", "hate", "self_harm", "minors", "deception", "weapon", "undress_intent", "face_swap_intent", BENIGN)
IMPLIED = {"undress_intent": "sexual", "face_swap_intent": "deception"}  # tags, and the category that they are a case of
WINDOW, STRIDE = 24, 12  # words that are looked at together, so that harmless words around do not water down the rest
_LIST = 3.0  # how much more a list counts than a word or a piece of one: it speaks for all languages
_LEAST = 0.05  # scores below are left out
_SHORT = 16.0  # added to the squared length of a vector before it is made 1: the less a text says, the more the bias decides
_UNTRAINED = re.compile("[^a-z0-9\u00df-\u024f\u1e00-\u1eff\u0400-\u052f\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")  # and signs

Vector = tuple[NDArray[np.int64], NDArray[np.float32]]


@dataclass(frozen=True)
class Weights:
    """`table`: float32 (DIMENSIONS, len(CLASSES)); `bias`: float32 (len(CLASSES),)."""

    table: NDArray[np.float32]
    bias: NDArray[np.float32]


class ClassifierDetector:
    """One look at a text. Stateless after construction, so safe to share between threads."""

    name = "classifier"
    categories = CLASSES[:-1]

    def __init__(self, weights: Weights | None = None) -> None:
        """Raises `SafetyUnavailable` where the weights are missing or not those that this version was released with."""
        self.model_sha256 = SHA256
        self._weights = weights or load_weights()

    def observe(self, text: str, kind: PromptKind) -> Observation:
        """A score per category. Wishes only: what a negative prompt keeps out is not judged."""
        began = time.perf_counter()
        scores = self._scores(text) if kind == "prompt" else {}
        signals = tuple(Signal(name, "trained_score", score) for name, score in scores.items() if score >= _LEAST)
        return Observation(self.name, self.model_sha256, signals, (time.perf_counter() - began) * 1000)

    def _scores(self, text: str) -> dict[str, float]:
        top = np.zeros(len(CLASSES) - 1)
        for vector in vectors(text):
            top = np.maximum(top, unsafe_scores(probabilities(self._weights, vector)))
        scores = dict(zip(CLASSES, top.tolist(), strict=False))
        for tag, category in IMPLIED.items():
            scores[category] = max(scores[category], scores[tag])
        return scores


def probabilities(weights: Weights, vector: Vector) -> NDArray[np.float64]:
    """Of each class, float64 (len(CLASSES),)."""
    places, values = vector
    logits = (weights.table[places] * values[:, None]).sum(axis=0, dtype=np.float64) + weights.bias
    shifted = np.exp(logits - logits.max())
    return np.asarray(shifted / shifted.sum(), np.float64)


def unsafe_scores(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """Per unsafe class its probability; the likeliest one answers for all of them, so that a mixed case is not lost between two."""
    scores = probability[:-1].copy()
    scores[int(scores.argmax())] = 1 - probability[-1]
    return scores


def vectors(text: str) -> Iterator[Vector]:
    """The feature vectors of every reading of `text`, window by window."""
    readings = dict.fromkeys(form for one in (text, *encoded(text)) for form in _forms(one))
    for form in readings:
        words = judged_words(form)
        for start in range(0, max(1, len(words) - WINDOW + STRIDE) if words else 0, STRIDE):
            yield vector_of(words[start : start + WINDOW])


def judged_words(form: str) -> list[str]:
    """The words of a plain form that are in trained letters; none where they are numbers alone."""
    words = words_of(_UNTRAINED.sub(" ", form))
    return words if any(word.isalpha() for word in words) else []


def _forms(text: str) -> Iterable[str]:
    seen = views(text)
    return (*seen.texts, seen.collapsed) if seen.collapsed else seen.texts


def vector_of(words: Sequence[str], lists: bool = True) -> Vector:
    """The hashed features of some words, with a length below 1 that grows with what they say.

    `lists` false: without the word lists (for training).
    """
    named = [(name, 1.0) for name in _names(words)]
    named += [(f"={label}", _LIST) for label in _labels(words)] if lists else []
    sums: dict[int, float] = {}
    for name, weight in named:
        code = zlib.crc32(name.encode())
        sums[code % DIMENSIONS] = sums.get(code % DIMENSIONS, 0.0) + (weight if code & 0x80000000 else -weight)
    places = np.fromiter(sums, np.int64, len(sums))
    values = np.fromiter(sums.values(), np.float32, len(sums))
    return places, values / np.float32(math.sqrt(float(values @ values) + _SHORT))


def _names(words: Sequence[str]) -> Iterator[str]:
    """Words, pairs of neighbours, and for words of more than three letters their pieces of three to five."""
    for place, word in enumerate(words):
        yield word
        yield f"{word} {words[place + 1] if place + 1 < len(words) else '.'}"
        marked = f"<{word[:32]}>"
        for size in (3, 4, 5) if len(marked) > 5 else ():
            yield from (f"#{marked[i : i + size]}" for i in range(len(marked) - size + 1))


def _labels(words: Sequence[str]) -> Iterable[str]:
    return dict.fromkeys(hit.label for hit in base_finder().find(" ".join(words)))


@cache
def load_weights() -> Weights:
    """The released weights. Raises `SafetyUnavailable`."""
    from safetensors.numpy import load

    try:
        content = files("platemark.safety").joinpath("data", FILE).read_bytes()
    except OSError as error:
        raise SafetyUnavailable("the prompt classifier's weights are missing", REMEDY) from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise SafetyUnavailable("the prompt classifier's weights are not those of this version", REMEDY)
    found = load(content)
    return Weights(found["table"].astype(np.float32) * found["scale"], found["bias"].astype(np.float32))
