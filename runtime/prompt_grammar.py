"""Prompt weights as Stable Diffusion web UIs write them: `(word)`, `(word:1.3)`, `[word]`, and backslashes before literal brackets.

A pair of round brackets multiplies the weight of what it holds by 1.1, a pair of square ones divides by it, and `(text:1.3)` multiplies
by the number. Pairs nest. A bracket without its partner is an ordinary character. Knows nothing about tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from platemark.errors import InputError

STEP = 1.1
MAX_WEIGHT = 10.0
_PIECES = re.compile(r"\\[()\[\]\\]|[()\[\]]|[^()\[\]\\]+|\\", re.DOTALL)
_NUMBER = re.compile(r"\A(.*):\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\Z", re.DOTALL)
_CLOSES = {")": "(", "]": "["}


@dataclass(frozen=True)
class Segment:
    """A stretch of text and the weight of its meaning: 1 as it stands, 0 as if it said nothing."""

    text: str
    weight: float


def parse(prompt: str) -> tuple[Segment, ...]:
    """The prompt's stretches of equal weight, in order, without the brackets that were understood; at least one.

    Linear in the length of the prompt. Raises `InputError` for a weight below 0 or above `MAX_WEIGHT`.
    """
    pieces = _PIECES.findall(prompt)
    factors = _factors(pieces)
    segments: list[Segment] = []
    weight, stack = 1.0, [1.0]
    for piece, factor in zip(pieces, factors, strict=True):
        if factor is None:
            _append(segments, _literal(piece), weight)
        elif factor.opens:
            stack.append(weight)
            weight = _checked(weight * factor.value)
        else:
            if factor.text:
                _append(segments, factor.text, weight)
            weight = stack.pop()
    return tuple(segments) or (Segment("", 1.0),)


@dataclass(frozen=True)
class _Bracket:
    """A bracket that has its partner. `text`: what stays of the piece before a closing one, once its `:1.3` is taken away."""

    opens: bool
    value: float = 1.0
    text: str = ""


def _factors(pieces: list[str]) -> list[_Bracket | None]:
    """For each piece its bracket, or None for text; the piece before `…:1.3)` becomes a part of the closing bracket."""
    found: list[_Bracket | None] = [None] * len(pieces)
    opened: list[int] = []
    for place, piece in enumerate(pieces):
        if piece in "([":
            opened.append(place)
        elif piece in _CLOSES and opened and pieces[opened[-1]] == _CLOSES[piece]:
            start = opened.pop()
            number = _NUMBER.match(pieces[place - 1]) if piece == ")" and place - 1 > start and found[place - 1] is None else None
            if number:
                value, text, pieces[place - 1] = float(number[2]), number[1], ""
            else:
                value, text = (STEP if piece == ")" else 1 / STEP), ""
            found[start], found[place] = _Bracket(True, value), _Bracket(False, value, text)
    return found


def _literal(piece: str) -> str:
    return piece[1:] if len(piece) == 2 and piece[0] == "\\" else piece


def _append(segments: list[Segment], text: str, weight: float) -> None:
    if not text:
        return
    if segments and segments[-1].weight == weight:
        segments[-1] = Segment(segments[-1].text + text, weight)
    else:
        segments.append(Segment(text, weight))


def _checked(weight: float) -> float:
    if not 0.0 <= weight <= MAX_WEIGHT:
        remedy = f"use 0 to {MAX_WEIGHT:g}; a backslash before a bracket makes it an ordinary character"
        raise InputError("a weight in the prompt is out of range", remedy)
    return weight
