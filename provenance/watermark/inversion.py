"""A picture back to the noise that it may have been made from: VAE encoder, then the DDIM sampler backwards, over a bundle's own engines.

The prompt is not known, so it is the empty one at guidance 1; what comes out is a poor guess (on the embedded model it correlates with the
real noise by 0.3 to 0.5), which is enough for a code of a thousand signs. Dhariwal & Nichol 2021, appendix F: each step evaluates the
network at the less noisy end. Knows nothing of marks or keys.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from platemark.errors import BundleError
from platemark.runtime.bundle import Bundle
from platemark.runtime.engine import Engine
from platemark.runtime.pipeline import Pipeline
from platemark.runtime.prompts import PromptEncoder
from platemark.runtime.schedulers import Stepper, make_scheduler
from platemark.runtime.sizes import render_size, side_multiple
from platemark.runtime.tokenizer import FILES as TOKENIZER_FILES
from platemark.runtime.tokenizer import Tokenizer

STEPS = 12
MAX_PIXELS = 1024 * 1024  # larger pictures are tried at the native size only
_SCHEDULER = "scheduler/scheduler_config.json"

Latents = NDArray[np.float32]


@dataclass(frozen=True)
class Inverter:
    """One bundle, run backwards. Engines are compiled when first needed."""

    pipeline: Pipeline

    def guesses(self, image: NDArray[np.uint8]) -> list[Latents]:
        """Guesses of the initial noise, (C, h, w) each, of a picture (H, W, 3), one for every size that it may have been rendered at: the
        model's native one, and its own. Raises `BundleError` where the bundle has no VAE encoder or no noise schedule, `EngineError`."""
        manifest, (height, width) = self.pipeline.bundle.manifest, image.shape[:2]
        own = render_size(manifest, side_multiple(self.pipeline.bundle), height, width)
        found = []
        if not own.resampled and own.height * own.width <= MAX_PIXELS:
            found.append(self._inverted(_framed(image, own.height, own.width)))
        if own.resampled or not found or (own.height, own.width) != manifest.native_size:
            found.append(self._inverted(_fitted(image, *manifest.native_size)))
        return found

    def _inverted(self, image: NDArray[np.uint8]) -> Latents:
        manifest = self.pipeline.bundle.manifest
        sample = np.ascontiguousarray((image.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None])
        mean = self.pipeline.engine("vae_encoder").run({"sample": sample})["latent_mean"]
        latents = (mean - np.float32(manifest.shift_factor)) * np.float32(manifest.scaling_factor)
        noise = invert(self.pipeline.engine("unet"), *self._schedule, np.asarray(latents, dtype=np.float32), self.empty_prompt)
        return np.asarray(noise[0], dtype=np.float32)

    @cached_property
    def empty_prompt(self) -> NDArray[np.float32]:
        bundle = self.pipeline.bundle
        tokenizer = Tokenizer.load(bundle.folder("tokenizer", TOKENIZER_FILES), bundle.manifest.max_tokens)
        text = self.pipeline.engine("text_encoder")
        encoder = PromptEncoder(tokenizer, lambda ids: text.run({"input_ids": ids})["last_hidden_state"])
        return np.asarray(encoder.encode("").hidden[None], dtype=np.float32)

    @cached_property
    def _schedule(self) -> tuple[Stepper, str]:
        try:
            config = json.loads(self.pipeline.bundle.file(_SCHEDULER).read_text(encoding="utf-8"))
            kind = str(config.get("prediction_type", "epsilon"))
        except (OSError, ValueError, AttributeError) as error:
            raise BundleError(f"{_SCHEDULER} cannot be read", "rebuild the bundle from a whole checkpoint") from error
        stepper = make_scheduler("ddim", {**config, "steps_offset": 1, "clip_sample": False}).plan(STEPS)  # as the pipeline reads it
        return stepper, kind


def latent_shape(bundle: Bundle, height: int, width: int) -> tuple[int, int, int]:
    """(C, h, w) of the initial noise that a request for a picture of that size starts from."""
    manifest, size = bundle.manifest, render_size(bundle.manifest, side_multiple(bundle), height, width)
    return manifest.latent_channels, size.height // manifest.vae_scale_factor, size.width // manifest.vae_scale_factor


def invert(unet: Engine, stepper: Stepper, kind: str, latents: Latents, hidden: NDArray[np.float32]) -> Latents:
    """Latents (1, C, h, w), as the VAE has them, back along the steps of a variance-preserving sampler to noise. `hidden` (1, tokens, dim);
    `kind`: what the network predicts, as checkpoints' scheduler configs name it."""
    one, zero = np.ones(1, dtype=np.float32), np.zeros(1, dtype=np.float32)
    levels = [(stepper.add_noise(one, zero, i), stepper.add_noise(zero, one, i)) for i in range(len(stepper.timesteps) + 1)]
    for i in range(len(stepper.timesteps) - 1, -1, -1):
        inputs = {"sample": latents, "timestep": stepper.timesteps[i : i + 1], "encoder_hidden_states": hidden}
        output = unet.run(inputs)["out_sample"]
        signal, noise = levels[i + 1]
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
