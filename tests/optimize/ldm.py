"""Writes a diffusers pipeline's weights as web UIs ship them: one file, in the tensor names of latent-diffusion code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from platemark.optimize import single_file_keys as keys

SD1 = ("cond_stage_model.transformer.", None)
SD2 = (None, "cond_stage_model.model.")
SDXL = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.")


def renamed(state: dict[str, Any], names: keys.Names, prefix: str) -> dict[str, Any]:
    return {prefix + theirs: state[ours] for ours, theirs in names.items()}


def unet_state(net: Any, layout: keys.UnetLayout) -> dict[str, Any]:
    return renamed(net.state_dict(), keys.unet_names(layout), "model.diffusion_model.")


def vae_state(net: Any, layout: keys.VaeLayout) -> dict[str, Any]:
    """Attention projections become 1×1 convolutions."""
    state = renamed(net.state_dict(), keys.vae_names(layout), "first_stage_model.")
    kernels = [f".mid.attn_1.{name}.weight" for name in ("q", "k", "v", "proj_out")]
    return {name: value[:, :, None, None] if name.endswith(tuple(kernels)) else value for name, value in state.items()}


def text_state(net: Any) -> dict[str, Any]:
    """By transformers' old names, which every checkpoint on the hub has."""
    kept = ("text_model.", "text_projection.")
    return {name if name.startswith(kept) else f"text_model.{name}": value for name, value in net.state_dict().items()}


def clip_state(net: Any, prefix: str) -> dict[str, Any]:
    return {prefix + name: value for name, value in text_state(net).items()}


def open_clip_state(net: Any, prefix: str, *, projection: bool) -> dict[str, Any]:
    """Joins the three projections of each attention, and turns the last one over. SD 2.x's unread last layer is a copy of the first."""
    import torch

    state, layers = text_state(net), int(net.config.num_hidden_layers)
    made: dict[str, Any] = {}
    for ours, theirs in keys.open_clip_names(layers, projection=projection).items():
        if ".in_proj_" in theirs:
            places = [ours.replace("q_proj", name).replace("k_proj", name).replace("v_proj", name) for name in keys.JOINED]
            made[theirs] = torch.cat([state[place] for place in places])
        else:
            made[theirs] = state[ours].T.contiguous() if theirs == "text_projection" else state[ours]
    if not projection:
        block = {n: v for n, v in made.items() if n.startswith("transformer.resblocks.0.")}
        made |= {n.replace("resblocks.0.", f"resblocks.{layers}."): v for n, v in block.items()} | {"text_projection": torch.ones(4, 4)}
    return {prefix + name: value for name, value in (made | {"logit_scale": torch.ones(())}).items()}


def save(path: Path, state: dict[str, Any], metadata: dict[str, str] | None = None) -> Path:
    from safetensors.torch import save_file

    save_file({name: value.contiguous().clone() for name, value in state.items()}, path, metadata={"format": "pt", **(metadata or {})})
    return path
