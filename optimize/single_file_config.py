"""What a single file's network is, by the shapes of its tensors: layouts for the key map, and configs as diffusers writes them.

Numbers that no shape tells follow the family's published checkpoints: a UNet whose projections are convolutions (SD 1.x) has 8 heads a
block, one whose projections are linear (SD 2.x, SDXL) has heads of 64; text towers have heads of 64; norms have 32 groups. Knows nothing
about files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from platemark.errors import CheckpointError
from platemark.optimize.single_file_keys import UnetLayout, VaeLayout, numbered
from platemark.optimize.weights import StoredTensor

Tensors = Mapping[str, StoredTensor]
Config = dict[str, Any]
HEAD = 64  # width of an attention head in SD 2.x, SDXL, and every CLIP text tower
_SD1_HEADS = 8
_DAMAGED = "use the file as it was published: a tensor that says what the network is has gone, or has another shape"


def shape_of(tensors: Tensors, name: str, rank: int) -> tuple[int, ...]:
    """The shape of a tensor that must be there with so many axes. Raises `CheckpointError`."""
    if name not in tensors:
        raise CheckpointError(f"the tensor {name} is missing", _DAMAGED)
    shape = tensors[name].shape
    if len(shape) != rank or not all(shape):
        raise CheckpointError(f"the tensor {name} has shape {list(shape)}", _DAMAGED)
    return shape


def unet_layout(tensors: Tensors) -> UnetLayout:
    """Counts the blocks of a UNet. Raises `CheckpointError` where they make no regular network."""
    levels: list[list[tuple[int, int]]] = [[]]  # of each resnet: channels, transformer depth
    for place in range(1, 1 + len(tensors)):
        if f"input_blocks.{place}.0.op.weight" in tensors:
            levels.append([])
        elif f"input_blocks.{place}.0.in_layers.2.weight" in tensors:
            channels = shape_of(tensors, f"input_blocks.{place}.0.in_layers.2.weight", 4)[0]
            levels[-1].append((channels, _depth(tensors, f"input_blocks.{place}.1")))
        else:
            break
    if not levels[0] or any(level != levels[k][:1] * len(levels[0]) for k, level in enumerate(levels)):
        raise CheckpointError("the UNet's blocks are not those of a Stable Diffusion network", "use an SD 1.x, SD 2.x or SDXL checkpoint")
    depths = tuple(level[0][1] for level in levels)
    return UnetLayout(
        channels=tuple(level[0][0] for level in levels),
        depths=depths,
        resnets=len(levels[0]),
        middle=depths[-1] or 1,
        added="label_emb.0.0.weight" in tensors,
        guided="time_embed.cond_proj.weight" in tensors,
    )


def _depth(tensors: Tensors, block: str) -> int:
    return numbered(tensors, f"{block}.transformer_blocks.", ".norm1.weight")


def is_linear(tensors: Tensors) -> bool:
    """Whether the UNet projects with matrices, as SD 2.x and SDXL do, and not with 1×1 convolutions."""
    found = [tensor for name, tensor in tensors.items() if name.endswith(".proj_in.weight")]
    return bool(found) and len(found[0].shape) == 2


def context_width(tensors: Tensors) -> int:
    """Width of the text states that the UNet reads."""
    return shape_of(tensors, "middle_block.1.transformer_blocks.0.attn2.to_k.weight", 2)[1]


def unet_config(tensors: Tensors, layout: UnetLayout, sample_size: int) -> Config:
    """`unet/config.json`. `sample_size`: cells of the square that it was trained on, a side."""
    linear = is_linear(tensors)
    heads = [channels // HEAD for channels in layout.channels] if linear else _SD1_HEADS
    config: Config = {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": heads,  # diffusers' name for the number of heads
        "block_out_channels": list(layout.channels),
        "center_input_sample": False,
        "cross_attention_dim": context_width(tensors),
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in layout.depths],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": shape_of(tensors, "input_blocks.0.0.weight", 4)[1],
        "layers_per_block": layout.resnets,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "out_channels": shape_of(tensors, "out.2.weight", 4)[0],
        "sample_size": sample_size,
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(layout.depths)],
        "use_linear_projection": linear,
    }
    if layout.added:
        config |= _added(tensors)
    depths = [depth or 1 for depth in layout.depths]  # a level without attention has a number too, and it is not read
    if set(depths) != {1}:
        config["transformer_layers_per_block"] = depths
    if layout.guided:
        config["time_cond_proj_dim"] = shape_of(tensors, "time_embed.cond_proj.weight", 2)[1]
    return config


def _added(tensors: Tensors) -> Config:
    """SDXL: six sizes, each embedded in `addition_time_embed_dim`, beside the second text encoder's pooled state."""
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": shape_of(tensors, "label_emb.0.0.weight", 2)[1],
    }


