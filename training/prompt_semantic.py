"""Trains the head of `platemark.safety.semantic` over sentence embeddings: deterministic, a few minutes on one core.

    python -m training.prompt_semantic [--check] [--folds 5]

Needs the extra `safety`. Learns from the English texts of `training.prompt_classifier`, with their weights. Prints cross-validated rates
of the head together with a wording check that has not seen the texts either, writes safety/data/prompt_semantic.safetensors, and its
sha256 to put into `platemark.safety.semantic.HEAD_SHA256`.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from platemark.safety.classifier import BENIGN, CLASSES, unsafe_scores
from platemark.safety.lexicon import words_of
from platemark.safety.normalize import plain
from platemark.safety.semantic import HEAD, HEAD_SHA256, SIZE, Embedder, head_probabilities, is_english, together
from training import prompt_classifier
from training.prompt_classifier import ROOT, Sample, rates, samples

Head = tuple[NDArray[np.float32], NDArray[np.float32]]
L2, STEPS, RATE = 1e-5, 400, 0.05  # no bias for `benign`, unlike training.prompt_classifier: it is in the verdict on the wording already


def chosen_samples() -> list[Sample]:
    """What is learned from."""
    return [sample for sample in samples() if is_english(" ".join(words_of(plain(sample.text))))]


def fit(rows: NDArray[np.float32], chosen: Sequence[Sample]) -> Head:
    """Multinomial logistic regression with an L2 penalty, by Adam over all rows at once."""
    matrix = np.concatenate([rows, np.ones((len(rows), 1), np.float32)], axis=1)
    wanted = np.eye(len(CLASSES), dtype=np.float32)[[CLASSES.index(sample.category) for sample in chosen]]
    share = np.array([sample.weight for sample in chosen], np.float32)[:, None]
    share /= share.sum()
    penalty = np.r_[np.full((SIZE, 1), L2, np.float32), np.zeros((1, 1), np.float32)]
    values = np.zeros((SIZE + 1, len(CLASSES)), np.float32)
    first, second = np.zeros_like(values), np.zeros_like(values)
    for step in range(1, STEPS + 1):
        logits = matrix @ values
        chance = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = (chance / chance.sum(axis=1, keepdims=True) - wanted) * share
        slope = matrix.T @ error + penalty * values
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        values -= RATE * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return values[:-1], values[-1].copy()


def cross_validate(rows: NDArray[np.float32], chosen: Sequence[Sample], folds: int) -> None:
    """Prints what wording alone, and meaning and wording together, say of English texts whose group neither has seen."""
    everything = samples()
    fold, verdicts = prompt_classifier.unseen(everything, folds)
    place = {sample.text: number for number, sample in enumerate(everything)}
    own = np.array([place[sample.text] for sample in chosen])
    fold, wording = fold[own], verdicts[True][own]
    meaning = np.zeros_like(wording)
    for number in range(folds):
        inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        head = fit(rows[inside], [chosen[i] for i in inside])
        meaning[outside] = [head_probabilities(head, rows[i]) for i in outside]
    counted = np.array([sample.weight == 1 for sample in chosen])
    unsafe = np.array([sample.category != BENIGN for sample in chosen])
    for name, verdicts in (("wording", wording), ("together", together(meaning, wording))):
        scores = np.array([unsafe_scores(one).max() for one in verdicts])
        print(f"{name}:", rates(scores[counted], unsafe[counted]))
        print("    plain prompts and names stopped at 0.5:", f"{100 * (scores[~counted] >= 0.5).mean():.2f} %")


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
