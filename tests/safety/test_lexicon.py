"""The word lists load, find what they should in one pass, and rules need their words close together and in one language."""

from __future__ import annotations

import pytest

from platemark.safety import lexicon
from platemark.safety.intent import Rule, base_rules, holding
from platemark.safety.lexicon import LANGUAGES, Entry, Finder, Hit, base_entries, base_finder, phrase_entries, words_of
from platemark.safety.normalize import plain
from platemark.safety.persons import base_persons

CATEGORIES = {"sexual", "violence", "hate", "self_harm", "minors", "deception", "weapon"}


def labels(text: str) -> set[str]:
    return {hit.label for hit in base_finder().find(plain(text))}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_every_category(language: str) -> None:
    terms = {entry.label.partition(".")[2] for entry in base_entries() if entry.language == language and entry.label.startswith("terms.")}
    assert terms == CATEGORIES


def test_rules_name_lists_that_exist() -> None:
    known = {entry.label for entry in base_entries()}
    used = {name for rule in base_rules() for names in (*rule.near, *rule.with_, rule.unless, rule.beside) for name in names}
    assert used <= known
    assert {rule.category for rule in base_rules()} == CATEGORIES


@pytest.mark.parametrize(
    ("pattern", "found", "missed"),
    [
        ("bomb", "two bombs", "bombay"),
        ("porn*", "pornographic", "a corn"),
        ("*bombe", "Rohrbombe", "Bombay"),
        ("*rassistisch*", "antirassistische", "Rasse"),
        ("butterfly knife", "butterfly knives", "butterfly and knife"),
        ("炸弹", "一颗炸弹!", "炸鸡"),
    ],
)
def test_patterns(pattern: str, found: str, missed: str) -> None:
    words = tuple(pattern) if not pattern.isascii() else tuple(pattern.split())
    finder = Finder([Entry(words, "x", "en", pattern)])
    assert [hit.phrase for hit in finder.find(plain(found))] == [pattern]
    assert finder.find(plain(missed)) == []


def test_operators_phrases_are_literal_and_plural() -> None:
    finder = Finder(phrase_entries("policy.x", ["Blue Café", "c++", "!!"]))
    assert [hit.phrase for hit in finder.find(plain("two BLUE CAFÉS"))] == ["Blue Café"]
    assert finder.find(plain("bluecafe")) == []


def test_a_rule_needs_its_words_near_each_other() -> None:
    rule = Rule("r", "sexual", near=(("a",), ("b",)), window=2, unless=("u",), reach=4)

    def holds(*hits: tuple[str, int], language: str = "en") -> bool:
        return bool(holding([rule], [Hit(name, language, at, at + 1, name) for name, at in hits]))

    assert holds(("a", 0), ("b", 3))
    assert holds(("b", 0), ("a", 1))
    assert not holds(("a", 0), ("b", 4))
    assert not holds(("a", 0), ("b", 0)), "one word is not two"
    assert not holds(("a", 0), ("b", 1), ("u", 3))
    assert holds(("a", 0), ("b", 1), ("u", 9))
    assert holds(("a", 0), ("b", 7), language="ja"), "characters are not words"
    assert not holding([rule], [Hit("a", "de", 0, 1, "a"), Hit("b", "en", 1, 2, "b")])


def test_every_place_of_a_rule_is_tried_before_it_is_spared() -> None:
    rule = Rule("r", "sexual", near=(("a",),), unless=("u",), reach=3)
    assert holding([rule], [Hit("a", "en", 0, 1, ""), Hit("u", "en", 1, 2, ""), Hit("a", "en", 20, 21, "")])


def test_words_of_mixed_scripts() -> None:
    assert words_of("red 猫 ab猫犬c") == ["red", "猫", "ab", "猫", "犬", "c"]


def test_russian_stems_survive_the_look_alikes() -> None:
    assert "terms.sexual" in labels("порнографическая сцена")
    assert "terms.sexual" in labels("порно")


def test_each_stem_of_a_russian_phrase_may_look_latin_or_not() -> None:
    assert "terms.weapon" in labels("ракетная установка во дворе"), "the second word alone looks Latin"
    assert "terms.violence" in labels("оторванная рука")


@pytest.mark.parametrize("text", ["Mann mit Pistole in der Hand", "pistolet avec silencieux", "kamikaze avant un attentat"])
def test_what_spares_one_language_does_not_spare_another(text: str) -> None:
    """An exception of one word ("pistole" is a coin in English) would hide what the word means elsewhere."""
    found = base_finder().find(plain(text))
    terms = [hit for hit in found if hit.label in ("gun", "terms.weapon", "terms.violence")]
    spared = {hit.label.partition(".")[2]: hit for hit in found if hit.label.startswith("exceptions.")}
    assert terms
    assert not {"weapon", "violence"} & set(spared)


def test_persons_have_names_and_no_duplicates() -> None:
    names = [person.name for person in base_persons()]
    assert len(set(names)) == len(names) > 40


def test_the_hash_is_over_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    before = lexicon.lexicon_sha256()
    lexicon.lexicon_sha256.cache_clear()
    monkeypatch.setattr(lexicon, "LANGUAGES", LANGUAGES[:-1])
    assert lexicon.lexicon_sha256() != before
    lexicon.lexicon_sha256.cache_clear()
