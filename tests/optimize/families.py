"""Tiny random checkpoints of every family, as diffusers saves them, without their safety checkers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": 12}
UNET = {
    "sample_size": 32,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}
XL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 20 + 6 * 4}
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def text_encoder(words: int, seed: int, **changes: Any) -> Any:
    import torch
    import transformers

    torch.manual_seed(seed)
    config = transformers.CLIPTextConfig(vocab_size=words, bos_token_id=words - 2, eos_token_id=words - 1, pad_token_id=words - 1,
                                         **(TEXT | changes))  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if "projection_dim" in changes else transformers.CLIPTextModel
    return kind(config).eval()


def unet(width: int, **changes: Any) -> Any:
    import diffusers
    import torch

    torch.manual_seed(2)
    return diffusers.UNet2DConditionModel(cross_attention_dim=width, **(UNET | changes)).eval()


def vae() -> Any:
    import diffusers
    import torch

    torch.manual_seed(3)
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=64,
        scaling_factor=0.4,
        mid_block_add_attention=False,
    ).eval()


def save(root: Path, kind: str, tokenizer: Path, parts: dict[str, Any], scheduler: Any, **index: Any) -> Path:
    """A folder in diffusers' layout; every tokenizer is the one in `tokenizer`."""
    entries: dict[str, Any] = {}
    for name, net in parts.items():
        net.save_pretrained(root / name)
        entries[name] = [type(net).__module__.split(".")[0], type(net).__name__]
    scheduler.save_pretrained(root / "scheduler")
    for name in [name.replace("text_encoder", "tokenizer") for name in parts if name.startswith("text_encoder")]:
        shutil.copytree(tokenizer, root / name)
        entries[name] = ["transformers", "CLIPTokenizer"]
    entries["scheduler"] = ["diffusers", type(scheduler).__name__]
    (root / "model_index.json").write_text(json.dumps({"_class_name": kind, **entries, **index}))
    return root


def sd2(root: Path, tokenizer: Path, words: int) -> Path:
    """SD 2.x: v prediction, the heads of each level by number; with the trailing Euler of SD-Turbo."""
    import diffusers

    parts = {"text_encoder": text_encoder(words, 1, hidden_act="gelu"),
             "unet": unet(16, attention_head_dim=[2, 4], use_linear_projection=True, upcast_attention=True), "vae": vae()}  # fmt: skip
    scheduler = diffusers.EulerDiscreteScheduler(**SCHEDULE, prediction_type="v_prediction", timestep_spacing="trailing")
    return save(root, "StableDiffusionPipeline", tokenizer, parts, scheduler)


def xl_texts(words: int) -> dict[str, Any]:
    return {
        "text_encoder": text_encoder(words, 1),
        "text_encoder_2": text_encoder(words, 4, hidden_size=24, projection_dim=20, hidden_act="gelu"),
    }


def sdxl(root: Path, tokenizer: Path, words: int, **changes: Any) -> Path:
    import diffusers

    parts = xl_texts(words) | {
        "unet": unet(40, transformer_layers_per_block=[1, 2], use_linear_projection=True, **XL, **changes),
        "vae": vae(),
    }
    scheduler = diffusers.EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading", steps_offset=1)
    return save(root, "StableDiffusionXLPipeline", tokenizer, parts, scheduler, force_zeros_for_empty_prompt=True)


def lcm(root: Path, tokenizer: Path, words: int) -> Path:
    import diffusers

    parts = {"text_encoder": text_encoder(words, 1), "unet": unet(16, time_cond_proj_dim=12), "vae": vae()}
    return save(root, "LatentConsistencyModelPipeline", tokenizer, parts, diffusers.LCMScheduler(**SCHEDULE, clip_sample=False))


def controlnet(folder: Path, width: int, **changes: Any) -> Path:
    import diffusers
    import torch

    torch.manual_seed(5)
    fields = {name: value for name, value in UNET.items() if name not in ("sample_size", "up_block_types")}
    net = diffusers.ControlNetModel(cross_attention_dim=width, conditioning_embedding_out_channels=(4, 8), **(fields | changes))
    with torch.no_grad():
        for value in net.parameters():  # its last layers are made as zeros
            value.add_(torch.randn(value.shape) * 0.1)
    net.save_pretrained(folder)
    return folder


def tiny_vae(folder: Path) -> Path:
    import diffusers
    import torch

    torch.manual_seed(6)
    net = diffusers.AutoencoderTiny(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
                                    num_decoder_blocks=(1, 1))  # fmt: skip
    with torch.no_grad():
        for value in net.decoder.parameters():  # else its pictures are nearly flat
            value.mul_(2.0)
        net.decoder.layers[-1].bias.add_(0.5)  # middle gray, so that little of it is cut at black
    net.save_pretrained(folder)
    return folder
