"""The built-in word lists, and how their phrases are looked for in a text. Knows no policy, no rules and no actions.

`data/words/<language>.txt` holds lists of phrases: a line `= name` begins a list, phrases stand between commas. `terms.<category>` mean
the category by themselves, inside `exceptions.<category>` a term means nothing, `negative.<category>` are words whose absence asks for
the category, and every other list is a concept that rules combine (`platemark.safety.intent`). `word*` matches a beginning, `*word` an
end, `*word*` any part of a word; plurals in -s, -es and -ies are found by themselves. Chinese and Japanese phrases match anywhere.

One pass over the words of a text finds every phrase of every list: each word is looked up by its beginnings and ends in one table.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import files
from itertools import product
from typing import NamedTuple

from platemark.safety.normalize import as_latin, collapse, fold, plain

LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "ru", "zh", "ja")
POLICY = "policy"  # stands for the language of an operator's own phrases
_LONGEST = 28  # letters of a beginning or an end that is looked up
_IDEOGRAPHS = "\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W{_IDEOGRAPHS}]+")
_PATTERN = re.compile(rf"[{_IDEOGRAPHS}]|[^\W{_IDEOGRAPHS}]*\*?[^\W{_IDEOGRAPHS}]+\*?")


class Hit(NamedTuple):
    """A phrase of a list in a text: words `start` up to, not including, `end`."""

    label: str
    language: str
    start: int
    end: int
    phrase: str


class Entry(NamedTuple):
    """One phrase of a list: its words as patterns, and how the list spells it."""

    words: tuple[str, ...]
    label: str
    language: str
    phrase: str


class Finder:
    """Finds the phrases of many lists in one pass. Immutable after construction, so safe to share between threads."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        table: dict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            table[entry.words[0]].append(entry)
        self._table = dict(table)
        self._inside = [key for key in table if len(key) > 2 and key[0] == "*" == key[-1]]

    def find(self, text: str) -> list[Hit]:
        """Every phrase in `text` (a plain form), in order of appearance; phrases may overlap."""
        tokens = words_of(text)
        known: dict[str, list[Entry]] = {}
        hits = []
        for start, token in enumerate(tokens):
            if token not in known:
                known[token] = [entry for key in self._keys(token) for entry in self._table.get(key, ())]
            for entry in known[token]:
                end = start + len(entry.words)
                if len(entry.words) == 1 or _fits(entry.words, tokens[start:end]):
                    hits.append(Hit(entry.label, entry.language, start, end, entry.phrase))
        return hits

    def _keys(self, token: str) -> Iterator[str]:
        yield from dict.fromkeys((token, *_singulars(token)))
        size = min(len(token), _LONGEST)
        for length in range(2, size + 1):
            yield token[:length] + "*"
            yield "*" + token[-length:]
        for key in self._inside:
            if key[1:-1] in token:
                yield key


def words_of(text: str) -> list[str]:
    """The words of a plain form; each Chinese or Japanese character counts as one."""
    return _WORD.findall(text)


def _fits(patterns: tuple[str, ...], tokens: list[str]) -> bool:
    return len(patterns) == len(tokens) and all(_matches(p, t) for p, t in zip(patterns[1:], tokens[1:], strict=True))


def _matches(pattern: str, token: str) -> bool:
    if pattern == token:
        return True
    if "*" not in pattern:
        return pattern in _singulars(token)
    body = pattern.strip("*")
    if pattern[0] == "*" == pattern[-1]:
        return body in token
    return token.endswith(body) if pattern[0] == "*" else token.startswith(body)


def _singulars(token: str) -> tuple[str, ...]:
    """What `token` may be the plural of."""
    if len(token) < 4 or token[-1] != "s":
        return ()
    if token.endswith("ies"):
        return token[:-1], token[:-3] + "y"
    if token.endswith("ves"):
        return token[:-1], token[:-3] + "f", token[:-3] + "fe"
    return (token[:-1], token[:-2]) if token.endswith("es") else (token[:-1],)


@cache
def base_entries() -> tuple[Entry, ...]:
    """Every phrase of the word lists that come with Platemark; read once, at first use."""
    return tuple(entry for language in LANGUAGES for entry in _entries(language, _read(language)))


@cache
def base_finder() -> Finder:
    """Finds the built-in phrases."""
    return Finder(base_entries())


@cache
def collapsed_finder() -> Finder:
    """Finds the built-in phrases in a text without doubled letters; built at the first text that repeats letters."""
    return Finder(Entry(tuple(map(collapse, e.words)), e.label, e.language, e.phrase) for e in base_entries())


@cache
def lexicon_sha256() -> str:
    """The sha256 over the built-in data files, hex."""
    digest = hashlib.sha256()
    for name in (*(f"words/{language}.txt" for language in LANGUAGES), "rules.toml", "persons.txt", "confusables.txt"):
        digest.update(files("platemark.safety").joinpath("data", *name.split("/")).read_bytes())
    return digest.hexdigest()


def phrase_entries(label: str, phrases: Iterable[str]) -> list[Entry]:
    """Entries of an operator's own phrases, which are taken literally."""
    split = ((phrase, tuple(words_of(plain(phrase)))) for phrase in phrases)
    return [Entry(words, label, POLICY, phrase) for phrase, words in split if words]


def _read(language: str) -> str:
    return files("platemark.safety").joinpath("data", "words", f"{language}.txt").read_text(encoding="utf-8")


def _entries(language: str, text: str) -> Iterator[Entry]:
    """The phrases of one file. It is normalised as a whole, since thousands of small calls would take long."""
    raw = [line for line in text.splitlines() if line and line[0] != "#"]
    shape = _ideograph_shape if language in ("zh", "ja") else _letter_shape
    label = ""
    for line, shown in zip(fold("|".join(raw), keep="*,=|.").split("|"), raw, strict=True):
        if shown[0] == "=":
            label = shown[1:].strip()
            continue
        for phrase, name in zip(line.split(","), shown.split(","), strict=True):
            for words in shape(phrase):
                yield Entry(words, label, language, name.strip())


def _ideograph_shape(phrase: str) -> Iterable[tuple[str, ...]]:
    words = tuple(_PATTERN.findall(phrase))
    return (words,) if words else ()


def _letter_shape(phrase: str) -> Iterable[tuple[str, ...]]:
    """How a text may show the phrase: words whose every letter looks Latin are Latin there; of each stem, its own word may be or not."""
    patterns = tuple(phrase.replace(".", " ").split())
    if not patterns or phrase.isascii():
        return (patterns,) if patterns else ()
    return product(*(dict.fromkeys((p, _latin_stem(p))) if "*" in p else (as_latin(p),) for p in patterns))


def _latin_stem(pattern: str) -> str:
    return pattern.replace(pattern.strip("*"), as_latin(pattern.strip("*")))
