"""Samplers of consistency-distilled networks: LCM (Luo et al. 2023, "Latent Consistency Models", algorithm 3) and TCD (Zheng et al. 2024,
"Trajectory Consistency Distillation", algorithm 2). Both visit timesteps of the distillation's own schedule, whatever the spacing says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from platemark.runtime.schedulers.base import Draw, Float32, Latents, VariancePreserving, original_from, weighted
from platemark.runtime.schedulers.config import ClippingConfig, parse, unsupported
from platemark.runtime.schedulers.ddim import check_signal
from platemark.runtime.schedulers.predict import epsilon_from
from platemark.runtime.schedulers.spacing import check_steps
from platemark.runtime.schedulers.tables import alphas_cumprod

_SIGMA_DATA_SQUARE = 0.25


class ConsistencyConfig(ClippingConfig):
    beta_start: float = Field(default=0.00085, gt=0, lt=1)
    beta_end: float = Field(default=0.012, gt=0, lt=1)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "scaled_linear"
    clip_sample: bool = False
    set_alpha_to_one: bool = True  # without effect, as in the reference: no step leads below timestep 0
    original_inference_steps: int = Field(default=50, ge=1)
    timestep_scaling: float = 10.0


class _Consistency:
    """What both have in common: config, ᾱ, and the timesteps of a run."""

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        self.name = name
        self._config = parse(ConsistencyConfig, name, config)
        self._alphas = alphas_cumprod(self._config)
        if self._config.original_inference_steps > self._config.num_train_timesteps:
            raise unsupported(name, "original_inference_steps", self._config.original_inference_steps)

    def _timesteps(self, steps: int) -> NDArray[np.int64]:
        """`steps` of the distillation's timesteps, evenly, from the last one down."""
        config, count = self._config, self._config.original_inference_steps
        check_steps(steps, count)
        origin = (np.arange(1, count + 1) * (config.num_train_timesteps // count) - 1)[::-1]
        timesteps: NDArray[np.int64] = origin[np.floor(np.linspace(0, count, steps, endpoint=False)).astype(np.int64)]
        check_signal(config.prediction_type, self._alphas[timesteps])
        return timesteps


class LCM(_Consistency):
    stochastic = True

    def plan(self, num_inference_steps: int, draw: Draw | None = None) -> LCMStepper:
        timesteps = self._timesteps(num_inference_steps)
        return LCMStepper(timesteps.astype(np.float32), self._alphas[timesteps], self._config, draw)


class LCMStepper(VariancePreserving):
    def __init__(self, timesteps: Float32, alphas: Float32, config: ConsistencyConfig, draw: Draw | None) -> None:
        super().__init__(timesteps, np.sqrt(alphas), np.sqrt(np.float32(1.0) - alphas), draw)
        self._kind, self._bounds = config.prediction_type, config.bounds()
        scaled = timesteps * np.float32(config.timestep_scaling)
        square = scaled**2 + np.float32(_SIGMA_DATA_SQUARE)
        self._skip, self._out = np.float32(_SIGMA_DATA_SQUARE) / square, scaled / np.sqrt(square)

    def step(self, model_output: Latents, i: int, latents: Latents, out: Latents | None = None) -> Latents:
        scales, scratch = (self._alpha[i], self._sigma[i]), self._scratch
        original = original_from(self._kind, model_output, latents, scales, scratch, scratch("original", latents))
        self._bounds(original)
        denoised = weighted([(self._skip[i], latents), (self._out[i], original)], scratch, out)
        if i == len(self.timesteps) - 1:
            return denoised
        return weighted([(self._alpha[i + 1], denoised), (self._sigma[i + 1], self._draw())], scratch, denoised)


class TCD(_Consistency):
    """`eta` in [0, 1], the paper's γ: how far each step goes back to noise. The reference bounds no x₀ here, so neither does this."""

    def __init__(self, name: str, config: Mapping[str, Any], eta: float) -> None:
        super().__init__(name, config)
        self.stochastic = eta > 0.0
        self._eta = eta

    def plan(self, num_inference_steps: int, draw: Draw | None = None) -> TCDStepper:
        timesteps = self._timesteps(num_inference_steps)
        previous = np.append(timesteps[1:], 0)
        between = np.floor(np.float32(1.0 - self._eta) * previous.astype(np.float32)).astype(np.int64)
        alphas = (self._alphas[timesteps], self._alphas[previous], self._alphas[between])
        return TCDStepper(timesteps.astype(np.float32), alphas, self._config.prediction_type, self.stochastic, draw)


class TCDStepper(VariancePreserving):
    """`alphas`: ᾱ at each step, at the next, and at the timestep s between that the network jumps to."""

    def __init__(self, timesteps: Float32, alphas: tuple[Float32, Float32, Float32], kind: str, noisy: bool, draw: Draw | None) -> None:
        now, previous, between = alphas
        one = np.float32(1.0)
        super().__init__(timesteps, np.sqrt(now), np.sqrt(one - now), draw)
        self._kind, self._noisy = kind, noisy
        self._signal, self._direction = np.sqrt(between), np.sqrt(one - between)
        ratio = np.minimum(previous / between, one)
        self._kept, self._deviation = np.sqrt(ratio), np.sqrt(one - ratio)

    def step(self, model_output: Latents, i: int, latents: Latents, out: Latents | None = None) -> Latents:
        scales, scratch = (self._alpha[i], self._sigma[i]), self._scratch
        original = original_from(self._kind, model_output, latents, scales, scratch, scratch("original", latents))
        epsilon = epsilon_from(self._kind, model_output, latents, scales, scratch, scratch("epsilon", latents))
        moved = weighted([(self._signal[i], original), (self._direction[i], epsilon)], scratch, out)
        if not self._noisy or i == len(self.timesteps) - 1:
            return moved
        return weighted([(self._kept[i], moved), (self._deviation[i], self._draw())], scratch, moved)
