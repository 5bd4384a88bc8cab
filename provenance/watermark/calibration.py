"""How likely a pilot statistic is by chance, over a whole search: the fitted tail and its constants.

The statistic of a search is the highest of many dependent, nearly normal ones. Its tail is P(max > z) = 1 - exp(-n · exp(-z²/(2 s²))): `n`
stands for the number of independent places tried, `s` for tails that are a little heavier or lighter than normal. Both are fitted to the
searches of unmarked pictures; the number of places goes with the number of hypotheses of a search, so what is kept is their ratio.
Knows nothing of pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

SearchName = Literal["fast", "deep"]


@dataclass(frozen=True)
class Tail:
    """`ratio`: independent places per hypothesis; `spread`: s above."""

    ratio: float
    spread: float

    def p_value(self, score: float, hypotheses: int) -> float:
        """The probability of `score` or more by chance anywhere in a search of that many hypotheses."""
        if score <= 0:
            return 1.0
        return -math.expm1(-hypotheses * self.ratio * math.exp(-min((score / self.spread) ** 2 / 2, 700.0)))


# Fitted by `python -m benchmarks.watermark.calibrate` to the highest hundredth, at least 100, of 24,000 fast and 1,364 deep searches of
# unmarked pictures of 512 x 512 (364 and 341 pictures); the 95 % interval of the score at p = 1e-6: 7.12 to 7.46, and 8.22 to 8.87.
TAILS: dict[SearchName, Tail] = {"fast": Tail(181.0, 1.0935), "deep": Tail(0.463, 1.1785)}
