"""Regeneration: the picture redrawn by a diffusion model, here the embedded one (an SD-type VAE with 8× smaller latents, 4 channels).

Only reported. The model knows emoji at 128 pixels: it redraws photographs badly, which is hard on any mark and on the picture too. Pictures
go through at their own size. Needs the extra `build` (torch, diffusers).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.watermark.signal import Pixels, rounded

STRENGTH, STEPS = 0.3, 20


def vae(picture: Pixels, seed: int) -> Pixels:
    """Encoded and decoded once, latents without noise."""
    import torch

    model = _pipeline().vae
    values = torch.from_numpy(picture.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    with torch.inference_mode():
        decoded = model.decode(model.encode(values).latent_dist.mode()).sample
    return rounded(127.5 * (decoded[0].permute(1, 2, 0).numpy() + 1))


def img2img(picture: Pixels, seed: int) -> Pixels:
    """Noised to strength 0.3 and denoised again, without a prompt."""
    import torch
    from PIL import Image

    generator = torch.Generator().manual_seed(seed)
    done = _pipeline()(
        prompt="", image=Image.fromarray(picture), strength=STRENGTH, num_inference_steps=STEPS, guidance_scale=1.0, generator=generator
    )
    return np.asarray(done.images[0].convert("RGB"))


CHANGES: dict[str, Callable[[Pixels, int], Pixels]] = {"vae-regeneration": vae, "img2img-0.3": img2img}


@functools.cache
def _pipeline() -> Any:
    import torch
    from diffusers import StableDiffusionImg2ImgPipeline

    from platemark.models import embedded

    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(
        embedded(), dtype=torch.float32, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
