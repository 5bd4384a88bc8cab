"""Scheduler configs as checkpoints write them, and the noise schedules that they describe.

One pydantic model a sampler is the table of what that sampler honours. A field that it cannot honour accepts its harmless values only, so
any other value is refused by name; fields that belong to other samplers are ignored, as the reference schedulers ignore them. Arithmetic
is float32 in the reference's order, because near zero signal one rounding is amplified a thousandfold. Knows nothing about sampling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from platemark.errors import InputError

Float32 = NDArray[np.float32]

# Fields of other schedulers that checkpoints carry along; they say nothing about the network, only about the other sampler.
_OTHERS = """
    algorithm_type clip_sample clip_sample_range corrector_order disable_corrector dynamic_thresholding_ratio euler_at_final
    final_sigmas_type flow_shift interpolation_type lambda_min_clipped lower_order_final original_inference_steps predict_x0
    predictor_order sample_max_value set_alpha_to_one sigma_max sigma_min skip_prk_steps solver_order solver_p solver_type
    tau_func thresholding time_shift_type timestep_scaling timestep_type use_beta_sigmas use_exponential_sigmas
    use_karras_sigmas use_lu_lambdas
"""
_OF_OTHER_SAMPLERS = frozenset(_OTHERS.split())


class SamplerConfig(BaseModel):
    """The fields that every sampler honours: how noise was added in training, what the network predicts, how steps are spaced."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_train_timesteps: int = Field(default=1000, ge=2, le=100_000)
    beta_start: float = Field(default=0.0001, gt=0, lt=1)
    beta_end: float = Field(default=0.02, gt=0, lt=1)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    trained_betas: list[float] | None = None
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    timestep_spacing: Literal["leading", "linspace", "trailing"] = "leading"
    steps_offset: int = Field(default=0, ge=0)
    rescale_betas_zero_snr: bool = False
    use_flow_sigmas: Literal[False] = False
    use_dynamic_shifting: Literal[False] = False
    shift_terminal: None = None
    variance_type: Literal["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"] | None = None


Config = TypeVar("Config", bound=SamplerConfig)


def parse(model: type[Config], sampler: str, config: Mapping[str, Any]) -> Config:
    """`config` as `model`. Raises `InputError` naming the field that `sampler` does not support. A null field takes its default."""
    fields = {name: value for name, value in config.items() if not name.startswith("_") and value is not None}
    known = {name: value for name, value in fields.items() if name in model.model_fields or name not in _OF_OTHER_SAMPLERS}
    try:
        parsed = model.model_validate(known)
    except ValidationError as error:
        field = str(error.errors()[0]["loc"][0])
        message = f"the scheduler config sets {field} = {str(fields[field])[:60]!r}, which the sampler {sampler!r} does not support"
        raise InputError(message, "choose another scheduler, or use a checkpoint with a supported scheduler config") from error
    betas = parsed.trained_betas
    if betas is not None and not (len(betas) == parsed.num_train_timesteps and all(0.0 < beta < 1.0 for beta in betas)):
        raise InputError("the scheduler config sets trained_betas that are not num_train_timesteps values in (0, 1)", "correct the config")
    return parsed


def alphas_cumprod(config: SamplerConfig) -> Float32:
    """ᾱ_t for t = 0 … num_train_timesteps − 1 (Ho et al. 2020, section 2), accumulated in float64 as torch accumulates it."""
    betas = _betas(config)
    if config.rescale_betas_zero_snr:
        betas = _rescale_zero_terminal_snr(betas)
    return _cumprod(np.float32(1.0) - betas)


def sigmas_of(alphas: Float32) -> Float32:
    """Noise levels σ_t = √((1 − ᾱ_t)/ᾱ_t) of variance-exploding samplers (Karras et al. 2022, appendix C)."""
    levels: Float32 = np.sqrt((np.float32(1.0) - alphas) / alphas)
    return levels


def karras_sigmas(sigma_min: float, sigma_max: float, steps: int) -> NDArray[np.float64]:
    """`steps` noise levels from `sigma_max` down to `sigma_min` (Karras et al. 2022, equation 5, ρ = 7)."""
    rho = 7.0
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    levels: NDArray[np.float64] = (high + np.linspace(0, 1, steps) * (low - high)) ** rho
    return levels


def sigma_to_timestep(sigmas: NDArray[np.float64], table: Float32) -> NDArray[np.float64]:
    """Fractional timesteps of noise levels, by linear interpolation of log σ over the training `table` (ascending)."""
    logs = np.log(table).astype(np.float64)
    return np.interp(np.log(np.maximum(sigmas, 1e-10)), logs, np.arange(len(logs), dtype=np.float64))


def check_steps(num_inference_steps: int, num_train_timesteps: int) -> None:
    """Raises `InputError` where a plan of that many steps cannot exist."""
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise InputError(f"{num_inference_steps} inference steps are not possible", f"use 1 to {num_train_timesteps} steps")


def spaced_timesteps(spacing: str, steps: int, last: int, offset: int) -> NDArray[np.float64]:
    """`steps` descending timesteps below `last` (Lin et al. 2023, table 2); linspace values are not rounded."""
    if spacing == "linspace":
        return np.linspace(0, last - 1, steps)[::-1]
    if spacing == "leading":
        return np.arange(steps, dtype=np.float64)[::-1] * (last // steps) + offset
    # arange can overshoot by one float error; the extra step would sit at timestep -1.
    return np.arange(last, 0, -last / steps).round()[:steps] - 1.0


def _betas(config: SamplerConfig) -> Float32:
    if config.trained_betas is not None:
        return np.asarray(config.trained_betas, dtype=np.float32)
    count = config.num_train_timesteps
    if config.beta_schedule == "squaredcos_cap_v2":
        return _cosine_betas(count)
    if config.beta_schedule == "linear":
        return _linspace(config.beta_start, config.beta_end, count)
    return np.square(_linspace(config.beta_start**0.5, config.beta_end**0.5, count))


def _cosine_betas(count: int) -> Float32:
    """Nichol and Dhariwal 2021, section 3.2, with β capped at 0.999."""

    def alpha_bar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.asarray([min(1 - alpha_bar((i + 1) / count) / alpha_bar(i / count), 0.999) for i in range(count)], dtype=np.float32)


def _linspace(start: float, end: float, count: int) -> Float32:
    """torch's float32 linspace: counted up from the start to the middle, then down from the end."""
    first, last = np.float32(start), np.float32(end)
    step = (last - first) / np.float32(count - 1)
    up = np.arange(count, dtype=np.float32)
    return np.where(up < count // 2, first + step * up, last - step * up[::-1]).astype(np.float32)


def _cumprod(values: Float32) -> Float32:
    return np.cumprod(values.astype(np.float64)).astype(np.float32)


def _rescale_zero_terminal_snr(betas: Float32) -> Float32:
    """Lin et al. 2023, algorithm 1: shift and scale √ᾱ so that the last step holds no signal."""
    root = np.sqrt(_cumprod(np.float32(1.0) - betas))
    first, last = root[0], root[-1]
    root = (root - last) * (first / (first - last))
    bar = np.square(root)
    return np.float32(1.0) - np.concatenate([bar[:1], bar[1:] / bar[:-1]])
