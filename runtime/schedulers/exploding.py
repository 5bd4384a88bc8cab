"""What the samplers on x₀ + σ·ε share: their table of noise levels, and the levels that a run visits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from platemark.runtime.schedulers.base import Float32, Latents
from platemark.runtime.schedulers.config import SamplerConfig
from platemark.runtime.schedulers.spacing import Levels, check_steps, sigma_to_timestep, spaced_timesteps
from platemark.runtime.schedulers.tables import alphas_for_sigmas, sigmas_of

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class NoiseTable:
    """σ for each training timestep, ascending, and how the steps of a run are spaced over it."""

    sigmas: Float32
    spacing: str
    offset: int
    curve: Levels | None

    @classmethod
    def of(cls, config: SamplerConfig, curve: Levels | None = None) -> NoiseTable:
        return cls(sigmas_of(alphas_for_sigmas(config)), config.timestep_spacing, config.steps_offset, curve)

    def visit(self, steps: int) -> tuple[Float64, Float64]:
        """Timesteps (fractional) and noise levels, `steps` of each, descending. Raises `InputError` for an impossible number."""
        total = len(self.sigmas)
        check_steps(steps, total)
        spaced: Float64 = spaced_timesteps(self.spacing, steps, total, self.offset).astype(np.float32).astype(np.float64)
        levels = np.interp(spaced, np.arange(total), self.sigmas)
        if self.curve is None:
            return spaced, levels
        levels = self.curve(levels, steps)
        return sigma_to_timestep(levels, self.sigmas), levels

    def initial(self, levels: Float32) -> float:
        """The deviation that the first latents need: of the noise; with that of the data where the spacing stays below the end."""
        highest = levels.max()
        return float(np.sqrt(highest**2 + 1) if self.spacing == "leading" else highest)


def twice(values: Float32) -> Float32:
    """a b c → a b b c c: what is visited by two evaluations a step, the second of which looks ahead."""
    return np.concatenate([values[:1], np.repeat(values[1:], 2)])


def ancestral(start: np.float32, end: np.float32) -> tuple[np.float32, np.float32]:
    """(σ_down, σ_up): go to `end` by a deterministic step to σ_down and fresh noise of σ_up (k-diffusion's ancestral step with η = 1)."""
    up = min(end, np.sqrt(end**2 * (start**2 - end**2) / start**2))
    return np.sqrt(end**2 - up**2), up


def slope(original: Latents, latents: Latents, sigma: np.float32) -> Latents:
    """dx/dσ = (x − x₀)/σ (Karras et al. 2022, equation 3), in place of `original`."""
    np.subtract(latents, original, out=original)
    np.divide(original, sigma, out=original)
    return original
