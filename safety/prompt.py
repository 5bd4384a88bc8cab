"""The prompt check by words: the policy's terms, the built-in word lists, named persons, and rules for what several words say together.

It reads words, not meaning: it misses what is said without the words, and languages that it has no list for. Findings name the policy's
own term or rule, never the user's text. An empty prompt is the caller's to refuse. Knows nothing of pictures or actions.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from platemark.safety import lexicon
from platemark.safety.classifier import ClassifierDetector
from platemark.safety.intent import Rule, base_rules, holding
from platemark.safety.lexicon import Entry, Finder, Hit, phrase_entries, words_of
from platemark.safety.normalize import Views, encoded, views
from platemark.safety.persons import LABEL as NAMED
from platemark.safety.persons import person_entries
from platemark.safety.policy_model import BASE_CATEGORIES, TAGS, Policy, PromptRule
from platemark.safety.semantic import semantic_detector
from platemark.safety.signals import Observation, PromptDetector, PromptKind, Signal

ENCODED = "deception"  # the category of a text that is written so as not to be read
_OWN, _SPARED = "policy.", "policy_exceptions."
_ADULT = 18
_SOFT = ("violence", "hate")  # their terms mean nothing where memory, news of the past or old art are spoken of right there
_PAST, _PAST_REACH = ("remember", "art"), 6
_SPELLED = 5  # letters of a term that is looked for inside a longer spelled-out run


@dataclass(frozen=True)
class _Reading:
    """One reading of a text and what was found in it, less what stands inside an exception."""

    text: str
    hits: tuple[Hit, ...]


class LexiconDetector:
    """Words, names and rules. Stateless after construction, so safe to share between threads."""

    name = "lexicon"

    def __init__(self, policy: Policy) -> None:
        self.model_sha256 = lexicon.lexicon_sha256()
        self._rules = base_rules()
        self._base, self._own = lexicon.base_finder(), Finder(_own_entries(policy))
        self._without_base = {name for name, rule in policy.prompt_rules.items() if not rule.base_lexicon}
        known = dict.fromkeys((*policy.prompt_rules, *BASE_CATEGORIES, "weapon"))
        self.categories = (*known, *(tag for tag in TAGS if tag != "face"))

    def observe(self, text: str, kind: PromptKind) -> Observation:
        """Every term (`policy_term`, `lexicon_term`), rule (`intent_rule`), name (`named_person`) and tag found in the text."""
        began = time.perf_counter()
        hidden = encoded(text)
        seen = [views(one) for one in (text, *hidden)]
        readings = [reading for one in seen for reading in self._readings(one)]
        found = [Signal(ENCODED, "encoded_text", 1.0, "base64 or hexadecimal")] if hidden else []
        found += [signal for reading in readings for signal in self._by_word(reading, kind)]
        found += [signal for one in seen for signal in self._spelled(one.runs)]
        if kind == "prompt":
            found += [signal for reading in readings for signal in self._by_rule(reading)]
        kept = self._wanted(list(dict.fromkeys(found)))
        return Observation(self.name, self.model_sha256, tuple(kept), (time.perf_counter() - began) * 1000)

    def _readings(self, seen: Views) -> list[_Reading]:
        readings = [_Reading(text, _open((*self._base.find(text), *self._own.find(text)))) for text in seen.texts]
        if seen.collapsed:
            readings.append(_Reading(seen.collapsed, _open(lexicon.collapsed_finder().find(seen.collapsed))))
        return readings

    def _by_word(self, reading: _Reading, kind: PromptKind) -> Iterable[Signal]:
        past = [hit.start for hit in reading.hits if hit.label in _PAST]
        for hit in reading.hits:
            group, _, category = hit.label.partition(".")
            if group == "terms" and category in _SOFT and any(abs(hit.start - place) <= _PAST_REACH for place in past):
                continue
            if group == "terms":
                yield Signal(category, "lexicon_term", 1.0, hit.phrase)
            elif group == "policy":
                yield Signal(category, "policy_term", 1.0, hit.phrase)
            elif group == "negative" and kind == "negative_prompt":
                yield Signal(category, "negative_intent", 1.0, hit.phrase)
            elif hit.label == NAMED:
                yield Signal(NAMED, "named_person", 1.0, hit.phrase)

    def _by_rule(self, reading: _Reading) -> Iterable[Signal]:
        hits = (*reading.hits, *_ages(reading))
        for rule in holding(self._rules, hits):
            yield from _signals_of(rule)
        yield from (Signal("minor_term", "lexicon_term", 1.0, hit.phrase) for hit in hits if hit.label == "minor")

    def _spelled(self, runs: Iterable[str]) -> Iterable[Signal]:
        """One-word terms inside words that were spelled letter by letter without a gap between them."""
        for run in runs:
            for word, category, phrase in _spellable():
                if word in run:
                    yield Signal(category, "lexicon_term", 1.0, phrase)

    def _wanted(self, found: Sequence[Signal]) -> list[Signal]:
        """Without the built-in findings of categories whose rule switches them off, unless a locked rule may stand on them."""
        tagged = any(signal.category in TAGS for signal in found)
        if tagged or not self._without_base:
            return list(found)
        return [signal for signal in found if signal.category not in self._without_base or signal.code == "policy_term"]


def prompt_detectors(policy: Policy) -> tuple[PromptDetector, ...]:
    """The prompt detectors that are installed. Raises `SafetyUnavailable` where a built-in one is broken."""
    extra = semantic_detector()
    return (LexiconDetector(policy), ClassifierDetector(), *((extra,) if extra else ()))


def _own_entries(policy: Policy) -> list[Entry]:
    entries = person_entries(policy.people.named_persons)
    for name, rule in policy.prompt_rules.items():
        entries += _phrases(name, rule)
    return entries


def _phrases(name: str, rule: PromptRule) -> list[Entry]:
    return phrase_entries(_OWN + name, rule.terms) + phrase_entries(_SPARED + name, rule.exceptions)


def _signals_of(rule: Rule) -> Iterable[Signal]:
    for category in (rule.category, *rule.tags):
        yield Signal(category, "intent_rule", 1.0, rule.name)


def _open(hits: Sequence[Hit]) -> tuple[Hit, ...]:
    """The hits that no exception covers: a term by those of its own category, a word of a rule by any."""
    covers: dict[str, set[int]] = {}
    for hit in hits:
        group, _, category = hit.label.partition(".")
        if group in ("exceptions", "policy_exceptions"):
            for name in (category, ""):
                covers.setdefault(name, set()).update(range(hit.start, hit.end))
    if not covers:
        return tuple(hits)
    return tuple(hit for hit in hits if not _covered(hit, covers))


def _covered(hit: Hit, covers: dict[str, set[int]]) -> bool:
    group, _, category = hit.label.partition(".")
    if group in ("exceptions", "policy_exceptions", "negative") or hit.label == NAMED:
        return False
    return any(place in covers.get(category, ()) for place in range(hit.start, hit.end))


def _ages(reading: _Reading) -> list[Hit]:
    """Ages under eighteen ("12 years old") as words for a child."""
    tokens, found = words_of(reading.text), []
    for hit in reading.hits:
        before = tokens[hit.start - 1] if hit.label == "years" and hit.start else ""
        if before.isdecimal() and int(before[:4]) < _ADULT:
            found.append(Hit("minor", hit.language, hit.start - 1, hit.end, f"under {_ADULT}"))
    return found


@cache
def _spellable() -> tuple[tuple[str, str, str], ...]:
    """Word, category and phrase of the one-word terms that are looked for inside spelled-out runs."""
    alone = [entry for entry in lexicon.base_entries() if len(entry.words) == 1 and entry.words[0][0] != "*"]
    found = [
        (entry.words[0].strip("*"), entry.label.partition(".")[2], entry.phrase) for entry in alone if entry.label.startswith("terms.")
    ]
    return (*(one for one in found if len(one[0]) >= _SPELLED), ("nude", "sexual", "nude"), ("naked", "sexual", "naked"))
