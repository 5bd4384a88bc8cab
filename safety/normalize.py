"""Undoes the disguises of a text, so that words can be looked for in it. Pure functions; knows no word lists.

`plain` is the canonical form: compatibility forms unified (NFKC), invisible and direction characters and diacritics gone, look-alike
letters of other scripts turned Latin, case folded, prompt weights dropped, spelled-out words (`b o m b`) joined, and everything but
letters and digits a single space. `views` adds the readings that would spoil honest text if they were the only one, and `encoded` reads
what was written in base64 or hexadecimal. Time is linear in the length of the text.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

# Combining marks that decorate Latin, Greek and Cyrillic; vowel signs of Indic and other scripts are letters in all but name and stay.
_MARKS = re.compile("[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]")
# Characters of format (Unicode category Cf), blank characters that count as letters, and selectors that count as marks.
_UNSEEN = re.compile(
    "[\u00ad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e01ef]"
)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_PART_WEIGHT = re.compile(r"(?<=[^\W\d_])\(([^\W\d_]+)[,.;]?:(?:\d+(?:\.\d+)?|\.\d+)\)")  # `me(rkt:1.2)`: a weight on a part of a word
_WEIGHT = re.compile(r"(?<!:):+ ?[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?=[\s)\]}>,]|$)")
_TOKEN = re.compile(r"\w+")
_LEET_TOKEN = re.compile(r"[\w@$€£!|+]+")
_MIXED = re.compile(r"[^\W\d_]\d[^\W\d_]|\b\d[^\W\d_]{3}")  # `b0mb`, `4nti`, and neither `4k` nor `3d`
_INNER = re.compile(r"(?<=[^\W\d_])[-._*'’·~^+=|/\\]+(?=[^\W\d_])")
_NOT_WORD = re.compile(r"[\W_]")
_LETTER_DIGIT = re.compile(r"(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])")
_SPELLED = re.compile(r"(?<!\S)[^\W\d_](?: [^\W\d_]){2,}(?!\S)")
_LATIN = re.compile(r"[a-z0-9_]+")
_CYRILLIC = re.compile("[\u0430-\u044f]")
_REPEATED = re.compile(r"([^\W\d_])\1\1")
_DOUBLED = re.compile(r"([^\W\d_])\1+")
_BASE64 = re.compile(r"(?<![\w+/=-])[A-Za-z0-9+/_-]{16,}={0,2}(?![\w+/=-])")
_HEXADECIMAL = re.compile(r"(?<!\w)(?:[0-9a-fA-F]{2}){10,}(?!\w)")
_PASSES = 8
_LONGEST = 100_000  # characters of a run that is decoded

_LEET = {"0": "o", "1": "i", "3": "e", "4": "a", "5": "s", "7": "t", "8": "b", "9": "g", "@": "a", "$": "s", "€": "e", "£": "l"}
_LEET |= {"!": "i", "|": "i", "+": "t"}
LEET_I: Mapping[int, str] = str.maketrans(_LEET)
LEET_L: Mapping[int, str] = str.maketrans(_LEET | {"1": "l", "!": "l", "|": "l"})


@dataclass(frozen=True)
class Views:
    """The readings of one text. `texts`: distinct normal forms, `plain` first; `runs`: words that were spelled letter by letter.

    `collapsed`: a form in which no letter stands twice in a row, empty where none stands three times (`nuuude`).
    """

    texts: tuple[str, ...]
    runs: tuple[str, ...]
    collapsed: str = ""


def views(text: str) -> Views:
    """Every reading of `text`.

    Plain; digits and signs inside words as letters (`b0mb`), with 1 as i and as l; signs between letters gone (`bo.mb`).
    """
    forms, runs = [], []
    text = _letters(text)
    for table, closed in ((None, False), (LEET_I, False), (LEET_L, False), (LEET_I, True)):
        form, spelled = _settle(_INNER.sub("", text) if closed else text, table)
        forms.append(form)
        runs += spelled
    collapsed = collapse(forms[0]) if _REPEATED.search(forms[0]) else ""
    return Views(tuple(dict.fromkeys(forms)), tuple(dict.fromkeys(runs)), collapsed)


def plain(text: str, leet: Mapping[int, str] | None = None) -> str:
    """The canonical form of `text` (idempotent); with `leet`, digits and signs inside words read as letters."""
    return _settle(text, leet)[0]


def collapse(text: str) -> str:
    """`text` with every run of one letter cut to a single one."""
    return _DOUBLED.sub(r"\1", text)


def fold(text: str, keep: str) -> str:
    """A whole word list in the letters of the canonical form, scripts as they are; each character of `keep` stays. One line."""
    return _LETTER_DIGIT.sub(" ", re.sub(rf"[^\w{re.escape(keep)}]|_", " ", _letters(text)))


def encoded(text: str) -> tuple[str, ...]:
    """What `text` says in base64 or hexadecimal: the decoded runs that read as text. Ordinary long words decode to no text."""
    found = [_decode64(match.group()) for match in _BASE64.finditer(text) if _mixed_case(match.group())]
    found += [_readable(bytes.fromhex(match.group()[:_LONGEST])) for match in _HEXADECIMAL.finditer(text)]
    return tuple(dict.fromkeys(one for one in found if one))


def _mixed_case(run: str) -> bool:
    """Whether capitals and small letters are mixed as in no ordinary word."""
    return run[1:] != run[1:].lower() and run != run.upper()


def _decode64(run: str) -> str:
    body = run.rstrip("=")[:_LONGEST].translate({ord("-"): "+", ord("_"): "/"})
    body = body[: len(body) - 1] if len(body) % 4 == 1 else body
    try:
        return _readable(base64.b64decode(body + "=" * (-len(body) % 4), validate=True))
    except (binascii.Error, ValueError):
        return ""


def _readable(data: bytes) -> str:
    """`data` as text, where nearly all of it is letters and spaces (one broken character at the end is forgiven); else empty."""
    text = data.decode("utf-8", errors="ignore")
    whole = len(text.encode()) >= len(data) - 3
    kept = sum(c.isalpha() or c in " ,.'-" for c in text)
    return text if whole and len(text) >= 5 and kept >= 0.9 * len(text) and text.isprintable() else ""


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
    if text.isascii():
        return _CONTROL.sub(" ", text).lower()
    text = unicodedata.normalize("NFKD", text)
    text = _CONTROL.sub(" ", _UNSEEN.sub("", _MARKS.sub("", text)))
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _words(text: str, leet: Mapping[int, str] | None) -> str:
    """Weights dropped, disguised words turned Latin, all else a space each; letters and digits parted."""
    text = _WEIGHT.sub(" ", _PART_WEIGHT.sub(r"\1", text))
    if leet is not None:
        disguised = _MIXED.search(text) is not None
        text = _LEET_TOKEN.sub(lambda match: _read_leet(match.group(), leet, disguised), text)
    if not text.isascii():
        text = _TOKEN.sub(lambda match: as_latin(match.group()), text)
    return _LETTER_DIGIT.sub(" ", _NOT_WORD.sub(" ", text))


def _read_leet(token: str, leet: Mapping[int, str], disguised: bool) -> str:
    """A word with letters in it, read as leetspeak; numbers and prices stay, and so does the mark that ends an exclamation.

    `disguised`: other words of the text mix letters and digits, so a short number is a word too (`53 3nf0rc4`).
    """
    body = token.rstrip("!")
    word = any(c.isalpha() for c in body) or (disguised and body.isdecimal() and 1 < len(body) < 5)
    return body.translate(leet) + token[len(body) :] if word else token


def as_latin(token: str) -> str:
    """The Latin word that `token` looks like, where every letter of it looks Latin; else `token`: real words of other scripts stay.

    Latin letters inside a Cyrillic word are the disguise there, and turn Cyrillic.
    """
    if len(token) == 1 or token.isascii():  # a letter by itself is judged with the word that it is joined to
        return token
    mapped = token.translate(confusables())
    if _LATIN.fullmatch(mapped):
        return mapped
    return token.translate(_cyrillic()) if _CYRILLIC.search(token) else token


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


@cache
def _cyrillic() -> dict[int, str]:
    """Latin letter → the Cyrillic letter of the Russian alphabet that looks like it or is written for it."""
    looks = {ord(latin): chr(code) for code, latin in confusables().items() if 0x430 <= code <= 0x44F}
    return looks | {ord("i"): "и", ord("u"): "и", ord("n"): "и", ord("s"): "с", ord("r"): "г"}
