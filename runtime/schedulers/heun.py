"""Heun's second-order method on the probability-flow ODE in σ (Karras et al. 2022, algorithm 1): two evaluations a step, one in the last.

Even evaluations take Euler's step; odd ones look at where it leads and take the step again with the mean of both slopes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from platemark.runtime.schedulers.base import Draw, Float32, Latents, VarianceExploding, weighted
from platemark.runtime.schedulers.config import LevelsConfig, parse
from platemark.runtime.schedulers.exploding import NoiseTable, slope, twice
from platemark.runtime.schedulers.predict import Bounds, exploding_original


class HeunConfig(LevelsConfig):
    beta_start: float = Field(default=0.00085, gt=0, lt=1)
    beta_end: float = Field(default=0.012, gt=0, lt=1)
    clip_sample: bool = False
    clip_sample_range: float = Field(default=1.0, gt=0)
    # The reference drops it in silence, and with it what the network was trained for.
    rescale_betas_zero_snr: Literal[False] = False


class Heun:
    stochastic = False

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        self.name = name
        self._config = parse(HeunConfig, name, config, ("exp",))
        self._table = NoiseTable.of(self._config, self._config.levels(name))

    def plan(self, num_inference_steps: int, draw: Draw | None = None) -> HeunStepper:
        timesteps, sigmas = self._table.visit(num_inference_steps)
        levels = sigmas.astype(np.float32)
        visited = np.append(twice(levels), np.float32(0.0))
        bounds = Bounds(self._config.clip_sample_range if self._config.clip_sample else None)
        kind, initial = self._config.prediction_type, self._table.initial(levels)
        return HeunStepper(twice(timesteps.astype(np.float32)), visited, initial, kind, bounds)


class HeunStepper(VarianceExploding):
    """Keeps the latents before the step in hand, and the slope there."""

    def __init__(self, timesteps: Float32, sigmas: Float32, initial: float, kind: str, bounds: Bounds) -> None:
        super().__init__(timesteps, sigmas, initial)
        self._kind, self._bounds = kind, bounds

    def evaluation(self, step: int) -> int:
        return 2 * step

    def step(self, model_output: Latents, i: int, latents: Latents, out: Latents | None = None) -> Latents:
        sigma, scratch = self._sigmas[i], self._scratch
        original = exploding_original(self._kind, model_output, latents, sigma, scratch)
        self._bounds(original)
        derivative = slope(original, latents, sigma)
        before, first = scratch("before", latents), scratch("first", latents)
        if i % 2 == 0:
            np.copyto(before, latents)
            np.copyto(first, derivative)
            return weighted([(1.0, latents), (self._sigmas[i + 1] - sigma, derivative)], scratch, out)
        np.add(first, derivative, out=derivative)
        np.divide(derivative, np.float32(2.0), out=derivative)
        return weighted([(1.0, before), (sigma - self._sigmas[i - 1], derivative)], scratch, out)
