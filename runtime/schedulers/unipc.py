"""UniPC (Zhao et al. 2023, "UniPC: A Unified Predictor-Corrector Framework", algorithms 1 to 3, with B(h) = h or e^h − 1).

Each network answer first corrects the step that led to it, then predicts the next: one evaluation a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from platemark.runtime.schedulers.base import Draw, Float32, Latents, original_from, weighted
from platemark.runtime.schedulers.config import parse, unsupported
from platemark.runtime.schedulers.multistep import MultistepConfig, MultistepStepper, along, check_levels, spaced_below
from platemark.runtime.schedulers.predict import epsilon_from
from platemark.runtime.schedulers.spacing import check_steps
from platemark.runtime.schedulers.tables import alphas_for_sigmas, sigmas_of


class UniPCConfig(MultistepConfig):
    predict_x0: bool = True
    # The last three are other multistep samplers' solvers, which the reference reads as bh2.
    solver_type: Literal["bh1", "bh2", "midpoint", "heun", "logrho"] = "bh2"
    disable_corrector: tuple[int, ...] = ()
    solver_p: None = None


class UniPC:
    stochastic = False

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        self.name = name
        self._config = parse(UniPCConfig, name, config)
        self._curve = self._config.levels(name)
        if self._config.final_sigmas_type == "zero":
            # λ is infinite at σ = 0: only the first order on x₀ has a limit there.
            if not self._config.predict_x0:
                raise unsupported(name, "predict_x0", False, " beside final_sigmas_type = 'zero'")
            if not self._config.lower_order_final and self._config.solver_order > 1:
                raise unsupported(name, "lower_order_final", False, " beside final_sigmas_type = 'zero'")
        self._table = sigmas_of(alphas_for_sigmas(self._config))

    def plan(self, num_inference_steps: int, draw: Draw | None = None) -> UniPCStepper:
        config, total = self._config, self._config.num_train_timesteps
        check_steps(num_inference_steps, total)
        if self._curve is None:
            timesteps = spaced_below(config.timestep_spacing, num_inference_steps, total, total, config.steps_offset)
            sigmas, last = np.interp(timesteps, np.arange(total), self._table), float(self._table[0])
        else:
            timesteps, sigmas = along(self._curve, self._table, num_inference_steps)
            timesteps = timesteps.round() if self._curve.curve == "karras" else timesteps
            last = float(sigmas[-1])
        levels = np.append(sigmas, 0.0 if config.final_sigmas_type == "zero" else last).astype(np.float32)
        check_levels(levels, num_inference_steps)
        return UniPCStepper(timesteps.astype(np.int64).astype(np.float32), levels, config)


class UniPCStepper(MultistepStepper):
    """Remembers, besides the answers, the corrected latents of the step before and the order of the step that left them."""

    def __init__(self, timesteps: Float32, levels: Float32, config: UniPCConfig) -> None:
        super().__init__(timesteps, levels, config.solver_order)
        self._config, self._bounds, self._kind = config, config.bounds(), config.prediction_type
        self._left: int | None = None

    def step(self, model_output: Latents, i: int, latents: Latents, out: Latents | None = None) -> Latents:
        scratch = self._scratch
        answer = self._answer(model_output, i, latents)
        corrected = scratch("corrected", latents)
        if self._left is not None and i - 1 not in self._config.disable_corrector:
            weighted(self._corrector(i, self._left, answer), scratch, corrected)
        else:
            np.copyto(corrected, latents)
        np.copyto(self._room(latents), answer)
        steps = len(self.timesteps) - i if self._config.lower_order_final else self._order
        self._left = 1 if self._path.half_log_snr[i + 1] == self._path.half_log_snr[i] else min(self._order, steps, len(self._answers))
        return weighted(self._predictor(i, self._left), scratch, out)

    def _answer(self, output: Latents, i: int, latents: Latents) -> Latents:
        kind, scales, scratch = self._config.prediction_type, (self._alpha[i], self._sigma[i]), self._scratch
        if not self._config.predict_x0:
            return epsilon_from(kind, output, latents, scales, scratch, scratch("answer", latents))
        original = original_from(kind, output, latents, scales, scratch, scratch("answer", latents))
        self._bounds(original)
        return original

    def _predictor(self, i: int, order: int) -> list[tuple[np.float32, Latents]]:
        """From level `i` to the next, by the answers so far."""
        kept, scale, hh = self._frame(i)
        ratios, values = self._system(i, order, hh)
        if order == 1:
            rhos = np.empty(0, np.float32)
        elif order == 2:
            rhos = np.array([0.5], np.float32)
        else:
            rhos = np.linalg.solve(_powers(ratios)[:-1, :-1], values[:-1])
        return self._combined(kept, scale * np.expm1(hh), rhos, ratios, scale * self._unit(hh) if order > 1 else scale)

    def _corrector(self, i: int, order: int, answer: Latents) -> list[tuple[np.float32, Latents]]:
        """The step to level `i` again, now that the network has answered there."""
        kept, scale, hh = self._frame(i - 1)
        ratios, values = self._system(i - 1, order, hh)
        rhos = np.array([0.5], np.float32) if order == 1 else np.linalg.solve(_powers(ratios), values)
        unit = scale * self._unit(hh)
        terms = self._combined(kept, scale * np.expm1(hh), rhos[:-1], ratios, unit)
        # The last difference is to the new answer: its other half counts for the newest of memory.
        terms[1] = (terms[1][0] - unit * rhos[-1], terms[1][1])
        return [*terms, (unit * rhos[-1], answer)]

    def _combined(
        self, kept: np.float32, first: np.float32, rhos: Float32, ratios: Float32, unit: np.float32
    ) -> list[tuple[np.float32, Latents]]:
        """Latents, newest answer, and ρ_k of each older answer's divided difference, the latter spread over the answers themselves."""
        newest = first
        older = []
        for rho, ratio, answer in zip(rhos, ratios, self._answers[1:], strict=False):
            weight = unit * rho / ratio
            newest = newest - weight
            older.append((weight, answer))
        return [(kept, self._scratch("corrected", self._answers[0])), (newest, self._answers[0]), *older]

    def _frame(self, i: int) -> tuple[np.float32, np.float32, np.float32]:
        """What is kept of the latents, the scale of the answers, and the signed h, from level `i` to the next."""
        alpha, sigma = self._alpha, self._sigma
        h = self._path.half_log_snr[i + 1] - self._path.half_log_snr[i]
        if self._config.predict_x0:
            return sigma[i + 1] / sigma[i], -alpha[i + 1], -h
        return alpha[i + 1] / alpha[i], -sigma[i + 1], h

    def _unit(self, hh: np.float32) -> np.float32:
        """B(h)."""
        unit: np.float32 = hh if self._config.solver_type == "bh1" else np.expm1(hh)
        return unit

    def _system(self, i: int, order: int, hh: np.float32) -> tuple[Float32, Float32]:
        """The ratios r_k of the older levels (1 at the end), and the right-hand side of the linear system for the ρ_k."""
        levels = self._path.half_log_snr
        h = levels[i + 1] - levels[i]
        ratios = np.array([*((levels[i - k] - levels[i]) / h for k in range(1, order)), 1.0], np.float32)
        values, factorial = [], 1
        phi = np.expm1(hh) / hh - np.float32(1.0)
        for k in range(1, order + 1):
            values.append(phi * np.float32(factorial) / self._unit(hh))
            factorial *= k + 1
            phi = phi / hh - np.float32(1.0 / factorial)
        return ratios, np.array(values, np.float32)


def _powers(ratios: Float32) -> Float32:
    """Rows r^0, r^1, …"""
    return np.stack([ratios**k for k in range(len(ratios))])
