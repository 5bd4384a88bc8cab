"""The prompt check: the policy's terms, the built-in word lists, and rules for what only two words together say.

It reads words, not meaning: it misses what is said without the words, and languages that it has no list for. Findings name the
policy's own term or rule, never the user's text. An empty prompt is the caller's to refuse. Knows nothing of pictures.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from platemark.safety.decision import Action, Reason
from platemark.safety.lexicon import Lexicon, Phrases, base_lexicon, found_in, near
from platemark.safety.normalize import Views, views
from platemark.safety.policy import Policy, PromptRule

DETECTOR = "prompt_words"


@dataclass(frozen=True)
class _Terms:
    """What one category looks for. `code`: `policy_term` or `lexicon_term`."""

    category: str
    code: str
    action: Action
    terms: Phrases
    exceptions: Phrases

    def reasons(self, seen: Views, action: Action) -> list[Reason]:
        open_text = Views(tuple(self.exceptions.blank(text) for text in seen.texts), seen.runs)
        return [_reason(self.category, self.code, action, term) for term in found_in(self.terms, open_text)]


@dataclass(frozen=True)
class _Near:
    category: str
    name: str
    action: Action
    first: Phrases
    second: Phrases
    window: int


class PromptCheck:
    """The prompt check of one policy. Stateless after construction, so safe to share between threads."""

    def __init__(self, policy: Policy, lexicon: Lexicon | None = None) -> None:
        words = lexicon or base_lexicon()
        rules = policy.prompt_rules
        self.categories = tuple(rules)
        self._terms = [terms for name, rule in rules.items() for terms in _terms(name, rule, words)]
        self._negative = [
            _Terms(name, "intent_rule", rule.action, Phrases(words.categories[name].negative_terms), Phrases(()))
            for name, rule in rules.items()
            if rule.base_lexicon and name in words.categories
        ]
        lists = {name: Phrases(phrases) for name, phrases in words.lists.items()}
        self._near = [
            _Near(rule.category, rule.name, rules[rule.category].action, lists[rule.first], lists[rule.second], rule.window)
            for rule in words.rules
            if rule.category in rules and rules[rule.category].base_lexicon
        ]
        # A rule may cross categories, so a phrase that is harmless in any of them is no evidence for it.
        everywhere = [entry.exceptions for entry in words.categories.values()] + [rule.exceptions for rule in rules.values()]
        self._harmless = Phrases(phrase for group in everywhere for phrase in group)

    def prompt_reasons(self, prompt: str) -> list[Reason]:
        """Every finding in the prompt: terms (`policy_term`, `lexicon_term`) and rules (`intent_rule`)."""
        seen = views(prompt)
        found = [reason for terms in self._terms for reason in terms.reasons(seen, terms.action)]
        texts = [self._harmless.blank(text) for text in seen.texts]
        rules = [rule for rule in self._near if any(near(rule.first, rule.second, rule.window, text) for text in texts)]
        return _once(found + [_reason(rule.category, "intent_rule", rule.action, rule.name) for rule in rules])

    def negative_reasons(self, negative_prompt: str) -> list[Reason]:
        """Every finding in the negative prompt.

        What it names is kept out of the picture, so a listed term there is flagged at most; a word whose absence asks for the category
        ("clothes") has the category's full action.
        """
        seen = views(negative_prompt)
        found = [reason for terms in self._terms for reason in terms.reasons(seen, min(terms.action, Action.FLAG, key=lambda a: a.rank))]
        return _once(found + [reason for terms in self._negative for reason in terms.reasons(seen, terms.action)])


def _terms(name: str, rule: PromptRule, words: Lexicon) -> list[_Terms]:
    entry = words.categories.get(name) if rule.base_lexicon else None
    exceptions = Phrases((*rule.exceptions, *(entry.exceptions if entry else ())))
    own = [_Terms(name, "policy_term", rule.action, Phrases(rule.terms), exceptions)] if rule.terms else []
    base = [_Terms(name, "lexicon_term", rule.action, Phrases(entry.terms), exceptions)] if entry else []
    return own + base


def _reason(category: str, code: str, action: Action, evidence: str) -> Reason:
    return Reason(category=category, code=code, detector=DETECTOR, score=1.0, threshold=1.0, action=action, evidence=evidence)


def _once(reasons: Iterable[Reason]) -> list[Reason]:
    return list(dict.fromkeys(reasons))
