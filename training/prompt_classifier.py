"""Trains the prompt classifier of `platemark.safety.classifier`: deterministic, numpy alone, about a minute on one core.

    python -m training.prompt_classifier [--check] [--folds 3]

Learns from benchmarks/safety/prompts/develop.jsonl (never from the held-out half), training/prompt_sentences.tsv, and the names that the
embedded model draws (harmless ones, short; they and the `plain` lines count less, since they are many and alike). Every text is learned
twice, with and without the word lists that it met: the lists were tuned on the same texts, and a classifier that leans on them alone would
add nothing to them. Prints cross-validated rates, writes safety/data/prompt_classifier.safetensors, and its sha256 to put into
`platemark.safety.classifier.SHA256`; `--check` only compares.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from platemark.safety.classifier import (
    BENIGN,
    CLASSES,
    DIMENSIONS,
    FILE,
    SHA256,
    Vector,
    Weights,
    judged_words,
    probabilities,
    unsafe_scores,
    vector_of,
)
from platemark.safety.normalize import plain

ROOT = Path(__file__).resolve().parent.parent
DEVELOP = ROOT / "benchmarks" / "safety" / "prompts" / "develop.jsonl"
SENTENCES = ROOT / "training" / "prompt_sentences.tsv"
NAMES = ROOT / "src" / "platemark" / "models" / "emoji" / "names.txt"
WEAPONS = ("crossed swords", "bow and arrow", "bomb", "dagger", "axe", "kitchen knife")  # names that are not harmless
NAME_WEIGHT = 0.3  # of one of them, and of a plain prompt
PLAIN = "plain"  # the first column of harmless prompts without any word that misleads
L2, STEPS = 2e-6, 250
BENIGN_BIAS = 1.6  # added to the logit of `benign`: at a score of 0.5 the classifier alone blocks few harmless prompts
MOST_WORDS = 40


@dataclass(frozen=True)
class Sample:
    """One text. `group`: texts of one group stay in one fold."""

    category: str
    text: str
    group: str
    weight: float = 1.0


class Sparse:
    """A matrix of `count` rows of features, of which only the entries that are not 0 are kept."""

    def __init__(self, rows: NDArray[np.int64], places: NDArray[np.int64], values: NDArray[np.float32], count: int) -> None:
        """`rows`, `places`, `values`: of each entry, in order of rows."""
        self._rows, self._places, self._values, self.count = rows, places, values[:, None], count
        self._order = np.argsort(places, kind="stable")
        self._sorted = places[self._order]

    def times(self, table: NDArray[np.float32]) -> NDArray[np.float32]:
        """(count, classes): the matrix times `table`."""
        return _grouped(table[self._places] * self._values, self._rows, self.count)

    def transposed_times(self, error: NDArray[np.float32]) -> NDArray[np.float32]:
        """(DIMENSIONS, classes): the transposed matrix times `error`."""
        return _grouped((error[self._rows] * self._values)[self._order], self._sorted, DIMENSIONS)


def _grouped(terms: NDArray[np.float32], keys: NDArray[np.int64], count: int) -> NDArray[np.float32]:
    """Sums of `terms` by rising `keys`."""
    sums = np.zeros((count, terms.shape[1]), np.float32)
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
    sums[keys[starts]] = np.add.reduceat(terms, starts, axis=0)
    return sums


def samples() -> list[Sample]:
    """Everything that is learned from."""
    entries = [json.loads(line) for line in DEVELOP.read_text(encoding="utf-8").splitlines()]
    found = [_developed(entry) for entry in entries if entry["obfuscation"] != "base64"]
    lines = [line for line in SENTENCES.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    found += [_written(*line.split("\t")) for line in lines]
    names = [name.strip() for name in NAMES.read_text(encoding="utf-8").splitlines() if name.strip()]
    return found + [Sample(BENIGN, name, name, NAME_WEIGHT) for name in names if name not in WEAPONS]


def _developed(entry: dict[str, str]) -> Sample:
    return Sample(entry["category"] if entry["label"] == "unsafe" else BENIGN, entry["text"], entry["source_id"] or entry["id"])


def _written(category: str, text: str) -> Sample:
    return Sample(BENIGN, text, text, NAME_WEIGHT) if category == PLAIN else Sample(category, text, text)


def features(chosen: Sequence[Sample], lists: bool) -> list[Vector]:
    return [vector_of(judged_words(plain(sample.text))[:MOST_WORDS], lists) for sample in chosen]


def sparse(vectors: Sequence[Vector]) -> Sparse:
    rows = np.repeat(np.arange(len(vectors)), [len(places) for places, _ in vectors])
    return Sparse(rows, np.concatenate([p for p, _ in vectors]), np.concatenate([v for _, v in vectors]), len(vectors))


def fit(vectors: Sequence[Vector], chosen: Sequence[Sample]) -> Weights:
    """Multinomial logistic regression with an L2 penalty, by Nesterov's accelerated descent over all rows at once.

    A method with one step size for all features, so that what stands in one text alone gets no more weight than that text earns.
    """
    matrix = sparse(vectors)
    wanted = np.eye(len(CLASSES), dtype=np.float32)[[CLASSES.index(sample.category) for sample in chosen]]
    share = np.array([sample.weight for sample in chosen], np.float32)[:, None]
    share /= share.sum()
    step = 1 / (_steepest(matrix, share) + L2)
    values = np.zeros((DIMENSIONS + 1, len(CLASSES)), np.float32)  # the last row is the bias
    ahead = values
    for number in range(STEPS):
        logits = matrix.times(ahead[:-1]) + ahead[-1]
        chance = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = (chance / chance.sum(axis=1, keepdims=True) - wanted) * share
        slope = np.concatenate([matrix.transposed_times(error) + L2 * ahead[:-1], error.sum(axis=0, keepdims=True)])
        before, values = values, ahead - step * slope
        ahead = values + number / (number + 3) * (values - before)
    bias = values[-1].copy()
    bias[CLASSES.index(BENIGN)] += BENIGN_BIAS
    return Weights(values[:-1], bias)


def _steepest(matrix: Sparse, share: NDArray[np.float32]) -> np.float32:
    """A bound of the loss's curvature: half of the largest eigenvalue of the weighted Gram matrix (power iteration), and a fifth more."""
    vector, length = np.ones((DIMENSIONS + 1, 1), np.float32), np.float32(1)
    for _ in range(10):
        product = (matrix.times(vector[:-1]) + vector[-1]) * share
        vector = np.concatenate([matrix.transposed_times(product), product.sum(axis=0, keepdims=True)])
        length = np.float32(np.linalg.norm(vector))
        vector /= length
    return np.float32(0.6) * length


