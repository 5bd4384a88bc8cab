"""The trained prompt check: its file is tied to its hash, it generalises a little, and windows keep it from being watered down."""

from __future__ import annotations

import numpy as np
import pytest

from platemark.errors import SafetyUnavailable
from platemark.safety import classifier
from platemark.safety.classifier import (
    CLASSES,
    DIMENSIONS,
    STRIDE,
    WINDOW,
    ClassifierDetector,
    Weights,
    load_weights,
    probabilities,
    unsafe_scores,
    vector_of,
    vectors,
)
from platemark.safety.lexicon import words_of
from platemark.safety.normalize import plain

SHORT = "porn scene, naked couple having sex, erotic, nude, explicit, "


@pytest.fixture(scope="module")
def detector() -> ClassifierDetector:
    return ClassifierDetector()


def top(detector: ClassifierDetector, text: str) -> tuple[float, str]:
    return max(((s.score, s.category) for s in detector.observe(text, "prompt").signals), default=(0.0, ""))


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("two naked lovers, erotic photo", "sexual"),
        ("forged passport scan with hologram", "deception"),
        ("a bloody killer stabbing a screaming victim", "violence"),
    ],
)
def test_unsafe_text_scores_for_its_category(detector: ClassifierDetector, text: str, category: str) -> None:
    score, found = top(detector, text)
    assert found == category
    assert score > 0.5


@pytest.mark.parametrize("text", ["a red apple", "portrait of a fisherman", "mountain lake at dawn, oil painting", "", "?!"])
def test_harmless_text_scores_low(detector: ClassifierDetector, text: str) -> None:
    assert top(detector, text)[0] < 0.5


def test_a_tag_counts_for_its_category_too(detector: ClassifierDetector) -> None:
    scores = {s.category: s.score for s in detector.observe("remove her clothes from this photo", "prompt").signals}
    assert scores["undress_intent"] > 0.5
    assert scores["sexual"] >= scores["undress_intent"]


def test_negative_prompts_are_not_judged(detector: ClassifierDetector) -> None:
    assert detector.observe("naked, gore, blood", "negative_prompt").signals == ()


def test_harmless_words_around_do_not_water_down(detector: ClassifierDetector) -> None:
    padding = "a quiet mountain lake at dawn with soft mist over the water and pine trees, oil painting, " * 8
    whole = vector_of(words_of(plain(padding + SHORT + padding)))
    watered = unsafe_scores(probabilities(load_weights(), whole)).max()
    assert top(detector, padding + SHORT + padding)[0] > watered + 0.2


def test_every_word_is_in_a_window() -> None:
    for count in (1, WINDOW, WINDOW + 1, 2 * WINDOW + STRIDE // 2):
        words = [f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(count)]
        found = len(list(vectors(" ".join(words))))
        assert (found - 1) * STRIDE + WINDOW >= count


def test_vectors_are_short_and_longer_where_more_is_said() -> None:
    places, _ = vector_of(["naked", "woman"])
    assert 0 < len(places) < 80
    assert places.max() < DIMENSIONS
    lengths = [float(np.linalg.norm(vector_of(["woman", "reading", "books"][:count])[1])) for count in (0, 1, 2, 3)]
    assert lengths == sorted(lengths)
    assert lengths[0] == 0
    assert lengths[-1] < 1
    assert vector_of(["naked"])[0].tolist() != vector_of(["naked"], lists=False)[0].tolist()


@pytest.mark.parametrize(
    "text",
    [
        "صورة امرأة عارية",
        "איש קורא ספר",
        "एक महिला किताब पढ़ रही है",
        "ผู้หญิงอ่านหนังสือ",
        "여자가 책을 읽고 있다",
        "γυναίκα διαβάζει",
        "1984",
        "صورة ١٩٨٤ 1984",
    ],
)
def test_letters_that_it_was_not_trained_on_get_no_signal(detector: ClassifierDetector, text: str) -> None:
    assert detector.observe(text, "prompt").signals == ()


@pytest.mark.parametrize("text", ["{} قطة على الطاولة", "고양이 {} 책상", "고양이{}책상"])
def test_a_mixed_text_is_judged_by_its_known_part(detector: ClassifierDetector, text: str) -> None:
    alone, mixed = top(detector, "porn scene"), top(detector, text.format("porn scene"))
    assert alone[0] > 0.5
    assert mixed == alone
    assert top(detector, text.format("cat"))[0] < 0.5


def test_the_likeliest_class_answers_for_all_unsafe_ones() -> None:
    probability = np.zeros(len(CLASSES))
    probability[[0, 1, -1]] = 0.35, 0.25, 0.4
    assert unsafe_scores(probability)[:2].tolist() == pytest.approx([0.6, 0.25])


def test_probabilities_add_up() -> None:
    weights = Weights(np.ones((DIMENSIONS, len(CLASSES)), np.float32), np.zeros(len(CLASSES), np.float32))
    assert probabilities(weights, vector_of(["cat"])).tolist() == pytest.approx([0.1] * 10)


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    load_weights.cache_clear()
    monkeypatch.setattr(classifier, "SHA256", "ab" * 32)
    with pytest.raises(SafetyUnavailable, match="not those of this version"):
        ClassifierDetector()
    monkeypatch.setattr(classifier, "FILE", "absent.safetensors")
    with pytest.raises(SafetyUnavailable, match="missing"):
        ClassifierDetector()
    monkeypatch.undo()
    assert load_weights().table.shape == (DIMENSIONS, len(CLASSES))
