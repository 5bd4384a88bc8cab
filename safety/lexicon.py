"""The built-in word lists, and how a list of phrases is looked for in a text. Knows no policy and no actions.

`data/lexicon.toml` holds, per category, the terms, the phrases inside which a term means nothing (`exceptions`), and the words whose
absence asks for the category (`negative_terms`, looked for in the negative prompt); named `lists`; and `rules`, which find a word of
one list near a word of another.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

from pydantic import BaseModel, ConfigDict, Field

from platemark.safety.normalize import Views, plain

_MIN_SPELLED = 4  # letters of a term that is looked for inside a longer spelled-out run


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Entry(_Model):
    """The built-in words of one category."""

    terms: tuple[str, ...] = Field(min_length=1)
    exceptions: tuple[str, ...] = ()
    negative_terms: tuple[str, ...] = ()


class Rule(_Model):
    """A word of the list `first` with one of the list `second` at most `window` words on (0: anywhere, in any order)."""

    name: str
    category: str
    first: str
    second: str
    window: int = Field(ge=0)


class Lexicon(_Model):
    """The whole data file."""

    categories: dict[str, Entry]
    lists: dict[str, tuple[str, ...]]
    rules: tuple[Rule, ...]


@cache
def base_lexicon() -> Lexicon:
    """The word lists that come with Platemark; read once, at first use."""
    return Lexicon.model_validate(tomllib.loads(files("platemark.safety").joinpath("data", "lexicon.toml").read_text(encoding="utf-8")))


def inflections(phrase: str) -> tuple[str, ...]:
    """`phrase` in its plain form, and its plural."""
    base = plain(phrase)
    if re.search(r"[^aeiou]y$", base):
        return base, base[:-1] + "ies"
    if base.endswith("fe"):
        return base, base[:-2] + "ves"
    if re.search(r"(s|x|z|ch|sh)$", base):
        return base, base + "es"
    return base, base + "s"


class Phrases:
    """Finds phrases at word borders, in the singular and the plural, in every reading of a text."""

    def __init__(self, phrases: Iterable[str]) -> None:
        self._source = {form: phrase for phrase in phrases for form in inflections(phrase)}
        longest_first = sorted(self._source, key=len, reverse=True)
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)" if longest_first else r"(?!)")
        self._spellable = [form for form in longest_first if " " not in form and len(form) >= _MIN_SPELLED]

    def find(self, text: str) -> list[str]:
        """The phrases of the list, as the list spells them, that stand in `text` (a plain form)."""
        return [self._source[match.group()] for match in self._pattern.finditer(text)]

    def find_spelled(self, runs: Iterable[str]) -> list[str]:
        """The one-word phrases that stand inside words spelled letter by letter."""
        return [self._source[form] for run in runs for form in self._spellable if form in run]

    def blank(self, text: str) -> str:
        """`text` with every phrase of the list replaced by a border that no phrase reaches across."""
        return self._pattern.sub("|", text)

    def places(self, text: str) -> list[tuple[int, int]]:
        """First and last word number of every phrase in `text`."""
        found, word, seen = [], 0, 0
        for match in self._pattern.finditer(text):
            word += text.count(" ", seen, match.start())
            seen = match.start()
            found.append((word, word + match.group().count(" ")))
        return found


def near(first: Phrases, second: Phrases, window: int, text: str) -> bool:
    """Whether a phrase of `first` is followed by one of `second` at most `window` words on (0: anywhere, in any order)."""
    starts, ends = first.places(text), second.places(text)
    if not window:
        return bool(starts and ends)
    begins = {begin for begin, _ in ends}
    return any(end + step in begins for _, end in starts for step in range(1, window + 1))


def found_in(phrases: Phrases, seen: Views) -> list[str]:
    """Every phrase found in any reading, once, in order of appearance."""
    hits = [hit for text in seen.texts for hit in phrases.find(text)]
    return list(dict.fromkeys(hits + phrases.find_spelled(seen.runs)))
