"""The recipe of the prompt classifier: sums, packing, and what it may and may not learn from."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load

from platemark.safety.classifier import BENIGN, CLASSES, DIMENSIONS, Weights, probabilities
from training import prompt_classifier as recipe
from training.prompt_classifier import Sample


def test_learns_from_the_developing_half_and_its_own_sentences_only() -> None:
    assert recipe.DEVELOP.name == "develop.jsonl"
    assert "heldout" not in recipe.SENTENCES.read_text(encoding="utf-8")
    found = recipe.samples()
    assert {sample.category for sample in found} == set(CLASSES)
    assert len({sample.text for sample in found if sample.weight == 1}) > 1000


def test_plain_prompts_count_less_and_are_there_in_every_language() -> None:
    plain = [line.split("\t")[1] for line in recipe.SENTENCES.read_text(encoding="utf-8").splitlines() if line.startswith("plain\t")]
    weights = {sample.text: sample.weight for sample in recipe.samples() if sample.category == BENIGN}
    assert {weights[text] for text in plain} == {recipe.NAME_WEIGHT}
    for text in ("person", "Menschen", "une personne", "una mujer", "un uomo", "uma pessoa", "человек", "一个人", "人々"):
        assert text in plain


def test_sparse_sums_equal_dense_ones() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    vectors = [(np.sort(rng.choice(DIMENSIONS, 5, replace=False)), rng.normal(size=5).astype(np.float32)) for _ in range(4)]
    dense = np.zeros((4, DIMENSIONS), np.float32)
    for row, (places, values) in enumerate(vectors):
        dense[row, places] = values
    matrix = recipe.sparse(vectors)
    table, error = rng.normal(size=(DIMENSIONS, 3)).astype(np.float32), rng.normal(size=(4, 3)).astype(np.float32)
    np.testing.assert_allclose(matrix.times(table), dense @ table, atol=1e-5)
    np.testing.assert_allclose(matrix.transposed_times(error), dense.T @ error, atol=1e-5)


@pytest.fixture(scope="module")
def tiny() -> Weights:
    chosen = [Sample("sexual", "naked couple", "a"), Sample(BENIGN, "green apple", "b"), Sample("weapon", "loaded pistol", "c")]
    return recipe.fit(recipe.features(chosen, False), chosen)


def test_a_fit_tells_its_own_texts_apart(tiny: Weights) -> None:
    for text, category in (("naked couple", "sexual"), ("green apple", BENIGN), ("loaded pistol", "weapon")):
        (vector,) = recipe.features([Sample(category, text, "x")], False)
        assert CLASSES[int(probabilities(tiny, vector).argmax())] == category


def test_packing_keeps_the_scores(tiny: Weights) -> None:
    content = recipe.packed(tiny)
    assert content == recipe.packed(tiny)
    assert len(content) < 1 << 20
    found = load(content)
    assert found["table"].dtype == np.int8
    np.testing.assert_allclose(found["table"] * found["scale"], tiny.table, atol=float(np.abs(tiny.table).max()) / 127)


def test_rates_are_shares_of_each_side() -> None:
    text = recipe.rates(np.array([0.9, 0.1, 0.6, 0.2]), np.array([True, True, False, False]))
    assert "0.5: 50.0 / 50.0" in text
