"""DPM-Solver and DPM-Solver++, multistep, orders 1 to 3, on the ODE or the SDE: what "DPM++ 2M" and its variants are.

Lu et al. 2022, "DPM-Solver" (appendix B) for the solvers on ε, and "DPM-Solver++" (section 4, algorithm 2; appendix on the SDE) for those
on x₀. Third order: the expansion of the same integrals by one more term.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from platemark.runtime.schedulers.base import Draw, Float32, Latents, original_from, weighted
from platemark.runtime.schedulers.config import parse, unsupported
from platemark.runtime.schedulers.multistep import Float64, MultistepConfig, MultistepStepper, along, check_levels, spaced_below
from platemark.runtime.schedulers.predict import epsilon_from, noise_of
from platemark.runtime.schedulers.spacing import Levels, check_steps
from platemark.runtime.schedulers.tables import alphas_for_sigmas, sigmas_of

_FEW = 15  # steps, below which lower_order_final counts
Term = tuple[np.float32 | float, Latents]


class DPMConfig(MultistepConfig):
    use_lu_lambdas: bool = False
    euler_at_final: bool = False
    lambda_min_clipped: float = -math.inf
    # The last three are other multistep samplers' solvers, which the reference reads as midpoint; so deis as dpmsolver++.
    solver_type: Literal["midpoint", "heun", "logrho", "bh1", "bh2"] = "midpoint"
    algorithm_type: Literal["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++", "deis"] = "dpmsolver++"

    @property
    def on_noise(self) -> bool:
        """Whether the solver integrates ε rather than x₀."""
        return self.algorithm_type in ("dpmsolver", "sde-dpmsolver")


class DPMSolver:
    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        self.name = name
        self._config = parse(DPMConfig, name, config)
        self.stochastic = self._config.algorithm_type.startswith("sde")
        self._curve = self._chosen_curve()
        if self._config.on_noise and self._config.final_sigmas_type == "zero":
            raise unsupported(name, "final_sigmas_type", "zero", f" beside algorithm_type = {self._config.algorithm_type!r}")
        if self._config.algorithm_type == "sde-dpmsolver" and self._config.solver_order == 3:
            raise unsupported(name, "solver_order", 3, " beside algorithm_type = 'sde-dpmsolver'")
        alphas = alphas_for_sigmas(self._config)
        self._table = sigmas_of(alphas)
        self._half_log_snr = np.log(np.sqrt(alphas)) - np.log(np.sqrt(np.float32(1.0) - alphas))

    def plan(self, num_inference_steps: int, draw: Draw | None = None) -> DPMStepper:
        config = self._config
        check_steps(num_inference_steps, config.num_train_timesteps)
        timesteps, sigmas = self._visit(num_inference_steps)
        final = 0.0 if config.final_sigmas_type == "zero" else float(self._table[0])
        levels = np.append(sigmas, final).astype(np.float32)
        check_levels(levels, num_inference_steps)
        return DPMStepper(timesteps.astype(np.int64).astype(np.float32), levels, config, draw)

    def _chosen_curve(self) -> Levels | None:
        """Where several are set, the reference takes Karras first, then Lu; it refuses two of the other three."""
        curve = self._config.levels(self.name)
        if self._config.use_lu_lambdas and (curve is None or curve.curve != "karras"):
            return Levels("lu")
        return curve

    def _visit(self, steps: int) -> tuple[Float64, Float64]:
        """Timesteps and noise levels; log-SNRs below `lambda_min_clipped` are left out at the noisy end."""
        config, total = self._config, self._config.num_train_timesteps
        if self._curve is None:
            last = total - int(np.searchsorted(self._half_log_snr[::-1], np.float32(config.lambda_min_clipped)))
            timesteps = spaced_below(config.timestep_spacing, steps, last, total, config.steps_offset)
            return timesteps, np.interp(timesteps, np.arange(total), self._table)
        timesteps, levels = along(self._curve, self._table, steps)
        rounded = self._curve.curve in ("karras", "lu") and config.beta_schedule != "squaredcos_cap_v2"
        return timesteps.round() if rounded else timesteps, levels


class DPMStepper(MultistepStepper):
    def __init__(self, timesteps: Float32, levels: Float32, config: DPMConfig, draw: Draw | None) -> None:
        super().__init__(timesteps, levels, config.solver_order, draw)
        self._config, self._bounds, self._kind = config, config.bounds(), config.prediction_type
        self._stochastic = config.algorithm_type.startswith("sde")

    def step(self, model_output: Latents, i: int, latents: Latents, out: Latents | None = None) -> Latents:
        self._remember(model_output, i, latents)
        slope, bend = self._differences(i, self._order_now(i), latents)
        terms = self._terms(i, latents, slope, bend)
        if self._stochastic and self._path.sigma[i + 1] > 0:
            terms.append((self._deviation(i), self._draw()))
        return weighted(terms, self._scratch, out)

    def _remember(self, output: Latents, i: int, latents: Latents) -> None:
        """The answer as the solver's own quantity, x₀ or ε, with bounds on x₀ either way."""
        kind, scales = self._config.prediction_type, (self._alpha[i], self._sigma[i])
        room = self._room(latents)
        if not self._config.on_noise:
            self._bounds(original_from(kind, output, latents, scales, self._scratch, room))
            return
        epsilon_from(kind, output, latents, scales, self._scratch, room)
        if self._config.thresholding:
            original = original_from("epsilon", room, latents, scales, self._scratch, self._scratch("original", latents))
            self._bounds(original)
            noise_of(latents, original, scales, room)

    def _order_now(self, i: int) -> int:
        """As many steps back as there are answers, and fewer at the end of a short run."""
        config, steps = self._config, len(self.timesteps)
        short = config.lower_order_final and steps < _FEW
        if i == steps - 1 and (config.euler_at_final or short or config.final_sigmas_type == "zero" or self._h(i) == 0):
            return 1
        return min(len(self._answers), 2 if i == steps - 2 and short else config.solver_order)

    def _h(self, i: int) -> np.float32:
        """How far step `i` goes in λ."""
        h: np.float32 = self._path.half_log_snr[i + 1] - self._path.half_log_snr[i]
        return h

    def _differences(self, i: int, order: int, like: Latents) -> tuple[Latents | None, Latents | None]:
        """First and second divided differences of the answers, times h and h²; None where the order has no use for them."""
        if order == 1:
            return None, None
        newest, second = self._answers[:2]
        h, h0 = self._h(i), self._h(i - 1)
        r0 = h0 / h
        slope = np.subtract(newest, second, out=self._scratch("slope", like))
        slope *= np.float32(1.0) / r0
        if order == 2:
            return slope, None
        r1 = self._h(i - 2) / h
        bend = np.subtract(second, self._answers[2], out=self._scratch("bend", like))
        bend *= np.float32(1.0) / r1
        np.subtract(slope, bend, out=bend)
        slope += (r0 / (r0 + r1)) * bend
        bend *= np.float32(1.0) / (r0 + r1)
        return slope, bend

    def _terms(self, i: int, latents: Latents, slope: Latents | None, bend: Latents | None) -> list[Term]:
        """The deterministic part: latents, newest answer, and the differences that the order uses, each times its integral."""
        kept, scale, x = self._frame(i)
        growth = np.exp(x) - np.float32(1.0)
        terms: list[Term] = [(kept, latents), (scale * growth, self._answers[0])]
        if slope is not None:
            midpoint = self._config.solver_type != "heun" and bend is None
            terms.append((scale * (np.float32(0.5) * growth if midpoint else growth / x - np.float32(1.0)), slope))
        if bend is not None:
            # The integral tends to 1/2; on the SDE the reference adds it where it subtracts it elsewhere, and is followed.
            half = np.float32(-0.5 if self._stochastic else 0.5)
            terms.append((scale * ((growth - x) / x**2 - half), bend))
        return terms

    def _frame(self, i: int) -> tuple[np.float32, np.float32, np.float32]:
        """What is kept of the latents, the scale of the answers, and the exponent of the exponential integrator, over step `i`."""
        alpha, sigma, h = self._alpha, self._sigma, self._h(i)
        if self._config.on_noise:
            return alpha[i + 1] / alpha[i], -sigma[i + 1] * np.float32(2.0 if self._stochastic else 1.0), h
        shrink = sigma[i + 1] / sigma[i]
        if self._stochastic:
            return shrink * np.exp(-h), -alpha[i + 1], np.float32(-2.0) * h
        return shrink, -alpha[i + 1], -h

    def _deviation(self, i: int) -> np.float32:
        """Of the noise that the SDE adds over step `i`."""
        h = np.float32(2.0) * self._h(i)
        variance = np.exp(h) - np.float32(1.0) if self._config.on_noise else np.float32(1.0) - np.exp(-h)
        deviation: np.float32 = self._sigma[i + 1] * np.sqrt(variance)
        return deviation
