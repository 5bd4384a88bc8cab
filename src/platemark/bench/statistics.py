"""Percentiles and intervals of what was measured. Knows nothing of what it was."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

_Z = 1.959964  # two-sided 95 % of the normal distribution


class Data(BaseModel):
    """Base of every report: plain data that JSON holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Spread(Data):
    """Of repeated measurements; percentiles are interpolated between them, so p99 of few runs is close to the slowest."""

    mean: float
    min: float
    p50: float
    p95: float
    p99: float
    max: float


class Share(Data):
    """`count` of `n`: the share in [0, 1] and its 95 % interval (Wilson 1927), all null where `n` is 0.

    The interval takes the `n` for independent draws, which pictures of one prompt, or prompts of one pattern, are only in part.
    """

    count: int
    n: int
    share: float | None
    low: float | None
    high: float | None


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    ordered = sorted(values)
    parts = {f"p{q}": _percentile(ordered, q / 100) for q in (50, 95, 99)}
    figures = {"mean": math.fsum(ordered) / len(ordered), "min": ordered[0], "max": ordered[-1], **parts}
    return Spread(**{name: round(value, 4) for name, value in figures.items()})


def share(count: int, n: int) -> Share:
    """The share with its interval: (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n)."""
    if n == 0:
        return Share(count=0, n=0, share=None, low=None, high=None)
    p, square = count / n, _Z**2
    centre, half = p + square / (2 * n), _Z * math.sqrt(p * (1 - p) / n + square / (4 * n * n))
    low, high = ((centre + sign * half) / (1 + square / n) for sign in (-1, 1))
    low, high = (0.0 if count == 0 else low), (1.0 if count == n else high)  # exact there, but for rounding
    return Share(count=count, n=n, share=round(p, 6), low=round(max(0.0, low), 6), high=round(min(1.0, high), 6))


def _percentile(ordered: Sequence[float], q: float) -> float:
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
