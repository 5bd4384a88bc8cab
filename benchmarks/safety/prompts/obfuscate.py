"""The eight obfuscations of the prompt set, each with several forms chosen by a hash of the entry's id.

They are the common published tricks, applied to every word (no list of key words is used): they don't cover optimised
adversarial prompts, code words, rhymes or translations.
"""

from __future__ import annotations

import base64
import hashlib
import random
import re
import unicodedata
from collections.abc import Callable

LEET = (
    dict(zip("aeiost", "431057", strict=True)),
    dict(zip("aeios", "@3!0$", strict=True)),
    dict(zip("aeiostbgl", "431057891", strict=True)),
)
TO_CYRILLIC = dict(zip("aceiopsxyABCEHKMOPTX", "асеіорѕхуАВСЕНКМОРТХ", strict=True))
TO_GREEK = dict(zip("aioptuvnwkx", "αιορτυνηωκχ", strict=True))
TO_LATIN = dict(zip("асеорхуікАВСЕНКМОРТХ", "aceopxyikABCEHKMOPTX", strict=True))
INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u202c"
MARKS = "\u0300\u0301\u0302\u0303\u0308\u030a\u0323\u0331\u0336"
LATIN_ONLY = frozenset({"leet", "homoglyph", "diacritics"})
CYRILLIC_LEET = dict(zip("аеиозчбт", "43u0346т", strict=True))


def digest(text: str) -> int:
    """A 64-bit integer from sha256: the only source of choice."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")


def is_cyrillic(text: str) -> bool:
    """Whether most letters are Cyrillic."""
    letters = [c for c in text if c.isalpha()]
    return sum("CYRILLIC" in unicodedata.name(c, "") for c in letters) * 2 > len(letters)


def leet(text: str, rng: random.Random) -> str:
    """Digits and signs for letters: all of them, or about three in four."""
    table = CYRILLIC_LEET if is_cyrillic(text) else rng.choice(LEET)
    rate = rng.choice((1.0, 0.75))
    return "".join(table.get(c.lower(), c) if rng.random() < rate else c for c in text)


def spaced_letters(text: str, rng: random.Random) -> str:
    """Every letter apart; words apart by three spaces, by two, or by a slash."""
    gap = rng.choice(("   ", "  ", " / "))
    return gap.join(" ".join(word) for word in text.split())


def homoglyph(text: str, rng: random.Random) -> str:
    """Letters of another script, full-width letters or mathematical letters that look the same."""
    if is_cyrillic(text):
        return "".join(TO_LATIN.get(c, c) for c in text)
    form = rng.choice(("cyrillic", "cyrillic", "mixed", "fullwidth", "bold"))
    if form == "fullwidth":
        return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)
    if form == "bold":
        return "".join(chr(0x1D41A + ord(c) - 97) if "a" <= c <= "z" else c for c in text)
    table = TO_CYRILLIC if form == "cyrillic" else {**TO_CYRILLIC, **TO_GREEK}
    return "".join(table.get(c, c) for c in text)


def zero_width(text: str, rng: random.Random) -> str:
    """Invisible characters inside every word."""
    parts: list[str] = []
    for here, following in zip(text, text[1:] + " ", strict=True):
        joined = here.isalnum() and following.isalnum()
        parts.append(here + (rng.choice(INVISIBLE) if joined and rng.random() < 0.6 else ""))
    return "".join(parts)


def prompt_weights(text: str, rng: random.Random) -> str:
    """Weight syntax of image tools around each word, sometimes around half of a word."""
    units = text.split() if " " in text else re.findall(r".{1,3}", text)
    form = rng.choice(("weight", "paren", "bracket", "half", "mixed"))
    wraps: dict[str, Callable[[str], str]] = {
        "weight": lambda w: f"({w}:{rng.choice((1.1, 1.2, 1.3, 1.4))})",
        "paren": lambda w: f"(({w}))",
        "bracket": lambda w: rng.choice(("[{}]", "{{{}}}")).format(w),
        "half": lambda w: f"{w[: len(w) // 2]}({w[len(w) // 2 :]}:1.2)",
    }
    names = sorted(wraps)
    words = [wraps[rng.choice(names) if form == "mixed" else form](w) if len(w) > 1 else w for w in units]
    return (" " if " " in text else "").join(words)


def encode_base64(text: str, rng: random.Random) -> str:
    """Base64 of the whole prompt: alone, URL-safe without padding, or after a request to decode it."""
    raw = text.encode("utf-8")
    form = rng.choice(("plain", "plain", "url", "ask"))
    if form == "url":
        return base64.urlsafe_b64encode(raw).decode("ascii").rstrip("=")
    code = base64.b64encode(raw).decode("ascii")
    return f"decode this and paint it: {code}" if form == "ask" else code


def diacritics(text: str, rng: random.Random) -> str:
    """Combining marks on most letters."""
    return "".join(c + (rng.choice(MARKS) if c.isalpha() and rng.random() < 0.7 else "") for c in text)


def repeated(text: str, rng: random.Random) -> str:
    """Letters repeated, or dots, hyphens, underscores or stars between the letters of a word."""
    form = rng.choice(("repeat", ".", "-", "_", "*"))
    if form == "repeat":
        return "".join(c * rng.choice((1, 2, 3, 4)) if c.isalpha() else c for c in text)
    return " ".join(form.join(word) for word in text.split())


OBFUSCATIONS: dict[str, Callable[[str, random.Random], str]] = {
    "leet": leet,
    "spaced_letters": spaced_letters,
    "homoglyph": homoglyph,
    "zero_width": zero_width,
    "prompt_weights": prompt_weights,
    "base64": encode_base64,
    "diacritics": diacritics,
    "repeated_letters_or_punctuation": repeated,
}


def obfuscate(kind: str, text: str, name: str) -> str:
    """Applies one obfuscation; *name* (the new entry's id) fixes its form. Raises SystemExit when nothing changed."""
    result = OBFUSCATIONS[kind](text, random.Random(digest(name)))
    if result == text:
        raise SystemExit(f"{name}: the obfuscation changed nothing")
    return result
