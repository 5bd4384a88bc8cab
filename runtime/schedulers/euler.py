"""Euler's method on the probability-flow ODE in σ (Karras et al. 2022, algorithm 2 without churn): no state between steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from platemark.runtime.schedulers.base import Latents
from platemark.runtime.schedulers.config import (
    Float32,
    SamplerConfig,
    alphas_cumprod,
    check_steps,
    karras_sigmas,
    parse,
    sigma_to_timestep,
    sigmas_of,
    spaced_timesteps,
)

# With zero terminal SNR the last ᾱ is 0 and σ infinite; the reference puts float16's smallest subnormal there.
ZERO_SNR_ALPHA = np.float32(2.0**-24)


class EulerConfig(SamplerConfig):
    timestep_spacing: Literal["leading", "linspace", "trailing"] = "linspace"
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"
    use_karras_sigmas: bool = False
    sigma_min: float | None = Field(default=None, gt=0)
    sigma_max: float | None = Field(default=None, gt=0)
    interpolation_type: Literal["linear"] = "linear"
    timestep_type: Literal["discrete"] = "discrete"
    use_exponential_sigmas: Literal[False] = False
    use_beta_sigmas: Literal[False] = False


class Euler:
    name = "euler"

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = parse(EulerConfig, self.name, config)
        alphas = alphas_cumprod(self._config)
        if self._config.rescale_betas_zero_snr:
            alphas[-1] = ZERO_SNR_ALPHA
        self._table = sigmas_of(alphas)

    def plan(self, num_inference_steps: int) -> EulerStepper:
        config, total = self._config, self._config.num_train_timesteps
        check_steps(num_inference_steps, total)
        spaced = spaced_timesteps(config.timestep_spacing, num_inference_steps, total, config.steps_offset)
        timesteps: np.ndarray[Any, np.dtype[Any]] = spaced.astype(np.float32)
        sigmas = np.interp(timesteps, np.arange(total), self._table)
        if config.use_karras_sigmas:
            low, high = config.sigma_min or float(sigmas[-1]), config.sigma_max or float(sigmas[0])
            sigmas = karras_sigmas(low, high, num_inference_steps)
            timesteps = sigma_to_timestep(sigmas, self._table)
        final = 0.0 if config.final_sigmas_type == "zero" else self._table[0]
        levels = np.concatenate([sigmas, [final]]).astype(np.float32)
        return EulerStepper(timesteps.astype(np.float32), levels, config.prediction_type, self._initial(levels.max()))

    def _initial(self, sigma: np.float32) -> float:
        return float(np.sqrt(sigma**2 + 1) if self._config.timestep_spacing == "leading" else sigma)


@dataclass(frozen=True)
class EulerStepper:
    """σ before each step and, one longer than `timesteps`, after the last."""

    timesteps: Float32
    sigmas: Float32
    prediction_type: str
    init_noise_sigma: float

    def scale_model_input(self, latents: Latents, i: int) -> Latents:
        scaled: Latents = latents / np.sqrt(self.sigmas[i] ** 2 + 1)
        return scaled

    def step(self, model_output: Latents, i: int, latents: Latents) -> Latents:
        sigma = self.sigmas[i]
        derivative = (latents - self._original(model_output, i, latents)) / sigma
        moved: Latents = latents + derivative * (self.sigmas[i + 1] - sigma)
        return moved

    def _original(self, model_output: Latents, i: int, latents: Latents) -> Latents:
        sigma, square = self.sigmas[i], self.sigmas[i] ** 2 + 1
        original: Latents
        if self.prediction_type == "epsilon":
            original = latents - sigma * model_output
        elif self.prediction_type == "sample":
            original = model_output
        else:
            original = model_output * (-sigma / np.sqrt(square)) + latents / square
        return original
