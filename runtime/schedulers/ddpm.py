"""DDPM (Ho et al. 2020, "Denoising Diffusion Probabilistic Models", equations 6 and 7), with steps left out between its timesteps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from platemark.runtime.schedulers.base import Draw, Float32, Latents, VariancePreserving, original_from, weighted
from platemark.runtime.schedulers.config import ClippingConfig, parse
from platemark.runtime.schedulers.ddim import check_signal
from platemark.runtime.schedulers.spacing import check_steps, check_timesteps, spaced_timesteps
from platemark.runtime.schedulers.tables import alphas_cumprod


class DDPMConfig(ClippingConfig):
    # The reference takes the root of fixed_large_log's negative logarithm, so nothing could be equal to it.
    variance_type: Literal["fixed_small", "fixed_small_log", "fixed_large"] = "fixed_small"


class DDPM:
    stochastic = True

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        self.name = name
        self._config = parse(DDPMConfig, name, config, ("laplace", "sigmoid"))
        self._alphas = alphas_cumprod(self._config)

    def plan(self, num_inference_steps: int, draw: Draw | None = None) -> DDPMStepper:
        config, total = self._config, self._config.num_train_timesteps
        check_steps(num_inference_steps, total)
        spaced = spaced_timesteps(config.timestep_spacing, num_inference_steps, total, config.steps_offset).round()
        check_timesteps(spaced, total)
        alphas = self._alphas[spaced.astype(np.int64)]
        check_signal(config.prediction_type, alphas)
        return DDPMStepper(spaced.astype(np.float32), alphas, config, draw)


class DDPMStepper(VariancePreserving):
    """`alphas`: ᾱ at each step; the last leads to ᾱ = 1."""

    def __init__(self, timesteps: Float32, alphas: Float32, config: DDPMConfig, draw: Draw | None) -> None:
        one = np.float32(1.0)
        super().__init__(timesteps, np.sqrt(alphas), np.sqrt(one - alphas), draw)
        self._kind, self._bounds = config.prediction_type, config.bounds()
        previous = np.append(alphas[1:], one).astype(np.float32)
        kept = alphas / previous
        beta = one - kept
        self._of_original = np.sqrt(previous) * beta / (one - alphas)
        self._of_latents = np.sqrt(kept) * (one - previous) / (one - alphas)
        small = np.maximum((one - previous) / (one - alphas) * beta, np.float32(1e-20))
        deviation = np.sqrt(beta if config.variance_type == "fixed_large" else small)
        self._deviation = np.where(timesteps > 0, deviation, 0).astype(np.float32)

    def step(self, model_output: Latents, i: int, latents: Latents, out: Latents | None = None) -> Latents:
        scales, scratch = (self._alpha[i], self._sigma[i]), self._scratch
        original = original_from(self._kind, model_output, latents, scales, scratch, scratch("original", latents))
        self._bounds(original)
        terms = [(self._of_latents[i], latents), (self._of_original[i], original)]
        if self._deviation[i] > 0:
            terms.append((self._deviation[i], self._draw()))
        return weighted(terms, scratch, out)
