"""Which training timesteps and noise levels the steps of a run visit. Knows no sampler and no training schedule beyond its table."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from platemark.errors import InputError
from platemark.runtime.schedulers.base import Float32

Float64 = NDArray[np.float64]
_RHO = 7.0  # Karras et al. 2022, section 3
_BETA = 0.6  # both parameters of the Beta distribution: Lee et al. 2024, section 4
_TERMS, _ROUNDS = 64, 12  # of the power series at x <= 1/2, and of Newton's method: both end at float64's resolution


def check_steps(num_inference_steps: int, most: int) -> None:
    """Raises `InputError` where a plan of that many steps cannot exist."""
    if not 1 <= num_inference_steps <= most:
        raise InputError(f"{num_inference_steps} inference steps are not possible", f"use 1 to {most} steps")


def check_timesteps(timesteps: Float64, total: int) -> None:
    """Raises `InputError` where a timestep (steps and offset together) lies past the last one of training."""
    if timesteps.max() >= total:
        raise InputError(f"{len(timesteps)} inference steps reach past the last trained timestep", "use fewer steps")


def spaced_timesteps(spacing: str, steps: int, last: int, offset: int) -> Float64:
    """`steps` descending timesteps below `last` (Lin et al. 2023, table 2); linspace values are not rounded."""
    if spacing == "linspace":
        return np.linspace(0, last - 1, steps)[::-1]
    if spacing == "leading":
        return np.arange(steps, dtype=np.float64)[::-1] * (last // steps) + offset
    # arange can overshoot by one float error; the extra step would sit at timestep -1.
    return np.arange(last, 0, -last / steps).round()[:steps] - 1.0


@dataclass(frozen=True)
class Levels:
    """The curve that noise levels follow between their extremes: `karras`, `exponential`, `beta` or `lu`.

    `sigma_min` and `sigma_max` replace the extremes where they are given.
    """

    curve: str
    sigma_min: float | None = None
    sigma_max: float | None = None

    def __call__(self, sigmas: Float64, steps: int) -> Float64:
        """`steps` levels, descending, from the first of `sigmas` to its last."""
        low = float(sigmas[-1]) if self.sigma_min is None else self.sigma_min
        high = float(sigmas[0]) if self.sigma_max is None else self.sigma_max
        if self.curve == "karras":
            return karras_sigmas(low, high, steps)
        if self.curve == "beta":
            return low + beta_quantiles(1.0 - np.linspace(0, 1, steps)) * (high - low)
        if self.curve == "lu":
            return lu_sigmas(low, high, steps)
        return np.exp(np.linspace(math.log(high), math.log(low), steps))


def karras_sigmas(sigma_min: float, sigma_max: float, steps: int) -> Float64:
    """`steps` noise levels from `sigma_max` down to `sigma_min` (Karras et al. 2022, equation 5, ρ = 7)."""
    low, high = sigma_min ** (1 / _RHO), sigma_max ** (1 / _RHO)
    levels: Float64 = (high + np.linspace(0, 1, steps) * (low - high)) ** _RHO
    return levels


def lu_sigmas(sigma_min: float, sigma_max: float, steps: int) -> Float64:
    """Uniform in log-SNR, which is uniform in log σ (Lu et al. 2022, "DPM-Solver", section 3.4).

    The ends are float32 logarithms, as the table of timesteps is: near an end, a rounding more decides between two whole timesteps.
    """
    low, high = float(np.log(np.float32(sigma_min))), float(np.log(np.float32(sigma_max)))
    return np.exp(high + np.linspace(0, 1, steps) * (low - high))


def beta_quantiles(probabilities: Float64) -> Float64:
    """Quantiles of the Beta(0.6, 0.6) distribution (Lee et al. 2024, "Beta Sampling is All You Need").

    The lower half by Newton's method on the power series of the incomplete beta function (Abramowitz and Stegun, 26.5.4), in y = x^0.6,
    in which the series is almost a straight line; the upper half by symmetry.
    """
    lower = np.minimum(probabilities, 1.0 - probabilities)
    counts = np.arange(_TERMS)
    # (1 − b)_n / n!, the coefficients of (1 − x)^(b − 1)
    powers = np.concatenate([[1.0], np.cumprod((counts[1:] - _BETA) / counts[1:])])
    total = math.gamma(_BETA) ** 2 / math.gamma(2 * _BETA)
    y = lower * total * _BETA
    for _ in range(_ROUNDS):
        x = y ** (1 / _BETA)
        series = x[:, np.newaxis] ** counts
        value = y / total * (series @ (powers / (_BETA + counts)))
        slope = (series @ powers) / (total * _BETA)
        y = np.maximum(y - (value - lower) / slope, 0.0)
    x = y ** (1 / _BETA)
    return np.where(probabilities <= 0.5, x, 1.0 - x)


def sigma_to_timestep(sigmas: Float64, table: Float32) -> Float64:
    """Fractional timesteps of noise levels, by linear interpolation of log σ over the training `table` (ascending)."""
    logs = np.log(table).astype(np.float64)
    return np.interp(np.log(np.maximum(sigmas, 1e-10)), logs, np.arange(len(logs), dtype=np.float64))