def rates(scores: NDArray[np.float64], unsafe: NDArray[np.bool_]) -> str:
    cuts = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
    shown = [f"{cut}: {100 * (scores[unsafe] >= cut).mean():.1f} / {100 * (scores[~unsafe] >= cut).mean():.1f}" for cut in cuts]
    return "caught / false alarms in % at " + ", ".join(shown)


def unseen(chosen: Sequence[Sample], folds: int) -> tuple[NDArray[np.int64], dict[bool, NDArray[np.float64]]]:
    """The fold of each text (texts of one group are in one), and the verdicts of classifiers that have not seen that fold.

    Verdicts are (texts, classes), asked with the word lists (True) and without.
    """
    both = {kind: features(chosen, kind) for kind in (True, False)}
    fold = np.array([zlib.crc32(sample.group.encode()) % folds for sample in chosen])
    found = {kind: np.zeros((len(chosen), len(CLASSES))) for kind in both}
    for number in range(folds):
        inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        weights = fit([both[kind][i] for kind in both for i in inside], [chosen[i] for i in inside] * 2)
        for kind in both:
            found[kind][outside] = [probabilities(weights, both[kind][i]) for i in outside]
    return fold, found


def cross_validate(chosen: Sequence[Sample], folds: int) -> None:
    """Prints what a classifier does on texts whose group it has not seen."""
    counted = np.array([sample.weight == 1 for sample in chosen])
    unsafe = np.array([sample.category != BENIGN for sample in chosen])
    for lists, verdicts in unseen(chosen, folds)[1].items():
        scores = np.array([unsafe_scores(one).max() for one in verdicts])
        print("with" if lists else "without", "the word lists:", rates(scores[counted], unsafe[counted]))
        print("    plain prompts and names stopped at 0.5:", f"{100 * (scores[~counted] >= 0.5).mean():.2f} %")


def packed(weights: Weights) -> bytes:
    """The file: int8 with one scale per class."""
    scale = np.abs(weights.table).max(axis=0) / 127
    table = np.round(weights.table / scale).astype(np.int8)
    return save({"table": table, "scale": scale.astype(np.float32), "bias": weights.bias.astype(np.float32)})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare with the committed file and write nothing")
    parser.add_argument("--folds", type=int, default=0, help="cross-validate first (0: not)")
    options = parser.parse_args(arguments)
    chosen = samples()
    if options.folds:
        cross_validate(chosen, options.folds)
    content = packed(fit(features(chosen, True) + features(chosen, False), chosen * 2))
    digest = hashlib.sha256(content).hexdigest()
    print(f"{len(chosen)} texts, {len(content)} bytes, sha256 {digest}")
    if options.check:
        return 0 if digest == SHA256 else 1
    (ROOT / "safety" / "data" / FILE).write_bytes(content)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
