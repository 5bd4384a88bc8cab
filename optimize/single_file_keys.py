"""Names of the tensors in a web UI's single file (those of CompVis' latent-diffusion code) beside diffusers' for the same tensors.

Tables and their enumeration only: what a layout *must* hold is listed from its numbers, so that a missing or a surplus tensor can be named
as the file spells it. Knows nothing about files, and no values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

Names = dict[str, str]  # diffusers' name → the file's, both within their network

# The blocks of the UNet: diffusers' module → the file's.
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
}
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_ADDED = {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
_GUIDED = {"time_embedding.cond_proj.weight": "time_embed.cond_proj.weight"}
# A transformer block is spelled alike in both.
_TRANSFORMER = ("norm1", "norm2", "norm3", "attn1.to_out.0", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2")
_TRANSFORMER_WEIGHTS = tuple(f"attn{k}.to_{name}.weight" for k in (1, 2) for name in "qkv")
# The VAE.
_VAE_RESNET = {name: name for name in ("norm1", "conv1", "norm2", "conv2")}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
# OpenCLIP's text tower: a residual block's modules, but for the joined projections of its attention.
_OPEN_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
# CLIP's, which both spell alike.
_CLIP_BLOCK = (*(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")), "layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2")
JOINED = ("q_proj", "k_proj", "v_proj")  # in this order, in one tensor


@dataclass(frozen=True)
class UnetLayout:
    """Down the UNet: each level's channels and transformer depth (0: no attention). `resnets` a level; `middle`: depth there.

    `added`: whether it has SDXL's added embedding; `guided`: whether it has LCM's guidance embedding.
    """

    channels: tuple[int, ...]
    depths: tuple[int, ...]
    resnets: int
    middle: int
    added: bool = False
    guided: bool = False


@dataclass(frozen=True)
class VaeLayout:
    """Channels of each level, from the picture inwards; `resnets` a level of the encoder (the decoder has one more)."""

    channels: tuple[int, ...]
    resnets: int
    attention: bool = True


def unet_names(layout: UnetLayout) -> Names:
    """Every tensor of the UNet."""
    names = _with_bias(_UNET_ENDS)
    names |= _with_bias(_ADDED) if layout.added else {}
    names |= _GUIDED if layout.guided else {}
    for there, here in (*_down(layout), *_middle(layout), *_up(layout)):
        names |= _prefixed(there, here)
    return names


_Block = tuple[tuple[str, str], Names]  # (diffusers' prefix, the file's), names below it


def _prefixed(prefixes: tuple[str, str], names: Names) -> Names:
    return {f"{prefixes[0]}.{ours}": f"{prefixes[1]}.{theirs}" for ours, theirs in names.items()}


def _down(layout: UnetLayout) -> Iterator[_Block]:
    place, before = 1, layout.channels[0]
    for level, (channels, depth) in enumerate(zip(layout.channels, layout.depths, strict=True)):
        for k in range(layout.resnets):
            yield (f"down_blocks.{level}.resnets.{k}", f"input_blocks.{place}.0"), _resnet(shortcut=before != channels)
            if depth:
                yield (f"down_blocks.{level}.attentions.{k}", f"input_blocks.{place}.1"), _attention(depth)
            place, before = place + 1, channels
        if level < len(layout.channels) - 1:
            yield (f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{place}.0.op"), _pair()
            place += 1


def _middle(layout: UnetLayout) -> Iterator[_Block]:
    yield ("mid_block.resnets.0", "middle_block.0"), _resnet()
    yield ("mid_block.attentions.0", "middle_block.1"), _attention(layout.middle)
    yield ("mid_block.resnets.1", "middle_block.2"), _resnet()


def _up(layout: UnetLayout) -> Iterator[_Block]:
    place, last = 0, len(layout.channels) - 1
    for level, depth in enumerate(reversed(layout.depths)):
        for k in range(layout.resnets + 1):
            yield (f"up_blocks.{level}.resnets.{k}", f"output_blocks.{place}.0"), _resnet(shortcut=True)  # the skip's channels come in
            if depth:
                yield (f"up_blocks.{level}.attentions.{k}", f"output_blocks.{place}.1"), _attention(depth)
            if k == layout.resnets and level < last:
                yield (f"up_blocks.{level}.upsamplers.0.conv", f"output_blocks.{place}.{2 if depth else 1}.conv"), _pair()
            place += 1


def _resnet(*, shortcut: bool = False) -> Names:
    return _with_bias(_RESNET | ({"conv_shortcut": "skip_connection"} if shortcut else {}))


def _attention(depth: int) -> Names:
    blocks = [f"transformer_blocks.{k}" for k in range(depth)]
    modules = ["norm", "proj_in", "proj_out", *(f"{block}.{name}" for block in blocks for name in _TRANSFORMER)]
    weights = [f"{block}.{name}" for block in blocks for name in _TRANSFORMER_WEIGHTS]
    return _with_bias({name: name for name in modules}) | {name: name for name in weights}


def vae_names(layout: VaeLayout) -> Names:
    """Every tensor of the VAE. The attention's projections are 1×1 convolutions in the file, and matrices in diffusers."""
    names = _with_bias({"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"})
    for side in ("encoder", "decoder"):
        names |= _with_bias({f"{side}.conv_in": f"{side}.conv_in", f"{side}.conv_norm_out": f"{side}.norm_out"})
        names |= _with_bias({f"{side}.conv_out": f"{side}.conv_out"})
        for k in (0, 1):
            names |= _prefixed((f"{side}.mid_block.resnets.{k}", f"{side}.mid.block_{k + 1}"), _with_bias(_VAE_RESNET))
        if layout.attention:
            names |= _prefixed((f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1"), _with_bias(_VAE_ATTENTION))
    return names | _vae_levels(layout)


def _vae_levels(layout: VaeLayout) -> Names:
    names: Names = {}
    last, channels = len(layout.channels) - 1, layout.channels
    for level in range(last + 1):
        here = (f"encoder.down_blocks.{level}", f"encoder.down.{level}")
        names |= _vae_level(here, layout.resnets, changes=level > 0 and channels[level] != channels[level - 1])
        up = (f"decoder.up_blocks.{last - level}", f"decoder.up.{level}")
        names |= _vae_level(up, layout.resnets + 1, changes=level < last and channels[level] != channels[level + 1])
        if level < last:
            names |= _prefixed((f"{here[0]}.downsamplers.0.conv", f"{here[1]}.downsample.conv"), _pair())
        if level > 0:
            names |= _prefixed((f"{up[0]}.upsamplers.0.conv", f"{up[1]}.upsample.conv"), _pair())
    return names


def _vae_level(prefixes: tuple[str, str], count: int, *, changes: bool) -> Names:
    names: Names = {}
    for k in range(count):
        modules = _VAE_RESNET | ({"conv_shortcut": "nin_shortcut"} if changes and k == 0 else {})
        names |= _prefixed((f"{prefixes[0]}.resnets.{k}", f"{prefixes[1]}.block.{k}"), _with_bias(modules))
    return names


def clip_names(layers: int) -> Names:
    """Every tensor of the text encoder as transformers spells it, which the file does too."""
    modules = [f"encoder.layers.{layer}.{name}" for layer in range(layers) for name in _CLIP_BLOCK] + ["final_layer_norm"]
    names = [*_with_bias(dict.fromkeys(modules, "")), "embeddings.token_embedding.weight", "embeddings.position_embedding.weight"]
    return {f"text_model.{name}": f"text_model.{name}" for name in names}


def open_clip_names(layers: int, *, projection: bool) -> Names:
    """Every tensor of OpenCLIP's text tower. Each of `JOINED` names the tensor that holds all three."""
    names = {
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        **_with_bias({"text_model.final_layer_norm": "ln_final"}),
        **({"text_projection.weight": "text_projection"} if projection else {}),
    }
    for layer in range(layers):
        prefixes = (f"text_model.encoder.layers.{layer}", f"transformer.resblocks.{layer}")
        joined = {f"self_attn.{name}.{kind}": f"attn.in_proj_{kind}" for name in JOINED for kind in ("weight", "bias")}
        names |= _prefixed(prefixes, _with_bias(_OPEN_BLOCK) | joined)
    return names


def open_clip_layer(layer: int) -> set[str]:
    """The file's tensors of one residual block."""
    return {name for name in open_clip_names(layer + 1, projection=False).values() if name.startswith(f"transformer.resblocks.{layer}.")}


def _with_bias(modules: Mapping[str, str]) -> Names:
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in modules.items() for kind in ("weight", "bias")}


def _pair() -> Names:
    return {"weight": "weight", "bias": "bias"}


def numbered(names: Sequence[str] | Mapping[str, object], before: str, after: str) -> int:
    """How many of `{before}0{after}`, `{before}1{after}`, … are there, counted up to the first that is not."""
    count = 0
    while f"{before}{count}{after}" in names:
        count += 1
    return count
