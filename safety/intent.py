"""Rules over the word lists: what only several words together say ("remove" and "clothes" and "her"). Knows no policy and no text.

The rules are `data/rules.toml`, whose head says what their fields mean. The lists of a rule must be met in one language, so that the
German "Kind" and the English "nude" do not make a sentence of "a kind nude"; what spares a text may stand in any.
"""

from __future__ import annotations

import tomllib
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from platemark.safety.lexicon import Hit

Span = tuple[int, int]
_PER_CHARACTER = ("zh", "ja")  # their words are characters: distances are three times as long
_LONG = 3
_REACH = 12  # words around a match in which an `unless` phrase counts
_BESIDE = 2  # the same for `beside`
_MOST = 200  # matches of one rule in one text that are followed: a text of nothing else is caught by the first


@dataclass(frozen=True)
class Rule:
    """See the head of the data file. Each list name may be several, any of which will do."""

    name: str
    category: str
    near: tuple[tuple[str, ...], ...]
    tags: tuple[str, ...] = ()
    window: int = 0
    with_: tuple[tuple[str, ...], ...] = ()
    unless: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    reach: int = _REACH

    @property
    def sparing(self) -> tuple[tuple[tuple[str, ...], int], ...]:
        return (self.unless, self.reach), (self.beside, _BESIDE)


@cache
def base_rules() -> tuple[Rule, ...]:
    """The rules that come with Platemark; read once, at first use."""
    text = files("platemark.safety").joinpath("data", "rules.toml").read_text(encoding="utf-8")
    return tuple(_rule(entry) for entry in tomllib.loads(text)["rules"])


def _rule(entry: Mapping[str, object]) -> Rule:
    fields = {("with_" if key == "with" else key): value for key, value in entry.items()}
    for key in ("near", "with_"):
        fields[key] = tuple(tuple(str(one).split("|")) for one in _list(fields.get(key, [])))
    for key in ("tags", "unless", "beside"):
        fields[key] = tuple(_list(fields.get(key, [])))
    return Rule(**fields)  # type: ignore[arg-type]


def _list(value: object) -> Sequence[str]:
    if not isinstance(value, list):
        raise TypeError("a list was expected in rules.toml")
    return value


def holding(rules: Sequence[Rule], hits: Sequence[Hit]) -> list[Rule]:
    """The rules that the phrases found in a text fulfil."""
    spoken: dict[str, dict[str, list[Span]]] = defaultdict(lambda: defaultdict(list))
    for hit in hits:
        spoken[hit.language][hit.label].append((hit.start, hit.end))
    anywhere: dict[str, list[Span]] = defaultdict(list)
    for hit in hits:
        anywhere[hit.label].append((hit.start, hit.end))
    return [rule for rule in rules if any(_holds(rule, lists, anywhere, language) for language, lists in spoken.items())]


def _holds(rule: Rule, lists: Mapping[str, list[Span]], anywhere: Mapping[str, list[Span]], language: str) -> bool:
    scale = _LONG if language in _PER_CHARACTER else 1
    if not all(any(name in lists for name in names) for names in (*rule.near, *rule.with_)):
        return False
    spared = [(sorted(span for name in names for span in anywhere.get(name, ())), reach * scale) for names, reach in rule.sparing]
    matches = _matches(rule, lists, rule.window * scale)
    return any(not any(_reached(against, span, reach) for against, reach in spared) for span in matches)


def _matches(rule: Rule, lists: Mapping[str, list[Span]], window: int) -> Iterator[Span]:
    """Where phrases of all `near` lists stand close together, without sharing a word."""
    found: list[list[Span]] = [[span] for span in _spans(rule.near[0], lists)]
    for names in rule.near[1:]:
        others = _spans(names, lists)
        found = [[*one, other] for one in found[:_MOST] for other in _close(others, one, window)][:_MOST]
    for match in found:
        yield min(start for start, _ in match), max(end for _, end in match)


def _spans(names: Sequence[str], lists: Mapping[str, list[Span]]) -> list[Span]:
    merged: list[Span] = []
    for name in names:
        for span in lists.get(name, ()):
            if span not in merged[-8:]:
                insort(merged, span)
    return merged


def _close(spans: Sequence[Span], match: Sequence[Span], window: int) -> Iterator[Span]:
    first, last = min(start for start, _ in match), max(end for _, end in match)
    for place in range(bisect_left(spans, (first - window - 8, 0)), len(spans)):
        start, end = spans[place]
        if start > last + window:
            return
        apart = all(end <= a or start >= b for a, b in match)
        if apart and start - last <= window and first - end <= window:
            yield start, end


def _reached(against: Sequence[Span], span: Span, reach: int) -> bool:
    return any(
        end > span[0] - reach and start < span[1] + reach
        for start, end in against[bisect_left(against, (span[0] - reach - 8, 0)) :][:_MOST]
    )
