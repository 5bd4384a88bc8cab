"""The pipeline against diffusers' StableDiffusionPipeline: the same tiny random networks, the same prompt and seed, the same arrays."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from platemark.runtime.bundle import open_bundle
from platemark.runtime.engine import TensorSpec
from platemark.runtime.pipeline import Pipeline
from platemark.runtime.request import GenerationRequest
from platemark.runtime.schedulers import NAMES, REFERENCES, reference_config

pytestmark = pytest.mark.torch

SAMPLERS = [name for name in NAMES if not name.startswith("dpm++sde")]  # whose reference draws noise from a Brownian tree
CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def networks() -> tuple[Any, Any, Any]:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = CLIPTextModel(CLIPTextConfig(vocab_size=600, max_position_embeddings=12, **sizes))
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=0.5,
    )
    return text.eval(), unet.eval(), vae.eval()


@pytest.fixture(scope="module")
def reference(miniature: Path) -> Any:
    import diffusers
    from transformers import CLIPTokenizer

    text, unet, vae = networks()
    tokenizer = CLIPTokenizer.from_pretrained(miniature / "tokenizer", model_max_length=12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it corrects steps_offset and clip_sample, which is what is compared
        pipe = diffusers.StableDiffusionPipeline(
            vae, text, tokenizer, unet, diffusers.DDIMScheduler(**CONFIG), None, None, requires_safety_checker=False
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ours(miniature: Path, reference: Any) -> Pipeline:
    import torch

    from platemark.runtime.backends.torch import wrap

    class Text(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return reference.text_encoder(input_ids).last_hidden_state

    class Unet(torch.nn.Module):
        def forward(self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
            return reference.unet(sample, timestep, encoder_hidden_states).sample

    class Decoder(torch.nn.Module):
        def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
            return reference.vae.decode(latent_sample).sample

    class Encoder(torch.nn.Module):
        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            return reference.vae.encode(sample).latent_dist.mean

    def spec(name: str) -> TensorSpec:
        return TensorSpec(name, np.dtype(np.float32), ("batch",))

    modules = {"text_encoder": (Text(), "last_hidden_state"), "unet": (Unet(), "out_sample"), "vae_decoder": (Decoder(), "sample"),
               "vae_encoder": (Encoder(), "latent_mean")}  # fmt: skip
    engines = {name: wrap(name, module, [], [spec(output)]) for name, (module, output) in modules.items()}
    return Pipeline(open_bundle(miniature), lambda path: pytest.fail(f"compiled {path}"), dict(engines))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("guidance", [1.0, 6.0])
def test_arrays_equal_diffusers(miniature: Path, reference: Any, monkeypatch: pytest.MonkeyPatch, sampler: str, guidance: float) -> None:
    import diffusers
    import torch

    own = reference.scheduler
    if sampler != "ddim":
        # What the pipeline has corrected is still in diffusers' list of defaults, which another class does not take over.
        defaults = [field for field in own.config["_use_default_values"] if field not in ("steps_offset", "clip_sample")]
        kind, fields = reference_config(sampler, {**own.config, "_use_default_values": defaults})
        monkeypatch.setattr(reference, "scheduler", getattr(diffusers, kind).from_config(fields))
    generators = [torch.Generator("cpu").manual_seed(11 + k) for k in range(2)]
    theirs = reference(
        "a red apple and the dog",
        negative_prompt="the Dog",
        num_inference_steps=8,
        guidance_scale=guidance,
        height=64,
        width=64,
        num_images_per_prompt=2,
        eta=0.3 if sampler == "tcd" else 0.0,
        generator=generators,
        output_type="np",
    ).images
    pipeline = ours(miniature, reference)
    request = GenerationRequest.make(
        pipeline.bundle.manifest,
        prompt="a red apple and the dog",
        negative_prompt="the Dog",
        num_inference_steps=8,
        guidance_scale=guidance,
        seed=11,
        n=2,
        scheduler=sampler,
    )
    arrays = pipeline.generate(request).arrays
    assert arrays.shape == theirs.shape
    assert theirs.std() > 0.01
    assert np.mean((arrays - theirs).astype(np.float64) ** 2) <= 1e-6  # 60 dB


def test_another_size_equals_diffusers(copy: Path, reference: Any, rewrite_manifest: Callable[..., None]) -> None:
    import torch

    rewrite_manifest(copy, output_size=[64, 64])
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0, "height": 64, "width": 128}
    theirs = reference("a red apple", generator=torch.Generator("cpu").manual_seed(5), output_type="np", **settings).images
    pipeline = ours(copy, reference)
    request = GenerationRequest.make(pipeline.bundle.manifest, prompt="a red apple", seed=5, scheduler="ddim", **settings)
    arrays = pipeline.generate(request).arrays
    assert arrays.shape == theirs.shape
    assert np.mean((arrays - theirs).astype(np.float64) ** 2) <= 1e-6  # 60 dB


def test_a_long_prompt_equals_diffusers_given_the_same_chunks(miniature: Path, reference: Any) -> None:
    import torch

    window = reference.tokenizer.model_max_length - 2
    words = ["cat", "dog"] * window  # a token each, so that chunks end where the window does
    pipeline = ours(miniature, reference)
    encoded = [reference.tokenizer(" ".join(part), padding="max_length", return_tensors="pt").input_ids
               for part in (words[:window], words[window : 2 * window], ["dog"], [])]  # fmt: skip
    with torch.no_grad():
        first, second, negative, empty = (reference.text_encoder(ids).last_hidden_state for ids in encoded)
    theirs = reference(
        prompt_embeds=torch.cat([first, second], dim=1),
        negative_prompt_embeds=torch.cat([negative, empty], dim=1),
        num_inference_steps=4,
        guidance_scale=3.0,
        height=64,
        width=64,
        generator=torch.Generator("cpu").manual_seed(5),
        output_type="np",
    ).images
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0, "seed": 5, "n": 1, "scheduler": "ddim"}
    prompt = " ".join(words[: 2 * window])
    request = GenerationRequest.make(pipeline.bundle.manifest, prompt=prompt, negative_prompt="dog", **settings)
    assert np.mean((pipeline.generate(request).arrays - theirs).astype(np.float64) ** 2) <= 1e-6  # 60 dB


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpm++2m"])
@pytest.mark.parametrize(("steps", "strength"), [(8, 0.5), (5, 0.79)])
def test_image_to_image_equals_diffusers(
    copy: Path, reference: Any, rewrite_manifest: Callable[..., None], sampler: str, steps: int, strength: float
) -> None:
    import diffusers
    import torch

    rewrite_manifest(copy, output_size=[64, 64])
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    scheduler = getattr(diffusers, REFERENCES[sampler]).from_config(reference.scheduler.config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = (reference.vae, reference.text_encoder, reference.tokenizer, reference.unet, scheduler, None, None)
        pipe = diffusers.StableDiffusionImg2ImgPipeline(*parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    latents = encoded(reference, image)
    settings = {"num_inference_steps": steps, "guidance_scale": 3.0, "strength": strength}
    theirs = pipe("a red apple", image=latents, generator=torch.Generator("cpu").manual_seed(5), output_type="np", **settings).images
    pipeline = ours(copy, reference)
    request = GenerationRequest.make(pipeline.bundle.manifest, prompt="a red apple", seed=5, image=image, scheduler=sampler, **settings)
    arrays = pipeline.generate(request).arrays
    assert np.mean((arrays - theirs).astype(np.float64) ** 2) <= 1e-6  # 60 dB


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_inpainting_equals_diffusers(copy: Path, reference: Any, rewrite_manifest: Callable[..., None], strength: float) -> None:
    import diffusers
    import torch

    rewrite_manifest(copy, output_size=[64, 64])
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 8:40] = 255  # whole cells, as the reference takes the nearest pixel of each
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = (reference.vae, reference.text_encoder, reference.tokenizer, reference.unet, reference.scheduler, None, None)
        pipe = diffusers.StableDiffusionInpaintPipeline(*parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 6, "guidance_scale": 3.0, "strength": strength}
    pixels = {"height": 64, "width": 64, "mask_image": torch.from_numpy(mask)[None, None] / 255.0}
    latents = encoded(reference, image)
    masked = torch.zeros_like(latents)  # of no use to a UNet of four channels
    theirs = pipe("a red apple", image=latents, masked_image_latents=masked, generator=torch.Generator("cpu").manual_seed(5),
                  output_type="np", **pixels, **settings).images  # fmt: skip
    pipeline = ours(copy, reference)
    made = GenerationRequest.make(
        pipeline.bundle.manifest, prompt="a red apple", seed=5, image=image, mask_image=mask, scheduler="ddim", **settings
    )
    arrays = pipeline.generate(made).arrays
    assert np.mean((arrays - theirs).astype(np.float64) ** 2) <= 1e-6  # 60 dB


def encoded(reference: Any, image: np.ndarray) -> Any:
    """The mean of the reference encoder's distribution, scaled as its pipelines scale it."""
    import torch

    sample = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        return reference.vae.encode(sample).latent_dist.mean * reference.vae.config.scaling_factor