def vae_layout(tensors: Tensors) -> VaeLayout:
    """Counts the levels of the VAE's encoder."""
    levels = numbered(tensors, "encoder.down.", ".block.0.conv1.weight")
    channels = tuple(shape_of(tensors, f"encoder.down.{k}.block.0.conv1.weight", 4)[0] for k in range(levels))
    resnets = numbered(tensors, "encoder.down.0.block.", ".conv1.weight")
    if not channels:
        raise CheckpointError("the VAE's blocks are not those of a Stable Diffusion VAE", _DAMAGED)
    return VaeLayout(channels, resnets, "encoder.mid.attn_1.q.weight" in tensors)


def vae_config(tensors: Tensors, layout: VaeLayout, scaling_factor: float, sample_size: int) -> Config:
    """`vae/config.json`. `sample_size`: pixels a side."""
    levels = len(layout.channels)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(layout.channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": 3,
        "latent_channels": shape_of(tensors, "decoder.conv_in.weight", 4)[1],
        "layers_per_block": layout.resnets,
        "mid_block_add_attention": layout.attention,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": sample_size,
        "scaling_factor": scaling_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def clip_config(tensors: Tensors) -> tuple[Config, int]:
    """`config.json` of CLIP's text encoder in transformers' names, and its number of layers."""
    layers = numbered(tensors, "text_model.encoder.layers.", ".layer_norm1.weight")
    words, width = shape_of(tensors, "text_model.embeddings.token_embedding.weight", 2)
    positions = shape_of(tensors, "text_model.embeddings.position_embedding.weight", 2)[0]
    inner = shape_of(tensors, "text_model.encoder.layers.0.mlp.fc1.weight", 2)[0]
    return _text("CLIPTextModel", (words, width, positions, inner), layers, "quick_gelu", width), layers


def open_clip_config(tensors: Tensors, *, projection: bool) -> tuple[Config, int]:
    """`config.json` of OpenCLIP's text tower, and its number of layers that are read.

    SD 2.x takes the states of the last layer but one, so its last layer is left out; SDXL needs that for the pooled state (`projection`).
    """
    layers = numbered(tensors, "transformer.resblocks.", ".ln_1.weight")
    words, width = shape_of(tensors, "token_embedding.weight", 2)
    positions = shape_of(tensors, "positional_embedding", 2)[0]
    inner = shape_of(tensors, "transformer.resblocks.0.mlp.c_fc.weight", 2)[0]
    reach = shape_of(tensors, "text_projection", 2)[1] if projection else width
    kind = "CLIPTextModelWithProjection" if projection else "CLIPTextModel"
    kept = layers if projection else max(1, layers - 1)
    return _text(kind, (words, width, positions, inner), kept, "gelu", reach), kept


def _text(kind: str, sizes: tuple[int, int, int, int], layers: int, activation: str, projection: int) -> Config:
    words, width, positions, inner = sizes
    return {
        "architectures": [kind],
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "hidden_act": activation,
        "hidden_size": width,
        "intermediate_size": inner,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": positions,
        "model_type": "clip_text_model",
        "num_attention_heads": max(1, width // HEAD),
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "projection_dim": projection,
        "vocab_size": words,
    }
