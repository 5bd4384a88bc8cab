"""Noise schedules of training: β, ᾱ and σ for each training timestep.

Arithmetic is float32 in the reference's order, because near zero signal one rounding is amplified a thousandfold. Knows no sampler.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from platemark.runtime.schedulers.base import Float32
from platemark.runtime.schedulers.config import SamplerConfig

# With zero terminal SNR the last ᾱ is 0 and σ infinite; samplers that work in σ put float16's smallest subnormal there.
ZERO_SNR_ALPHA = np.float32(2.0**-24)


def alphas_cumprod(config: SamplerConfig) -> Float32:
    """ᾱ_t for t = 0 … num_train_timesteps − 1 (Ho et al. 2020, section 2), accumulated in float64 as torch accumulates it."""
    betas = _betas(config)
    if config.rescale_betas_zero_snr:
        betas = _rescale_zero_terminal_snr(betas)
    return _frozen(_cumprod(np.float32(1.0) - betas))


def alphas_for_sigmas(config: SamplerConfig) -> Float32:
    """The same, with a last value above zero, so that every σ is finite."""
    alphas = alphas_cumprod(config).copy()
    if config.rescale_betas_zero_snr:
        alphas[-1] = ZERO_SNR_ALPHA
    return _frozen(alphas)


def sigmas_of(alphas: Float32) -> Float32:
    """Noise levels σ_t = √((1 − ᾱ_t)/ᾱ_t) of variance-exploding samplers (Karras et al. 2022, appendix C)."""
    levels: Float32 = np.sqrt((np.float32(1.0) - alphas) / alphas)
    return _frozen(levels)


def _frozen(table: Float32) -> Float32:
    table.flags.writeable = False
    return table


def _betas(config: SamplerConfig) -> Float32:
    if config.trained_betas is not None:
        return np.asarray(config.trained_betas, dtype=np.float32)
    count, start, end = config.num_train_timesteps, config.beta_start, config.beta_end
    if config.beta_schedule == "linear":
        return _linspace(start, end, count)
    if config.beta_schedule == "scaled_linear":
        return np.square(_linspace(start**0.5, end**0.5, count))
    if config.beta_schedule == "sigmoid":
        ramp = _linspace(-6.0, 6.0, count)
        sigmoid: Float32 = np.float32(1.0) / (np.float32(1.0) + np.exp(-ramp)) * np.float32(end - start) + np.float32(start)
        return sigmoid
    return _betas_of(_SIGNALS[config.beta_schedule], count)


def _cosine(t: float) -> float:
    """Nichol and Dhariwal 2021, section 3.2."""
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def _exponential(t: float) -> float:
    return math.exp(t * -12.0)


def _laplace(t: float) -> float:
    """Hang et al. 2024, "Improved Noise Schedule for Diffusion Training", table 1."""
    log_snr = -0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * math.fabs(0.5 - t) + 1e-6)
    snr = math.exp(log_snr)
    return math.sqrt(snr / (1 + snr))


_SIGNALS: dict[str, Callable[[float], float]] = {"squaredcos_cap_v2": _cosine, "exp": _exponential, "laplace": _laplace}


def _betas_of(signal: Callable[[float], float], count: int) -> Float32:
    """β of a continuous ᾱ(t) on [0, 1], capped at 0.999."""
    values = [min(1 - signal((i + 1) / count) / signal(i / count), 0.999) for i in range(count)]
    return np.asarray(values, dtype=np.float32)


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
