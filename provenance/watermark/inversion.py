"""A picture back to the noise that it may have been made from: VAE encoder, then the DDIM sampler backwards, over a bundle's own engines.

The prompt is not known, so it is the empty one at guidance 1; what comes out is a poor guess (on the embedded model it correlates with the
real noise by 0.3 to 0.5), which is enough for a code of a thousand signs. Dhariwal & Nichol 2021, appendix F: each step evaluates the
network at the less noisy end. Knows nothing of marks or keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from platemark.runtime.bundle import Bundle
from platemark.runtime.codec import Codec
from platemark.runtime.pipeline import Pipeline
from platemark.runtime.schedulers import Stepper, make_scheduler
from platemark.runtime.sizes import RenderSize, render_size, side_multiple

STEPS = 12
MAX_PIXELS = 1024 * 1024  # larger pictures are tried at the native size only

Latents = NDArray[np.float32]
Network = Callable[[Latents, NDArray[np.float32]], Latents]


@dataclass(frozen=True)
class Inverter:
    """One bundle, run backwards. Engines are compiled when first needed."""

    pipeline: Pipeline

    def guesses(self, image: NDArray[np.uint8]) -> list[Latents]:
        """Guesses of the initial noise, (C, h, w) each, of a picture (H, W, 3), one for every size that it may have been rendered at: the
        model's native one, and its own. Raises `BundleError` where the bundle has no VAE encoder, `EngineError`."""
        manifest, (height, width) = self.pipeline.bundle.manifest, image.shape[:2]
        own = render_size(manifest, side_multiple(self.pipeline.bundle), height, width)
        found = []
        if not own.resampled and own.height * own.width <= MAX_PIXELS:
            found.append(self._inverted(_framed(image, own.height, own.width)))
        if own.resampled or not found or (own.height, own.width) != manifest.native_size:
            found.append(self._inverted(_fitted(image, *manifest.native_size)))
        return found

    def _inverted(self, image: NDArray[np.uint8]) -> Latents:
        latents = Codec(self.pipeline.bundle.manifest, self.pipeline.engine).encode(image)
        network = self.pipeline.unprompted(RenderSize(image.shape[0], image.shape[1], resampled=False))
        return np.asarray(invert(network, *self._schedule, latents)[0], dtype=np.float32)

    @cached_property
    def _schedule(self) -> tuple[Stepper, str]:
        config = self.pipeline.scheduler_config
        kind = str(config.get("prediction_type", "epsilon"))
        return make_scheduler("ddim", {**config, "clip_sample": False}).plan(STEPS), kind


def latent_shape(bundle: Bundle, height: int, width: int) -> tuple[int, int, int]:
    """(C, h, w) of the initial noise that a request for a picture of that size starts from."""
    manifest, size = bundle.manifest, render_size(bundle.manifest, side_multiple(bundle), height, width)
    return manifest.latent_channels, size.height // manifest.vae_scale_factor, size.width // manifest.vae_scale_factor


def invert(network: Network, stepper: Stepper, kind: str, latents: Latents) -> Latents:
    """Latents (1, C, h, w), as the UNet has them, back along the steps of a variance-preserving sampler to noise. `network`: from latents
    and time (1,) to what it predicts, of which `kind` is the name in checkpoints' scheduler configs."""
    one, zero = np.ones(1, dtype=np.float32), np.zeros(1, dtype=np.float32)
    levels: list[tuple[Latents, Latents]] = [
        (stepper.add_noise(one, zero, i), stepper.add_noise(zero, one, i)) for i in range(len(stepper.timesteps) + 1)
    ]
    for i in range(len(stepper.timesteps) - 1, -1, -1):
        output: Latents = network(latents, stepper.timesteps[i : i + 1])
        signal, noise = levels[i + 1]
        original: NDArray[np.floating]
        epsilon: NDArray[np.floating]
        if kind == "epsilon":
            original, epsilon = (latents - noise * output) / signal, output
        elif kind == "sample":
            original, epsilon = output, (latents - signal * output) / np.maximum(noise, np.float32(1e-3))
        else:
            original, epsilon = signal * latents - noise * output, signal * output + noise * latents
        signal, noise = levels[i]
        latents = np.asarray(signal * original + noise * epsilon, dtype=np.float32)
    return latents


def _fitted(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """A delivered picture as it was rendered: the opposite of `runtime.resize.fit`, what was cut off made up from the border."""
    rows, columns = image.shape[:2]
    scale = min(height / rows, width / columns)
    size = max(1, round(columns * scale)), max(1, round(rows * scale))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    return _framed(small, height, width)


def _framed(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """A picture in the middle of a larger one, its border carried on."""
    down, right = height - image.shape[0], width - image.shape[1]
    return np.pad(image, ((down // 2, down - down // 2), (right // 2, right - right // 2), (0, 0)), mode="edge")
