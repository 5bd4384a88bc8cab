"""DDIM (Song et al. 2020, "Denoising Diffusion Implicit Models", equations 12 and 16): deterministic at η = 0; no state between steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from platemark.errors import InputError
from platemark.runtime.schedulers.base import Draw, Float32, Latents, VariancePreserving, original_from, weighted
from platemark.runtime.schedulers.config import ClippingConfig, parse
from platemark.runtime.schedulers.predict import epsilon_from
from platemark.runtime.schedulers.spacing import check_steps, check_timesteps, spaced_timesteps
from platemark.runtime.schedulers.tables import alphas_cumprod


class DDIMConfig(ClippingConfig):
    set_alpha_to_one: bool = True


class DDIM:
    def __init__(self, name: str, config: Mapping[str, Any], eta: float) -> None:
        self.name = name
        self.stochastic = eta > 0.0
        self._config = parse(DDIMConfig, name, config)
        self._alphas = alphas_cumprod(self._config)
        self._eta = eta

    def plan(self, num_inference_steps: int, draw: Draw | None = None) -> DDIMStepper:
        config, total = self._config, self._config.num_train_timesteps
        check_steps(num_inference_steps, total)
        spaced = spaced_timesteps(config.timestep_spacing, num_inference_steps, total, config.steps_offset).round()
        check_timesteps(spaced, total)
        timesteps = spaced.astype(np.int64)
        alphas = self._alphas[timesteps]
        check_signal(config.prediction_type, alphas)
        before = timesteps - total // num_inference_steps
        final = np.float32(1.0) if config.set_alpha_to_one else self._alphas[0]
        previous = np.where(before >= 0, self._alphas[np.maximum(before, 0)], final).astype(np.float32)
        return DDIMStepper(timesteps.astype(np.float32), (alphas, previous), config, self._eta, draw)


class DDIMStepper(VariancePreserving):
    """`alphas`: ᾱ at each step and at the step that it leads to."""

    def __init__(self, timesteps: Float32, alphas: tuple[Float32, Float32], config: DDIMConfig, eta: float, draw: Draw | None) -> None:
        now, previous = alphas
        one = np.float32(1.0)
        super().__init__(timesteps, np.sqrt(now), np.sqrt(one - now), draw)
        self._kind, self._bounds = config.prediction_type, config.bounds()
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = ((one - previous) / (one - now)) * (one - now / previous)
        self._deviation = np.float32(eta) * np.sqrt(np.maximum(variance, 0))
        self._signal = np.sqrt(previous)
        # Rounding can push the difference below zero where η = 1.
        self._direction = np.sqrt(np.maximum(one - previous - self._deviation**2, 0))

    def step(self, model_output: Latents, i: int, latents: Latents, out: Latents | None = None) -> Latents:
        scales, scratch = (self._alpha[i], self._sigma[i]), self._scratch
        original = original_from(self._kind, model_output, latents, scales, scratch, scratch("original", latents))
        epsilon = epsilon_from(self._kind, model_output, latents, scales, scratch, scratch("epsilon", latents))
        self._bounds(original)
        terms = [(self._signal[i], original), (self._direction[i], epsilon)]
        if self._deviation[i] > 0:
            terms.append((self._deviation[i], self._draw()))
        return weighted(terms, scratch, out)


def check_signal(prediction_type: str, alphas: Float32) -> None:
    """Raises `InputError` where x₀ would be a noise prediction divided by zero."""
    if prediction_type == "epsilon" and alphas.min() == 0.0:
        raise InputError("the first step of this schedule holds no signal to predict noise from", "choose another scheduler")
