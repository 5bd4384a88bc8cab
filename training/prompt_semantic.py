"""Trains the head of `platemark.safety.semantic` over sentence embeddings: deterministic, a few minutes on one core.

    python -m training.prompt_semantic [--check] [--folds 5]

Needs the extra `safety`. Learns from the texts of `training.prompt_classifier`, less the emoji names beyond every fourth. Prints
cross-validated rates, writes safety/data/prompt_semantic.safetensors, and its sha256 to put into `platemark.safety.semantic.HEAD_SHA256`.
"""

from __future__ import annotations

import argparse
import hashlib
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from platemark.safety.classifier import BENIGN, CLASSES, unsafe_scores
from platemark.safety.normalize import plain
from platemark.safety.semantic import HEAD, HEAD_SHA256, SIZE, Embedder, head_probabilities
from training.prompt_classifier import ROOT, Sample, rates, samples

Head = tuple[NDArray[np.float32], NDArray[np.float32]]
L2, STEPS, RATE = 1e-4, 400, 0.05
BENIGN_BIAS = 2.4  # as in training.prompt_classifier
_EVERY = 4


def chosen_samples() -> list[Sample]:
    found = samples()
    return [sample for number, sample in enumerate(found) if sample.weight == 1 or number % _EVERY == 0]


def fit(rows: NDArray[np.float32], chosen: Sequence[Sample]) -> Head:
    """Multinomial logistic regression with an L2 penalty, by Adam over all rows at once."""
    matrix = np.concatenate([rows, np.ones((len(rows), 1), np.float32)], axis=1)
    wanted = np.eye(len(CLASSES), dtype=np.float32)[[CLASSES.index(sample.category) for sample in chosen]]
    values = np.zeros((SIZE + 1, len(CLASSES)), np.float32)
    first, second = np.zeros_like(values), np.zeros_like(values)
    for step in range(1, STEPS + 1):
        logits = matrix @ values
        chance = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = (chance / chance.sum(axis=1, keepdims=True) - wanted) / len(rows)
        slope = matrix.T @ error + L2 * values
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        values -= RATE * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    bias = values[-1].copy()
    bias[CLASSES.index(BENIGN)] += BENIGN_BIAS
    return values[:-1], bias


def cross_validate(rows: NDArray[np.float32], chosen: Sequence[Sample], folds: int) -> None:
    """Prints what a head does on texts whose group it has not seen, names left out."""
    fold = np.array([zlib.crc32(sample.group.encode()) % folds for sample in chosen])
    scores = np.zeros(len(chosen))
    for number in range(folds):
        inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        head = fit(rows[inside], [chosen[i] for i in inside])
        scores[outside] = [unsafe_scores(head_probabilities(head, rows[i])).max() for i in outside]
    counted = np.array([sample.weight == 1 for sample in chosen])
    latin = np.array([sample.text.isascii() for sample in chosen])
    unsafe = np.array([sample.category != BENIGN for sample in chosen])
    print("plain letters:", rates(scores[counted & latin], unsafe[counted & latin]))
    print("others:", rates(scores[counted & ~latin], unsafe[counted & ~latin]))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare with the committed file and write nothing")
    parser.add_argument("--folds", type=int, default=0, help="cross-validate first (0: not)")
    options = parser.parse_args(arguments)
    chosen, embedder = chosen_samples(), Embedder()
    rows = np.stack([embedder.embed(plain(sample.text)) for sample in chosen])
    if options.folds:
        cross_validate(rows, chosen, options.folds)
    table, bias = fit(rows, chosen)
    content = save({"table": table.astype(np.float16), "bias": bias})
    digest = hashlib.sha256(content).hexdigest()
    print(f"{len(chosen)} texts, {len(content)} bytes, sha256 {digest}")
    if options.check:
        return 0 if digest == HEAD_SHA256 else 1
    (ROOT / "safety" / "data" / HEAD).write_bytes(content)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
