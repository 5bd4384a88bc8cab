"""The denoise loop: noise to latents, one network call a step, whatever computes it. Knows nothing about prompts, pictures or bundles."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from platemark.runtime.engine import Engine
from platemark.runtime.schedulers import Stepper

OnStep = Callable[[int, int], None]
Latents = NDArray[np.float32]


def denoise(
    unet: Engine, stepper: Stepper, noise: Latents, hidden: NDArray[np.float32], guidance_scale: float, on_step: OnStep | None = None
) -> Latents:
    """Latents (n, C, h, w) from standard normal `noise` of that shape.

    `hidden` is (rows, tokens, dim): one row, the prompt; or two, negative prompt first, for classifier-free guidance (Ho and Salimans
    2022, equation 6, as ε_u + s(ε_c − ε_u)), which runs as one batch of 2n. `on_step(step, total)` hears each step when it is done.
    """
    rows, n, total = len(hidden), len(noise), len(stepper.timesteps)
    context = np.repeat(hidden, n, axis=0)
    latents = noise * np.float32(stepper.init_noise_sigma)
    # A network that overflows is the caller's to find in the latents, not numpy's to warn of on the way.
    with np.errstate(over="ignore", invalid="ignore"):
        for i, timestep in enumerate(stepper.timesteps):
            scaled = stepper.scale_model_input(latents, i)
            batch = scaled if rows == 1 else np.concatenate([scaled] * rows)
            inputs = {"sample": batch, "timestep": np.full(len(batch), timestep, np.float32), "encoder_hidden_states": context}
            output: Latents = unet.run(inputs)["out_sample"]
            latents = stepper.step(output if rows == 1 else _guide(output, n, guidance_scale), i, latents)
            if on_step is not None:
                on_step(i + 1, total)
    return latents


def _guide(output: Latents, n: int, scale: float) -> Latents:
    without, with_prompt = output[:n], output[n:]
    guided: Latents = without + np.float32(scale) * (with_prompt - without)
    return guided
