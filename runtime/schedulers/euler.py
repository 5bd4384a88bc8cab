"""Euler's method on the probability-flow ODE in σ (Karras et al. 2022, algorithm 2 without churn), and its ancestral form, which adds fresh
noise after each step (Song et al. 2020, "Score-Based Generative Modeling through SDEs", appendix F). No state between steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from platemark.runtime.schedulers.base import Draw, Float32, Latents, VarianceExploding, weighted
from platemark.runtime.schedulers.config import LevelsConfig, SamplerConfig, parse, unsupported
from platemark.runtime.schedulers.exploding import NoiseTable, ancestral, slope
from platemark.runtime.schedulers.predict import exploding_original
from platemark.runtime.schedulers.spacing import sigma_to_timestep


class EulerConfig(LevelsConfig):
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"
    interpolation_type: Literal["linear", "log_linear"] = "linear"
    timestep_type: Literal["discrete", "continuous"] = "discrete"


class Euler:
    stochastic = False

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        self.name = name
        self._config = parse(EulerConfig, name, config)
        self._table = NoiseTable.of(self._config, self._config.levels(name))
        # The network is told ln(σ)/4 in place of a timestep (Karras et al. 2022, table 1, c_noise).
        self._continuous = self._config.timestep_type == "continuous" and self._config.prediction_type == "v_prediction"
        if self._continuous and self._config.interpolation_type == "log_linear" and self._table.curve is None:
            # Its reference makes one step more than it is asked for.
            raise unsupported(name, "interpolation_type", "log_linear", " beside timestep_type = 'continuous'")

    def plan(self, num_inference_steps: int, draw: Draw | None = None) -> EulerStepper:
        config, table = self._config, self._table
        timesteps, sigmas = table.visit(num_inference_steps)
        last = [0.0 if config.final_sigmas_type == "zero" else float(table.sigmas[0])]
        if config.interpolation_type == "log_linear":
            logs = np.linspace(np.log(table.sigmas[-1]), np.log(table.sigmas[0]), num_inference_steps + 1)
            sigmas = np.exp(logs.astype(np.float32)).astype(np.float64)  # one level more, which is where the last step leads
            if table.curve is not None:
                sigmas = table.curve(sigmas, num_inference_steps)
                timesteps = sigma_to_timestep(sigmas, table.sigmas)
        levels = np.concatenate([sigmas, last]).astype(np.float32)
        initial = table.initial(levels)
        levels = levels[: num_inference_steps + 1]
        if self._continuous:
            timesteps = np.float32(0.25) * np.log(levels[:-1])
        return EulerStepper(timesteps.astype(np.float32), levels, initial, config.prediction_type)


class EulerStepper(VarianceExploding):
    def __init__(self, timesteps: Float32, sigmas: Float32, initial: float, kind: str) -> None:
        super().__init__(timesteps, sigmas, initial)
        self._kind = kind

    def step(self, model_output: Latents, i: int, latents: Latents, out: Latents | None = None) -> Latents:
        sigma = self._sigmas[i]
        derivative = slope(exploding_original(self._kind, model_output, latents, sigma, self._scratch), latents, sigma)
        return weighted([(1.0, latents), (self._sigmas[i + 1] - sigma, derivative)], self._scratch, out)


class EulerAncestralConfig(SamplerConfig):
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    timestep_spacing: Literal["leading", "linspace", "trailing"] = "linspace"


class EulerAncestral:
    stochastic = True

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        self.name = name
        self._config = parse(EulerAncestralConfig, name, config)
        self._table = NoiseTable.of(self._config)

    def plan(self, num_inference_steps: int, draw: Draw | None = None) -> EulerAncestralStepper:
        timesteps, sigmas = self._table.visit(num_inference_steps)
        levels = np.append(sigmas, 0.0).astype(np.float32)
        initial = self._table.initial(levels)
        return EulerAncestralStepper(timesteps.astype(np.float32), levels, initial, self._config.prediction_type, draw)


class EulerAncestralStepper(VarianceExploding):
    def __init__(self, timesteps: Float32, sigmas: Float32, initial: float, kind: str, draw: Draw | None) -> None:
        super().__init__(timesteps, sigmas, initial, draw)
        self._kind = kind

    def step(self, model_output: Latents, i: int, latents: Latents, out: Latents | None = None) -> Latents:
        sigma = self._sigmas[i]
        down, up = ancestral(sigma, self._sigmas[i + 1])
        derivative = slope(exploding_original(self._kind, model_output, latents, sigma, self._scratch), latents, sigma)
        terms = [(1.0, latents), (down - sigma, derivative)]
        if up > 0:
            terms.append((up, self._draw()))
        return weighted(terms, self._scratch, out)
