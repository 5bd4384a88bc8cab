"""The contract between the denoise loop and a sampler. A scheduler is shared and never changes; a stepper belongs to one run."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Latents = NDArray[np.float32]


class Stepper(Protocol):
    """The plan and the state of one run. Use from one thread; steps are taken in order, `i` from 0 to `len(timesteps) - 1`."""

    @property
    def timesteps(self) -> NDArray[np.float32]:
        """What the network is told at each step, descending, in training timesteps (may be fractional)."""
        ...

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation that the initial latents must have."""
        ...

    def scale_model_input(self, latents: Latents, i: int) -> Latents:
        """The latents as the network expects them at step `i`; the argument is left as it is."""
        ...

    def step(self, model_output: Latents, i: int, latents: Latents) -> Latents:
        """The latents after step `i`, from what the network answered for `latents` (same shape, float32)."""
        ...


class Scheduler(Protocol):
    """One sampler with one checkpoint's noise schedule. Immutable, so several requests can plan from it at once."""

    @property
    def name(self) -> str: ...

    def plan(self, num_inference_steps: int) -> Stepper:
        """A fresh stepper. Raises `InputError` where that many steps are not possible."""
        ...
