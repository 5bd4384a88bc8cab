"""The tail of the pilot statistic over whole searches of unmarked pictures: fit, interval, and how the fit meets the counts.

Model, as in `platemark.provenance.watermark.calibration`: P(max > z) = 1 - exp(-n · ratio · exp(-z² / (2 s²))) for a search of n
hypotheses. Above a threshold u the excess z² - u² then is exponential with mean 2 s², so that s follows from the mean excess of the top of
the scores, and the ratio from their number. Scores of one picture under many keys are not independent: the interval comes from a bootstrap
over pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TOP, LEAST = 0.01, 100  # share of the scores that the fit looks at, and how many at least
ROUNDS = 1000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """`ratio` and `spread` as above; `threshold`: the score from which on the fit was made; `count`: scores above it, of `trials`."""

    ratio: float
    spread: float
    threshold: float
    count: int
    trials: int

    def chance(self, score: float, hypotheses: float) -> float:
        return -math.expm1(-hypotheses * self.ratio * math.exp(-min(score**2 / (2 * self.spread**2), 700)))

    def score_at(self, p_value: float, hypotheses: float) -> float:
        """The score that chance reaches with that probability."""
        return self.spread * math.sqrt(2 * max(math.log(hypotheses * self.ratio / -math.log1p(-p_value)), 0))


def fit(scores: Floats, hypotheses: float) -> Fit:
    """From the highest scores of many searches of about `hypotheses` hypotheses each."""
    top = min(0.5, max(TOP, LEAST / len(scores)))
    threshold = float(np.quantile(scores, 1 - top))
    above = scores[scores > threshold]
    spread = math.sqrt(float((above**2 - threshold**2).mean()) / 2)
    reached = -math.log1p(-len(above) / len(scores))
    ratio = reached * math.exp(threshold**2 / (2 * spread**2)) / hypotheses
    return Fit(ratio, spread, threshold, len(above), len(scores))


def bootstrap(
    groups: Sequence[Floats], hypotheses: float, p_value: float, rounds: int = ROUNDS
) -> tuple[tuple[float, float], tuple[float, float]]:
    """95 % intervals, by drawing pictures with replacement: of the score at which the fit gives `p_value`, and of the probability that
    other draws give to the score that the fit on all of them chose."""
    rng, chosen = np.random.default_rng(0), fit(np.concatenate(groups), hypotheses).score_at(p_value, hypotheses)
    fits = [fit(np.concatenate([groups[n] for n in rng.integers(0, len(groups), len(groups))]), hypotheses) for _ in range(rounds)]
    scores = np.quantile([one.score_at(p_value, hypotheses) for one in fits], [0.025, 0.975])
    chances = np.quantile([one.chance(chosen, hypotheses) for one in fits], [0.025, 0.975])
    return (float(scores[0]), float(scores[1])), (float(chances[0]), float(chances[1]))
