"""Undoes the disguises of a text, so that words can be looked for in it. Pure functions; knows no word lists.

`plain` is the canonical form: compatibility forms unified (NFKC), invisible and direction characters and diacritics gone, look-alike
letters of other scripts turned Latin, case folded, prompt weights dropped, spelled-out words (`b o m b`) joined, and everything but
letters and digits a single space. `views` adds the readings that would spoil honest text if they were the only one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

# Combining marks that decorate Latin, Greek and Cyrillic; vowel signs of Indic and other scripts are letters in all but name and stay.
_MARKS = re.compile("[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]")
# Blank characters that count as letters, and selectors that count as marks.
_BLANKS = re.compile("[\u115f\u1160\u3164\uffa0\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")
_WEIGHT = re.compile(r":+\s*[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?=[\s)\]}>,]|$)")
_TOKEN = re.compile(r"\w+")
_LEET_TOKEN = re.compile(r"[\w@$€£!]+")
_INNER = re.compile(r"(?<=[^\W\d_])[-._*'’·~^+=|/\\]+(?=[^\W\d_])")
_NOT_WORD = re.compile(r"[\W_]")
_LETTER_DIGIT = re.compile(r"(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])")
_SPELLED = re.compile(r"(?<!\S)[^\W\d_](?: [^\W\d_]){2,}(?!\S)")
_LATIN = re.compile(r"[a-z0-9_]+")
_PASSES = 8

_LEET = {"0": "o", "1": "i", "3": "e", "4": "a", "5": "s", "7": "t", "8": "b", "9": "g", "@": "a", "$": "s", "€": "e", "£": "l", "!": "i"}
LEET_I: Mapping[int, str] = str.maketrans(_LEET)
LEET_L: Mapping[int, str] = str.maketrans(_LEET | {"1": "l", "!": "l"})


@dataclass(frozen=True)
class Views:
    """The readings of one text. `texts`: distinct normal forms, `plain` first; `runs`: words that were spelled letter by letter."""

    texts: tuple[str, ...]
    runs: tuple[str, ...]


def views(text: str) -> Views:
    """Every reading of `text`.

    Plain; digits and signs inside words as letters (`b0mb`), with 1 as i and as l; signs between letters gone (`bo.mb`).
    """
    forms, runs = [], []
    for table, closed in ((None, False), (LEET_I, False), (LEET_L, False), (LEET_I, True)):
        form, spelled = _settle(_INNER.sub("", text) if closed else text, table)
        forms.append(form)
        runs += spelled
    return Views(tuple(dict.fromkeys(forms)), tuple(dict.fromkeys(runs)))


def plain(text: str, leet: Mapping[int, str] | None = None) -> str:
    """The canonical form of `text` (idempotent); with `leet`, digits and signs inside words read as letters."""
    return _settle(text, leet)[0]


def _settle(text: str, leet: Mapping[int, str] | None) -> tuple[str, list[str]]:
    """Passes until nothing changes: joining letters can make something that composes or joins again."""
    runs: list[str] = []
    for _ in range(_PASSES):
        before = text
        text = _words(_letters(text), leet)
        text, found = _join_spelled(text)
        runs += found
        if text == before:
            break
    return text, runs


def _letters(text: str) -> str:
    """Compatibility forms unified, marks and invisible characters gone, controls as spaces, case folded."""
    text = unicodedata.normalize("NFKD", text)
    text = _BLANKS.sub("", _MARKS.sub("", text))
    text = "".join(" " if kind == "Cc" else "" if kind == "Cf" else c for c in text for kind in (unicodedata.category(c),))
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _words(text: str, leet: Mapping[int, str] | None) -> str:
    """Weights dropped, disguised words turned Latin, all else a space each; letters and digits parted."""
    text = _WEIGHT.sub(" ", text)
    if leet is not None:
        text = _LEET_TOKEN.sub(lambda match: _read_leet(match.group(), leet), text)
    text = _TOKEN.sub(lambda match: _latin(match.group()), text)
    return _LETTER_DIGIT.sub(" ", _NOT_WORD.sub(" ", text))


def _read_leet(token: str, leet: Mapping[int, str]) -> str:
    """A word with letters in it, read as leetspeak; numbers and prices stay, and so does the mark that ends an exclamation."""
    body = token.rstrip("!")
    return body.translate(leet) + token[len(body) :] if any(c.isalpha() for c in body) else token


def _latin(token: str) -> str:
    """The Latin word that `token` looks like, where every letter of it looks Latin; else `token`: real words of other scripts stay."""
    mapped = token.translate(confusables())
    return mapped if _LATIN.fullmatch(mapped) else token


def _join_spelled(text: str) -> tuple[str, list[str]]:
    """Joins runs of three or more single letters: first where wider gaps part the words, then wherever they are left."""
    runs: list[str] = []

    def join(match: re.Match[str]) -> str:
        runs.append(match.group().replace(" ", ""))
        return runs[-1]

    text = " ".join(_SPELLED.sub(join, text).split())
    return _SPELLED.sub(join, text), runs


@cache
def confusables() -> dict[int, str]:
    """Code point → the Latin letter it looks like, from `data/confusables.txt`."""
    lines = files("platemark.safety").joinpath("data", "confusables.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.partition("#")[0].split() for line in lines]
    return {int(row[0], 16): row[1] for row in rows if row}
