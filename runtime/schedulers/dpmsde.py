"""DPM-Solver++ with two stages on the reverse SDE (k-diffusion's DPM++ SDE, after Lu et al. 2022, "DPM-Solver++", and Karras et al. 2022).

Even evaluations go to the middle of the step in log σ; odd ones take the whole step with what the network says there. Noise is the
increment of a Brownian path in σ over each of the two intervals, which overlap: each image's own generator gives the path's two halves
one after the other. The reference asks a Brownian tree for the same increments: the same law, other values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from platemark.runtime.schedulers.base import Draw, Float32, Latents, VarianceExploding, weighted
from platemark.runtime.schedulers.config import LevelsConfig, parse
from platemark.runtime.schedulers.exploding import NoiseTable, ancestral, slope, twice
from platemark.runtime.schedulers.predict import exploding_original
from platemark.runtime.schedulers.spacing import sigma_to_timestep


class DPMSDEConfig(LevelsConfig):
    beta_start: float = Field(default=0.00085, gt=0, lt=1)
    beta_end: float = Field(default=0.012, gt=0, lt=1)
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    noise_sampler_seed: None = None  # noise is the request's own
    # The reference drops it in silence, and with it what the network was trained for.
    rescale_betas_zero_snr: Literal[False] = False


class DPMSDE:
    stochastic = True

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        self.name = name
        self._config = parse(DPMSDEConfig, name, config)
        curve = self._config.levels(name)
        if curve is not None and curve.curve == "karras":
            curve = type(curve)("karras")  # the reference's own Karras levels do not heed sigma_min and sigma_max
        self._table = NoiseTable.of(self._config, curve)

    def plan(self, num_inference_steps: int, draw: Draw | None = None) -> DPMSDEStepper:
        timesteps, sigmas = self._table.visit(num_inference_steps)
        visited = twice(timesteps.astype(np.float32))
        logs = np.log(sigmas)
        visited[1::2] = sigma_to_timestep(np.exp(logs[:-1] + np.diff(logs) * 0.5), self._table.sigmas)
        levels = sigmas.astype(np.float32)
        initial = self._table.initial(levels)
        return DPMSDEStepper(visited, np.append(twice(levels), np.float32(0.0)), initial, self._config.prediction_type, draw)


class DPMSDEStepper(VarianceExploding):
    """Keeps the latents before the step in hand, and the first half of its noise."""

    def __init__(self, timesteps: Float32, sigmas: Float32, initial: float, kind: str, draw: Draw | None) -> None:
        super().__init__(timesteps, sigmas, initial, draw)
        self._kind = kind

    def scale_model_input(self, latents: Latents, i: int, out: Latents | None = None) -> Latents:
        scaled: Latents = np.divide(latents, np.sqrt(self._level(i) ** 2 + 1), out=out)
        return scaled

    def evaluation(self, step: int) -> int:
        return 2 * step

    def noise_level(self, i: int) -> float:
        return float(self._level(i))

    def step(self, model_output: Latents, i: int, latents: Latents, out: Latents | None = None) -> Latents:
        scratch = self._scratch
        original = exploding_original(self._kind, model_output, latents, self._level(i), scratch)
        start, end = self._ends(i)
        if end == 0:
            return weighted([(1.0, latents), (-start, slope(original, latents, start))], scratch, out)
        before, noise = scratch("before", latents), scratch("noise", latents)
        if i % 2 == 0:
            np.copyto(before, latents)
            np.copyto(noise, self._draw())
            return self._moved(latents, original, (start, self._middle(i)), noise, out)
        middle = self._middle(i)
        np.multiply(noise, np.sqrt((start - middle) / (start - end)), out=noise)
        noise += np.multiply(self._draw(), np.sqrt((middle - end) / (start - end)), out=scratch("product", latents))
        return self._moved(before, original, (start, end), noise, out)

    def _moved(self, x: Latents, original: Latents, ends: tuple[np.float32, np.float32], noise: Latents, out: Latents | None) -> Latents:
        """A first-order step between two levels, by λ = −log σ (Lu et al. 2022, equation 4.1), and the noise that it leaves room for."""
        start, end = ends
        down, up = ancestral(start, end)
        with np.errstate(divide="ignore"):  # σ_down = 0: all is noise anew
            h = np.log(start) - np.log(down)
        terms = [(np.exp(-h), x), (-np.expm1(-h), original), (up, noise)]
        return weighted(terms, self._scratch, out)

    def _ends(self, i: int) -> tuple[np.float32, np.float32]:
        first = i - i % 2
        return self._sigmas[first], self._sigmas[first + 1]

    def _middle(self, i: int) -> np.float32:
        start, end = self._ends(i)
        level: np.float32 = np.exp(np.log(start) + (np.log(end) - np.log(start)) * np.float32(0.5))
        return level

    def _level(self, i: int) -> np.float32:
        level: np.float32 = self._sigmas[i] if i % 2 == 0 else self._middle(i)
        return level
