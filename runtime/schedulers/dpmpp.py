"""DPM-Solver++ (2M) (Lu et al. 2022, "DPM-Solver++", algorithm 2): a multistep solver that keeps the last x₀ estimate of its run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from platemark.errors import InputError
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
from platemark.runtime.schedulers.euler import ZERO_SNR_ALPHA


class DPMConfig(SamplerConfig):
    timestep_spacing: Literal["leading", "linspace", "trailing"] = "linspace"
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"
    use_karras_sigmas: bool = False
    lower_order_final: bool = True
    euler_at_final: bool = False
    lambda_min_clipped: float = -math.inf
    solver_order: Literal[1, 2] = 2
    # The last three are other multistep samplers' solvers, which the reference reads as midpoint.
    solver_type: Literal["midpoint", "heun", "logrho", "bh1", "bh2"] = "midpoint"
    algorithm_type: Literal["dpmsolver++", "deis"] = "dpmsolver++"
    thresholding: Literal[False] = False
    dynamic_thresholding_ratio: float = 0.995  # without effect, as sample_max_value: thresholding is off
    sample_max_value: float = 1.0
    use_exponential_sigmas: Literal[False] = False
    use_beta_sigmas: Literal[False] = False
    use_lu_lambdas: Literal[False] = False


class DPMSolverPP:
    name = "dpm++2m"

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = parse(DPMConfig, self.name, config)
        alphas = alphas_cumprod(self._config)
        if self._config.rescale_betas_zero_snr:
            alphas[-1] = ZERO_SNR_ALPHA
        self._table = sigmas_of(alphas)
        self._lambdas = np.log(np.sqrt(alphas)) - np.log(np.sqrt(np.float32(1.0) - alphas))

    def plan(self, num_inference_steps: int) -> DPMStepper:
        config = self._config
        check_steps(num_inference_steps, config.num_train_timesteps)
        timesteps = self._timesteps(num_inference_steps)
        sigmas = np.interp(timesteps, np.arange(len(self._table)), self._table)
        if config.use_karras_sigmas:
            sigmas = karras_sigmas(float(self._table[0]), float(self._table[-1]), num_inference_steps)
            timesteps = sigma_to_timestep(sigmas, self._table)
            timesteps = timesteps if config.beta_schedule == "squaredcos_cap_v2" else timesteps.round()
        final = 0.0 if config.final_sigmas_type == "zero" else self._table[0]
        levels = np.concatenate([sigmas, [final]]).astype(np.float32)
        # Only the last step may stand still; elsewhere equal noise levels would divide by zero.
        if np.any(np.diff(levels[:-1]) >= 0.0):
            raise InputError(f"{num_inference_steps} inference steps are too many for this schedule", "use fewer steps")
        return DPMStepper(timesteps.astype(np.int64).astype(np.float32), levels, config)

    def _timesteps(self, steps: int) -> NDArray[np.float64]:
        """One step more is spaced out than is taken; log-SNRs below `lambda_min_clipped` are left out at the noisy end."""
        config = self._config
        last = config.num_train_timesteps - int(np.searchsorted(self._lambdas[::-1], np.float32(config.lambda_min_clipped)))
        if config.timestep_spacing == "trailing":
            stride = config.num_train_timesteps / steps
            return np.arange(last, 0, -stride).round()[:steps] - 1.0
        return spaced_timesteps(config.timestep_spacing, steps + 1, last, config.steps_offset).round()[:-1]


class DPMStepper:
    """σ before each step and after the last, and the x₀ estimate of the step before."""

    init_noise_sigma = 1.0

    def __init__(self, timesteps: Float32, sigmas: Float32, config: DPMConfig) -> None:
        self.timesteps = timesteps
        self._config = config
        self._sigmas = sigmas
        self._alpha = np.float32(1.0) / np.sqrt(sigmas**2 + 1)
        self._sigma = sigmas * self._alpha
        with np.errstate(divide="ignore"):  # a final σ of 0 is λ = ∞, whose step lands on x₀
            self._lambda = np.log(self._alpha) - np.log(self._sigma)
        self._previous: Latents | None = None

    def scale_model_input(self, latents: Latents, i: int) -> Latents:
        return latents

    def step(self, model_output: Latents, i: int, latents: Latents) -> Latents:
        original = self._original(model_output, i, latents)
        previous, self._previous = self._previous, original
        h = self._lambda[i + 1] - self._lambda[i]
        decay = np.exp(-h) - np.float32(1.0)
        moved: Latents = (self._sigma[i + 1] / self._sigma[i]) * latents - (self._alpha[i + 1] * decay) * original
        if previous is None or self._config.solver_order == 1 or self._first_order_final(i):
            return moved
        slope = (h / (self._lambda[i] - self._lambda[i - 1])) * (original - previous)
        if self._config.solver_type == "heun":
            moved = moved + (self._alpha[i + 1] * (decay / h + np.float32(1.0))) * slope
        else:
            moved = moved - np.float32(0.5) * (self._alpha[i + 1] * decay) * slope
        return moved

    def _original(self, model_output: Latents, i: int, latents: Latents) -> Latents:
        """The network's estimate of x₀."""
        alpha, sigma = self._alpha[i], self._sigma[i]
        original: Latents
        if self._config.prediction_type == "epsilon":
            original = (latents - sigma * model_output) / alpha
        elif self._config.prediction_type == "sample":
            original = model_output
        else:
            original = alpha * latents - sigma * model_output
        return original

    def _first_order_final(self, i: int) -> bool:
        steps, config = len(self.timesteps), self._config
        short = config.lower_order_final and steps < 15
        return i == steps - 1 and (config.euler_at_final or short or config.final_sigmas_type == "zero")
