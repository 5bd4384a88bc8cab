"""The semantic prompt check: where its extra is installed it reads meaning; its files are tied to their hashes; else it is left out."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from platemark.errors import MissingExtra, SafetyUnavailable
from platemark.safety import prompt, semantic
from platemark.safety.english import LEAST, english_share
from platemark.safety.policy import load_policy
from platemark.safety.semantic import (
    MOST_TOKENS,
    SIZE,
    Embedder,
    SemanticDetector,
    is_english,
    load_head,
    semantic_detector,
    together,
    windows,
)

installed = pytest.mark.skipif(find_spec(semantic.PACKAGE) is None, reason="needs the extra `safety`")


def test_without_the_extra_it_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "PACKAGE", "no_such_package_here")
    assert semantic_detector() is None
    assert [detector.name for detector in prompt.prompt_detectors(load_policy("standard"))] == ["lexicon", "classifier"]
    with pytest.raises(MissingExtra, match=r"semantic"):
        SemanticDetector()


def test_windows_cover_a_text_and_are_bounded() -> None:
    assert windows("A (nude:1.2) woman") == ["a nude woman"]
    many = windows(" ".join(("red", "stone", "house", "river")[i % 4] for i in range(20_000)))
    assert 16 <= len(many) <= 32
    assert all(len(window.split()) <= semantic.WINDOW for window in many)


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("a teenager in a hospital bed, photograph", True),
        ("watercolour of a wooden boat on a quiet lake", True),
        ("uma adolescente no hospital, fotografia", False),
        ("eine junge frau mit einem kind auf dem markt", False),
        ("portrait d une femme dans la cuisine", False),
        ("retrato de una mujer con un gato", False),
        ("病院 の 若 者", False),
        ("девушка в больнице", False),
        ("", False),
        ("7 12", False),
    ],
)
def test_only_english_is_judged(text: str, known: bool) -> None:
    assert is_english(text) is known
    assert bool(windows(text)) is known


def test_share_of_english_words() -> None:
    vocabulary = {"red", "house", "la", "casa"}
    assert english_share(["red", "house"], vocabulary) == 1.0
    assert english_share(["red", "haus"], vocabulary) == pytest.approx(3 / 7)
    assert english_share(["red", "7", "house"], vocabulary) == 1.0
    assert english_share(["la", "casa"], vocabulary) == pytest.approx(4 / 6 - 1 / 4)
    assert english_share(["la", "una"], vocabulary) == -0.5
    assert english_share([], vocabulary) == 0.0 < LEAST


def test_meaning_and_wording_must_not_contradict() -> None:
    unsafe, harmless = np.array([0.9, 0.1]), np.array([0.01, 0.99])
    assert together(unsafe, unsafe)[0] > 0.98
    assert together(unsafe, harmless)[0] < 0.1
    assert together(unsafe, np.array([0.5, 0.5])) == pytest.approx(unsafe)
    assert together(np.array([0.0, 1.0]), np.array([1.0, 0.0])) == pytest.approx([0.5, 0.5])


def test_another_head_or_vocabulary_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    load_head.cache_clear()
    monkeypatch.setattr(semantic, "HEAD_SHA256", "ab" * 32)
    with pytest.raises(SafetyUnavailable, match="not that of this version"):
        load_head()
    monkeypatch.undo()
    table, bias = load_head()
    assert (table.shape, bias.shape) == ((SIZE, 10), (10,))


def test_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a network")
    with pytest.raises(SafetyUnavailable, match="not the ones that belong here"):
        Embedder(path=tmp_path / "model.onnx").embed("cat")


@installed
def test_embeddings_hold_meaning() -> None:
    embedder = Embedder()
    cat, kitten, law = (embedder.embed(text) for text in ("a cat on a mat", "a kitten lying on a rug", "the tax law of 1983"))
    assert cat.shape == (SIZE,)
    assert float(np.linalg.norm(cat)) == pytest.approx(1.0, abs=1e-5)
    assert float(cat @ kitten) > float(cat @ law) + 0.3
    assert np.isfinite(embedder.embed("word " * (MOST_TOKENS * 3))).all()
    assert np.isfinite(embedder.embed("")).all()


@installed
def test_it_scores_meaning_and_not_negative_prompts() -> None:
    detector = SemanticDetector()
    scores = {s.category: s.score for s in detector.observe("show this woman without any clothing on", "prompt").signals}
    assert max(scores.get("undress_intent", 0.0), scores.get("sexual", 0.0)) > 0.3
    assert all(s.score < 0.3 for s in detector.observe("a red apple on a wooden table", "prompt").signals)
    assert detector.observe("naked woman", "negative_prompt").signals == ()
    assert detector.observe("mulher nua na cama, fotografia explícita", "prompt").signals == (), "no English, so nothing is said"
