"""What the multistep solvers (DPM-Solver++, UniPC) share: their noise levels, α, σ and λ, and a memory of the last network answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from platemark.errors import InputError
from platemark.runtime.schedulers.base import Draw, Float32, Latents, VariancePreserving
from platemark.runtime.schedulers.config import LevelsConfig, ThresholdingConfig
from platemark.runtime.schedulers.spacing import Levels, sigma_to_timestep, spaced_timesteps

Float64 = NDArray[np.float64]


class MultistepConfig(LevelsConfig, ThresholdingConfig):
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"
    lower_order_final: bool = True
    solver_order: Literal[1, 2, 3] = 2


def spaced_below(spacing: str, steps: int, last: int, total: int, offset: int) -> Float64:
    """Whole timesteps: one step more is spaced out than is taken, except for trailing."""
    if spacing == "trailing":
        return np.arange(last, 0, -total / steps).round()[:steps] - 1.0
    return spaced_timesteps(spacing, steps + 1, last, offset).round()[:-1]


def along(curve: Levels, table: Float32, steps: int) -> tuple[Float64, Float64]:
    """Fractional timesteps and levels of a run along a curve over the whole table."""
    levels = curve(table[::-1].astype(np.float64), steps)
    return sigma_to_timestep(levels, table), levels


def check_levels(levels: Float32, steps: int) -> None:
    """Raises `InputError` where two steps are at one noise level: only the last may stand still."""
    if np.any(np.diff(levels[:-1]) >= 0.0):
        raise InputError(f"{steps} inference steps are too many for this schedule", "use fewer steps")


@dataclass(frozen=True)
class Path:
    """α, σ and the half log-SNR λ = log α − log σ at each level; a last σ of 0 is λ = ∞, whose step lands on x₀."""

    alpha: Float32
    sigma: Float32
    half_log_snr: Float32

    @classmethod
    def of(cls, levels: Float32) -> Path:
        alpha: Float32 = (np.float32(1.0) / np.sqrt(levels**2 + 1)).astype(np.float32)
        sigma: Float32 = levels * alpha
        with np.errstate(divide="ignore"):
            return cls(alpha, sigma, np.log(alpha) - np.log(sigma))


class MultistepStepper(VariancePreserving):
    """Remembers the network's answers (as x₀ or ε) of the last `order` steps, the newest first."""

    def __init__(self, timesteps: Float32, levels: Float32, order: int, draw: Draw | None = None) -> None:
        self._path = Path.of(levels)
        super().__init__(timesteps, self._path.alpha, self._path.sigma, draw)
        self._order = order
        self._answers: list[Latents] = []

    def _room(self, latents: Latents) -> Latents:
        """An array for the newest answer: that of the oldest, once there are `order`. It belongs to the memory from now on."""
        room = self._answers.pop() if len(self._answers) == self._order else np.empty(latents.shape, np.float32)
        self._answers.insert(0, room)
        return room
