"""The prompt check: the policy's terms, the built-in word lists, and rules for what only two words together say.

It reads words, not meaning: it misses what is said without the words, and languages that it has no list for. Findings name the
policy's own term or rule, never the user's text. An empty prompt is the caller's to refuse. Knows nothing of pictures or actions.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files

from platemark.safety.lexicon import Lexicon, Phrases, base_lexicon, found_in, near
from platemark.safety.normalize import Views, views
from platemark.safety.policy_model import Policy, PromptRule
from platemark.safety.signals import Observation, PromptDetector, PromptKind, Signal


@dataclass(frozen=True)
class _Terms:
    """What one category looks for. `code`: `policy_term`, `lexicon_term` or `negative_intent`."""

    category: str
    code: str
    terms: Phrases
    exceptions: Phrases

    def signals(self, seen: Views) -> list[Signal]:
        open_text = Views(tuple(self.exceptions.blank(text) for text in seen.texts), seen.runs)
        return [Signal(self.category, self.code, 1.0, term) for term in found_in(self.terms, open_text)]


class LexiconDetector:
    """Words and rules. Stateless after construction, so safe to share between threads."""

    name = "lexicon"

    def __init__(self, policy: Policy, lexicon: Lexicon | None = None) -> None:
        words = lexicon or base_lexicon()
        self.model_sha256 = hashlib.sha256(files("platemark.safety").joinpath("data", "lexicon.toml").read_bytes()).hexdigest()
        rules = policy.prompt_rules
        names = dict.fromkeys((*rules, *words.categories))
        self.categories = (*names, "undress_intent", "minor_term")
        self._terms = [terms for name in names for terms in _terms(name, rules.get(name), words)]
        self._negative = [
            _Terms(name, "negative_intent", Phrases(entry.negative_terms), Phrases(())) for name, entry in words.categories.items()
        ]
        self._lists = {name: Phrases(phrases) for name, phrases in words.lists.items()}
        self._rules = words.rules
        everywhere = [entry.exceptions for entry in words.categories.values()] + [rule.exceptions for rule in rules.values()]
        self._harmless = Phrases(phrase for group in everywhere for phrase in group)

    def observe(self, text: str, kind: PromptKind) -> Observation:
        """Every term (`policy_term`, `lexicon_term`), rule (`intent_rule`) and tag found in the text."""
        began = time.perf_counter()
        seen = views(text)
        found = [signal for terms in self._terms for signal in terms.signals(seen)]
        found += self._by_rule(seen) if kind == "prompt" else [s for terms in self._negative for s in terms.signals(seen)]
        return Observation(self.name, self.model_sha256, tuple(_once(found)), (time.perf_counter() - began) * 1000)

    def _by_rule(self, seen: Views) -> list[Signal]:
        texts = [self._harmless.blank(text) for text in seen.texts]
        lists = self._lists
        hits = [r for r in self._rules if any(near(lists[r.first], lists[r.second], r.window, text) for text in texts)]
        found = [Signal(rule.category, "intent_rule", 1.0, rule.name) for rule in hits]
        found += [Signal("undress_intent", "intent_rule", 1.0, r.name) for r in hits if r.name in ("undress_intent", "nudify_intent")]
        minors = [hit for text in texts for hit in lists["minor"].find(text)]
        return found + [Signal("minor_term", "lexicon_term", 1.0, term) for term in dict.fromkeys(minors)]


def prompt_detectors(policy: Policy) -> tuple[PromptDetector, ...]:
    """The prompt detectors that are installed. Raises `SafetyUnavailable` where a built-in one is broken."""
    return (LexiconDetector(policy),)


def _terms(name: str, rule: PromptRule | None, words: Lexicon) -> list[_Terms]:
    entry = words.categories.get(name) if rule is None or rule.base_lexicon else None
    own_exceptions, own_terms = (rule.exceptions, rule.terms) if rule else ((), ())
    exceptions = Phrases((*own_exceptions, *(entry.exceptions if entry else ())))
    own = [_Terms(name, "policy_term", Phrases(own_terms), exceptions)] if own_terms else []
    base = [_Terms(name, "lexicon_term", Phrases(entry.terms), exceptions)] if entry else []
    return own + base


def _once(signals: Iterable[Signal]) -> list[Signal]:
    return list(dict.fromkeys(signals))
