"""DDIM (Song et al. 2020, "Denoising Diffusion Implicit Models", equation 12 with η = 0): deterministic, no state between steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from platemark.errors import InputError
from platemark.runtime.schedulers.base import Latents
from platemark.runtime.schedulers.config import Float32, SamplerConfig, alphas_cumprod, check_steps, parse, spaced_timesteps


class DDIMConfig(SamplerConfig):
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True
    thresholding: Literal[False] = False
    dynamic_thresholding_ratio: float = 0.995  # without effect, as sample_max_value: thresholding is off
    sample_max_value: float = 1.0


class DDIM:
    name = "ddim"

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = parse(DDIMConfig, self.name, config)
        self._alphas = alphas_cumprod(self._config)

    def plan(self, num_inference_steps: int) -> DDIMStepper:
        config, total = self._config, self._config.num_train_timesteps
        check_steps(num_inference_steps, total)
        timesteps = spaced_timesteps(config.timestep_spacing, num_inference_steps, total, config.steps_offset).round().astype(np.int64)
        if timesteps[0] >= total:
            raise InputError(f"{num_inference_steps} inference steps reach past the last trained timestep", "use fewer steps")
        alphas = self._alphas[timesteps]
        if config.prediction_type == "epsilon" and alphas[0] == 0.0:
            raise InputError("the first step of this schedule holds no signal to predict noise from", "choose another scheduler")
        before = timesteps - total // num_inference_steps
        final = np.float32(1.0) if config.set_alpha_to_one else self._alphas[0]
        previous = np.where(before >= 0, self._alphas[np.maximum(before, 0)], final).astype(np.float32)
        return DDIMStepper(timesteps.astype(np.float32), alphas, previous, config)


@dataclass(frozen=True)
class DDIMStepper:
    """ᾱ at each step and at the step that it leads to."""

    timesteps: Float32
    alphas: Float32
    previous: Float32
    config: DDIMConfig
    init_noise_sigma: float = 1.0

    def scale_model_input(self, latents: Latents, i: int) -> Latents:
        return latents

    def step(self, model_output: Latents, i: int, latents: Latents) -> Latents:
        signal, noise = np.sqrt(self.alphas[i]), np.sqrt(np.float32(1.0) - self.alphas[i])
        if self.config.prediction_type == "epsilon":
            original, epsilon = (latents - noise * model_output) / signal, model_output
        elif self.config.prediction_type == "sample":
            original, epsilon = model_output, (latents - signal * model_output) / noise
        else:
            original, epsilon = signal * latents - noise * model_output, signal * model_output + noise * latents
        if self.config.clip_sample:
            original = np.clip(original, -self.config.clip_sample_range, self.config.clip_sample_range)
        previous = self.previous[i]
        moved: Latents = np.sqrt(previous) * original + np.sqrt(np.float32(1.0) - previous) * epsilon
        return moved
