"""The contract between the denoise loop and a sampler, and what all steppers share.

A scheduler is shared and never changes: tables and config. A stepper is the plan and the state of one run, so a loop may hold many of them,
each at its own step. Knows nothing about networks, prompts, guidance or where noise comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from platemark.errors import InputError

Float32 = NDArray[np.float32]
Latents = NDArray[np.float32]
# The next standard normal values in the latents' shape; row k comes from the generator of image k alone.
Draw = Callable[[], Latents]


NO_SIGNAL = 1e6  # stands for an infinite noise level


class Stepper(Protocol):
    """The plan and the state of one run. Use from one thread.

    `i` counts network evaluations, from 0 to `len(timesteps) - 1`; two-stage samplers make two a step. A run may begin at a later `i` (of
    the first stage of a step) and goes in order from there. `out`, where given, receives the result and may be `latents` itself.
    """

    @property
    def timesteps(self) -> Float32:
        """What the network is told at each evaluation, in training timesteps (may be fractional)."""
        ...

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation that the initial latents must have."""
        ...

    def scale_model_input(self, latents: Latents, i: int, out: Latents | None = None) -> Latents:
        """The latents as the network expects them at evaluation `i`; without `out` it may be `latents` itself."""
        ...

    def step(self, model_output: Latents, i: int, latents: Latents, out: Latents | None = None) -> Latents:
        """The latents after evaluation `i`, from what the network answered for `latents` (same shape, float32).

        Neither argument is changed, unless `latents` is `out`. Raises `InputError` where the sampler draws noise and has no source.
        """
        ...

    def add_noise(self, original: Latents, noise: Latents, i: int, out: Latents | None = None) -> Latents:
        """Clean latents with standard normal `noise` at the noise level before evaluation `i`; clean still for `i = len(timesteps)`."""
        ...

    def evaluation(self, step: int) -> int:
        """The evaluation with which step number `step` (from 0) begins."""
        ...

    def noise_level(self, i: int) -> float:
        """σ of evaluation `i` where the signal has scale 1 (Karras et al. 2022): noise over signal; `NO_SIGNAL` where none is left."""
        ...

    def denoised(self, model_output: Latents, i: int, taken: Latents, out: Latents) -> Latents:
        """x₀, without the sampler's bounds, as the network's answer to `taken` (what `scale_model_input` gave) has it; into `out`."""
        ...


class Scheduler(Protocol):
    """One sampler with one checkpoint's noise schedule. Immutable, so several requests can plan from it at once."""

    @property
    def name(self) -> str: ...

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise."""
        ...

    def plan(self, num_inference_steps: int, draw: Draw | None = None) -> Stepper:
        """A fresh stepper. Raises `InputError` where that many steps are not possible."""
        ...


class Scratch:
    """Working memory of one run: arrays of the latents' shape by name, allocated at first use and used again at every step."""

    def __init__(self) -> None:
        self._arrays: dict[str, Latents] = {}

    def __call__(self, name: str, like: Latents) -> Latents:
        array = self._arrays.get(name)
        if array is None or array.shape != like.shape:
            array = self._arrays[name] = np.empty(like.shape, np.float32)
        return array


def weighted(terms: Sequence[tuple[np.float32 | float, Latents]], scratch: Scratch, out: Latents | None = None) -> Latents:
    """Σ weight · array, from left to right. Only the first array may be `out`."""
    weight, first = terms[0]
    result: Latents = np.multiply(first, weight, out=out)
    product = scratch("product", first)
    for weight, array in terms[1:]:
        np.multiply(array, weight, out=product)
        np.add(result, product, out=result)
    return result


Scales = tuple[np.float32, np.float32]


def original_from(kind: str, output: Latents, latents: Latents, scales: Scales, scratch: Scratch, out: Latents) -> Latents:
    """x₀ of latents α·x₀ + σ·ε with `scales` (α, σ); `kind` is what the network predicts (Salimans and Ho 2022, section 4)."""
    alpha, sigma = scales
    if kind == "sample":
        np.copyto(out, output)
        return out
    if kind == "epsilon":
        np.multiply(output, sigma, out=out)
        np.subtract(latents, out, out=out)
        np.divide(out, alpha, out=out)
        return out
    return weighted([(alpha, latents), (-sigma, output)], scratch, out)


def no_noise() -> Latents:
    """The source of a run that was planned without one."""
    raise InputError("this sampler draws noise at its steps, and the run was given no source of noise", "plan the run with a source")


class VariancePreserving:
    """A run on α·x₀ + σ·ε with α² + σ² = 1, which networks take as it is.

    `alpha` and `sigma`: signal and noise scale before each evaluation (at least as many as `timesteps`).
    """

    init_noise_sigma = 1.0
    _kind: str  # what the network predicts

    def __init__(self, timesteps: Float32, alpha: Float32, sigma: Float32, draw: Draw | None) -> None:
        self.timesteps = timesteps
        self._alpha, self._sigma = alpha, sigma
        self._draw = draw or no_noise
        self._scratch = Scratch()

    def scale_model_input(self, latents: Latents, i: int, out: Latents | None = None) -> Latents:
        return latents if out is None else _copied(latents, out)

    def add_noise(self, original: Latents, noise: Latents, i: int, out: Latents | None = None) -> Latents:
        if i == len(self.timesteps):
            return _copied(original, out)
        return weighted([(self._alpha[i], original), (self._sigma[i], noise)], self._scratch, out)

    def evaluation(self, step: int) -> int:
        return step

    def noise_level(self, i: int) -> float:
        return float(self._sigma[i]) / float(self._alpha[i]) if self._alpha[i] else NO_SIGNAL

    def denoised(self, model_output: Latents, i: int, taken: Latents, out: Latents) -> Latents:
        return original_from(self._kind, model_output, taken, (self._alpha[i], self._sigma[i]), self._scratch, out)


class VarianceExploding:
    """A run on x₀ + σ·ε (Karras et al. 2022, section 2), which networks take scaled to variance 1.

    `sigmas`: the noise level before each evaluation and, one longer than `timesteps`, after the last.
    """

    _kind: str  # what the network predicts

    def __init__(self, timesteps: Float32, sigmas: Float32, init_noise_sigma: float, draw: Draw | None = None) -> None:
        self.timesteps = timesteps
        self.init_noise_sigma = init_noise_sigma
        self._sigmas = sigmas
        self._draw = draw or no_noise
        self._scratch = Scratch()

    def scale_model_input(self, latents: Latents, i: int, out: Latents | None = None) -> Latents:
        scaled: Latents = np.divide(latents, np.sqrt(self._sigmas[i] ** 2 + 1), out=out)
        return scaled

    def add_noise(self, original: Latents, noise: Latents, i: int, out: Latents | None = None) -> Latents:
        if i == len(self.timesteps):
            return _copied(original, out)
        return weighted([(1.0, original), (self._sigmas[i], noise)], self._scratch, out)

    def evaluation(self, step: int) -> int:
        return step

    def noise_level(self, i: int) -> float:
        return float(self._sigmas[i])

    def denoised(self, model_output: Latents, i: int, taken: Latents, out: Latents) -> Latents:
        sigma = np.float32(self.noise_level(i))
        alpha = np.float32(1.0) / np.sqrt(sigma**2 + 1)
        return original_from(self._kind, model_output, taken, (alpha, sigma * alpha), self._scratch, out)


def _copied(values: Latents, out: Latents | None) -> Latents:
    if out is None:
        return values.copy()
    np.copyto(out, values)
    return out
