"""PNDM without Runge-Kutta steps, called PLMS (Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds", equations 9
and 11): Adams-Bashforth of the fourth order on what the network predicts. The sampler that Stable Diffusion 1.x checkpoints name.

The first step is taken twice, the second time with the mean of both ends, so a run has one evaluation more than steps. A run that begins
later has no second try and begins with the first order (its reference would apply the second try to the wrong step).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from platemark.runtime.schedulers.base import Draw, Float32, Latents, VariancePreserving, weighted
from platemark.runtime.schedulers.config import SamplerConfig, parse
from platemark.runtime.schedulers.predict import epsilon_from
from platemark.runtime.schedulers.spacing import check_steps, check_timesteps, spaced_timesteps
from platemark.runtime.schedulers.tables import alphas_cumprod

# Adams-Bashforth weights by the number of answers, the newest first.
_WEIGHTS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


class PNDMConfig(SamplerConfig):
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    set_alpha_to_one: bool = False
    skip_prk_steps: Literal[True]
    # The reference drops it in silence, and with it what the network was trained for.
    rescale_betas_zero_snr: Literal[False] = False


class PNDM:
    stochastic = False

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        self.name = name
        self._config = parse(PNDMConfig, name, {"skip_prk_steps": False, **config})
        self._alphas = alphas_cumprod(self._config)

    def plan(self, num_inference_steps: int, draw: Draw | None = None) -> PNDMStepper:
        config, total = self._config, self._config.num_train_timesteps
        check_steps(num_inference_steps, total)
        spaced = spaced_timesteps(config.timestep_spacing, num_inference_steps, total, config.steps_offset).round()
        check_timesteps(spaced, total)
        once = spaced.astype(np.int64)
        timesteps = np.concatenate([once[:2], once[1:]])
        start, end = timesteps.copy(), timesteps - total // num_inference_steps
        if len(timesteps) > 2:
            start[1], end[1] = timesteps[1] + total // num_inference_steps, timesteps[1]  # the first step again
            check_timesteps(start.astype(np.float64), total)
        final = np.float32(1.0) if config.set_alpha_to_one else self._alphas[0]
        after = np.where(end >= 0, self._alphas[np.maximum(end, 0)], final).astype(np.float32)
        return PNDMStepper(timesteps.astype(np.float32), self._alphas[timesteps], (self._alphas[start], after), config.prediction_type)


class PNDMStepper(VariancePreserving):
    """`alphas`: ᾱ at each evaluation; `ends`: ᾱ where its step begins and where it leads to. Keeps the last four answers."""

    def __init__(self, timesteps: Float32, alphas: Float32, ends: tuple[Float32, Float32], kind: str) -> None:
        super().__init__(timesteps, np.sqrt(alphas), np.sqrt(np.float32(1.0) - alphas), None)
        self._kind, self._twice = kind, len(timesteps) > 2
        now, after = ends
        one = np.float32(1.0)
        self._scales = np.sqrt(now), np.sqrt(one - now)
        self._kept = np.sqrt(after / now)
        self._moved = -(after - now) / (now * np.sqrt(one - after) + np.sqrt(now * (one - now) * after))
        self._answers: list[Latents] = []

    def evaluation(self, step: int) -> int:
        return step + 1 if step and self._twice else step

    def step(self, model_output: Latents, i: int, latents: Latents, out: Latents | None = None) -> Latents:
        scratch, before = self._scratch, self._scratch("before", latents)
        again = i == 1 and self._twice
        if not again:
            room = self._answers.pop() if len(self._answers) == len(_WEIGHTS) else np.empty(latents.shape, np.float32)
            np.copyto(room, model_output)
            self._answers.insert(0, room)
            np.copyto(before, latents)
        answer = scratch("answer", latents)
        if again:
            weighted([(np.float32(0.5), model_output), (np.float32(0.5), self._answers[0])], scratch, answer)
        else:
            weights = _WEIGHTS[len(self._answers) - 1]
            weighted([(np.float32(w), one) for w, one in zip(weights, self._answers, strict=True)], scratch, answer)
        scales = self._scales[0][i], self._scales[1][i]
        epsilon = epsilon_from(self._kind, answer, before, scales, scratch, scratch("epsilon", latents))
        return weighted([(self._kept[i], before), (self._moved[i], epsilon)], scratch, out)
