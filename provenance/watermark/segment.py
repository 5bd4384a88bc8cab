"""From what each cell says to a region: how strong the mark would be, the odds of every cell, and the map with the shortest border.

The strength is not known: pictures are edited, compressed, resized. It is fitted as that of the marked part in a mixture of marked and
unmarked cells (expectation maximisation), for flat and busy cells apart, as compression treats them differently. The region is the minimum
of border length plus odds, the convex relaxation of Chan, Esedoglu & Nikolova (SIAM J. Appl. Math. 2006), found by the primal-dual method
of Chambolle & Pock (2011). Knows nothing of pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from platemark.provenance.watermark.evidence import Evidence
from platemark.provenance.watermark.spectrum import Float

_GUESSES = 2.0 ** (np.arange(-12, 13) / 4)  # strengths tried, times a first one
_LOSSES = (1.0, 0.75, 0.5, 0.25, 0.0)
_CURVE = (0.3, 0.5, 0.7, 0.9, 1.1, 1.4, 1.75, 2.5), (1.0, 0.9, 0.85, 0.75, 0.65, 0.5, 0.4, 0.0)  # room: share that JPEG 75 takes
_EDITED = 0.3  # share of edited cells that is reckoned with
_STRAY = 0.35  # share of the expected statistic by which a marked cell strays beyond chance
_DOUBT = 0.2  # nats against an edit, for each cell
_BORDER = 1.0  # nats of odds that a cell's side of border costs
_STEPS = 150
_ODDS_LIMIT = 6.0  # nats that one cell may say
_TELLS = 2.0  # expected statistic of a cell and its neighbours from which it can tell
_REGION = 15.0  # nats that a region must say together


@dataclass(frozen=True)
class Segments:
    """`absent`, `unknown` (bool) and `odds` (nats for "no mark here" against "marked", of the cell alone), each of the grid's shape."""

    absent: NDArray[np.bool_]
    unknown: NDArray[np.bool_]
    odds: Float


def segment(evidence: Evidence) -> Segments:
    """Decides every cell."""
    heard, unit = (_over(part, evidence.spread, 1e-12) for part in (evidence.heard, evidence.expected))
    wanted = np.asarray(_strength(heard, unit, _over(evidence.activity, evidence.own, 1e-6)) * unit)
    odds = np.clip(_odds(heard, wanted), -_ODDS_LIMIT, _ODDS_LIMIT)
    absent = _shortest(odds - _DOUBT)
    unknown = np.sqrt(_with_neighbours(wanted**2)) < _TELLS
    absent = _told(absent, odds)
    return Segments(absent, unknown & ~absent, odds)


def _over(one: Float, other: Float, least: float) -> Float:
    return np.asarray(one / np.maximum(other, np.float32(least)), dtype=np.float32)


def _odds(heard: Float, wanted: Float) -> Float:
    """log P(heard | no mark) - log P(heard | mark): normal of mean 0 and variance 1, or of mean and more variance as the mark goes."""
    variance = 1 + (_STRAY * wanted) ** 2
    return np.asarray((heard - wanted) ** 2 / (2 * variance) + np.log(variance) / 2 - heard**2 / 2, dtype=np.float32)


def _strength(heard: Float, unit: Float, room: Float) -> Float:
    """The factor from `unit` to the statistic of a marked cell, (rows, columns): the likeliest common one, less what compression took.

    `room`: activity over that of the mark alone. Under 1 a cell cannot hold the mark any more: smoothed by compression, or put there since.
    How much compression took is seen where there is little room, yet some."""
    telling = room >= 1
    if not telling.any():
        return np.zeros_like(heard)
    said, unit = heard[telling], unit[telling]
    guesses = max(float(np.quantile(said / np.maximum(unit, 1e-6), 0.75)), 1e-6) * _GUESSES
    tried = [(_fit(said, guess * _kept(room[telling], lost) * unit), guess, lost) for lost in _LOSSES for guess in guesses]
    _, guess, lost = max(tried)
    return np.asarray(guess * _kept(room, lost), dtype=np.float32)


def _kept(room: Float, lost: float) -> Float:
    """Share of the mark that compression left; `lost`: 0 for none, 1 for as much as JPEG 75 takes."""
    return np.asarray(1 - lost * np.interp(room, *_CURVE), dtype=np.float32)


def _fit(heard: Float, wanted: Float) -> float:
    """Log likelihood of marked and edited cells, against all being edited."""
    return float(np.logaddexp(np.log(1 - _EDITED) - _odds(heard, wanted), np.log(_EDITED)).sum())


def _with_neighbours(plane: Float) -> Float:
    padded = np.pad(plane, 1, mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return np.asarray((rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4, dtype=np.float32)


def _shortest(odds: Float) -> NDArray[np.bool_]:
    """The region that minimises border - odds inside."""
    value, ahead = np.full_like(odds, 0.5), np.full_like(odds, 0.5)
    flow: NDArray[Any] = np.zeros((2, *odds.shape), dtype=np.float32)
    step = 0.35  # under 1 / sqrt(8), the bound for the difference operator
    for _ in range(_STEPS):
        flow[0, :-1] += step * np.diff(ahead, axis=0)
        flow[1, :, :-1] += step * np.diff(ahead, axis=1)
        flow /= np.maximum(1, np.hypot(*flow) / _BORDER)
        outward = np.zeros_like(odds)
        outward[:-1] += flow[0, :-1]
        outward[1:] -= flow[0, :-1]
        outward[:, :-1] += flow[1, :, :-1]
        outward[:, 1:] -= flow[1, :, :-1]
        new = np.clip(value + step * (outward + odds), 0, 1)
        ahead, value = 2 * new - value, new
    return np.asarray(value > 0.5)


def _told(absent: NDArray[np.bool_], odds: Float) -> NDArray[np.bool_]:
    """Without the regions that say too little: chance makes small ones."""
    label = regions(absent)
    said = np.bincount(label.ravel(), odds.ravel())
    return np.asarray(absent & (said >= _REGION)[label])


def regions(inside: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Connected regions (side by side) as numbers from 1, 0 outside: the largest number spreads until nothing moves."""
    label = np.where(inside, np.arange(1, inside.size + 1).reshape(inside.shape), 0)
    while True:
        padded = np.pad(label, 1)
        around = np.maximum.reduce([padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:], label])
        spread = np.where(inside, around, 0)
        if np.array_equal(spread, label):
            break
        label = spread
    return np.asarray(np.searchsorted(np.unique(label[inside]), label) + inside, dtype=np.intp)
