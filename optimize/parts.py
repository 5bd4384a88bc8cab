"""One network of a checkpoint as files: its folder, its config, the tensors of its weights; what of the config a build reads is checked.

Reads JSON and safetensors headers only. Knows nothing about torch: whether a network accepts its weights is asked in `modules`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from platemark.errors import CheckpointError
from platemark.optimize.settings import Domain
from platemark.optimize.source_files import read_json
from platemark.optimize.weights import StoredTensor, read_header

CHECKER = "safety_checker"
CHECKER_CLASS = "StableDiffusionSafetyChecker"
_CONFIG_NAMES = {"clip": "open_clip_config.json"}
_SAVERS = {"text_encoder": "transformers", "text_encoder_2": "transformers", "clip": "open_clip, in its local-dir format"}

Count = Annotated[int, Field(strict=True, ge=1)]
Counts = Annotated[list[Count], Field(min_length=1)]
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class _TextEncoderFields(BaseModel):
    max_position_embeddings: Count
    vocab_size: Count
    hidden_size: Count


class _UnetFields(BaseModel):
    sample_size: Count | tuple[Count, Count]
    block_out_channels: Counts
    cross_attention_dim: Count | Counts
    encoder_hid_dim: Count | None = None
    layers_per_block: Count | Counts = 2
    time_cond_proj_dim: Count | None = None


class _ControlNetFields(BaseModel):
    block_out_channels: Counts
    cross_attention_dim: Count | Counts


class _TinyVaeFields(BaseModel):
    decoder_block_out_channels: Counts
    encoder_block_out_channels: Counts
    latent_channels: Literal[4]
    scaling_factor: Annotated[Finite, Field(gt=0)] = 1.0


class _VaeFields(BaseModel):
    block_out_channels: Counts
    latent_channels: Literal[4]  # what the UNet reads
    scaling_factor: Annotated[Finite, Field(gt=0)] = 0.18215
    shift_factor: Finite | None = None
    latents_mean: Annotated[list[Finite], Field(min_length=4, max_length=4)] | None = None
    latents_std: Annotated[list[Annotated[Finite, Field(gt=0)]], Field(min_length=4, max_length=4)] | None = None


class _VisionFields(BaseModel):
    image_size: Count | tuple[Count, Count]


class _ClipTextFields(BaseModel):
    context_length: Count = 77
    vocab_size: Count = 49408


class _ClipModelFields(BaseModel):
    embed_dim: Count
    vision_cfg: _VisionFields
    text_cfg: _ClipTextFields


class _ClipFields(BaseModel):
    model_cfg: _ClipModelFields
    domain: Domain = "general"  # ours: what pictures the CLIP knows


class _CheckerVisionFields(BaseModel):
    image_size: Count
    hidden_size: Count


class _CheckerFields(BaseModel):
    vision_config: _CheckerVisionFields
    projection_dim: Count


_TRANSFORMERS, _DIFFUSERS = "model", "diffusion_pytorch_model"
# By class: what a build reads from the config, and how the weights' file is named.
_KINDS: dict[str, tuple[type[BaseModel], str]] = {
    "CLIPTextModel": (_TextEncoderFields, _TRANSFORMERS),
    "CLIPTextModelWithProjection": (_TextEncoderFields, _TRANSFORMERS),
    "UNet2DConditionModel": (_UnetFields, _DIFFUSERS),
    "ControlNetModel": (_ControlNetFields, _DIFFUSERS),
    "AutoencoderKL": (_VaeFields, _DIFFUSERS),
    "AutoencoderTiny": (_TinyVaeFields, _DIFFUSERS),
    "open_clip": (_ClipFields, "open_clip_model"),
    CHECKER_CLASS: (_CheckerFields, _TRANSFORMERS),
}


@dataclass(frozen=True)
class Part:
    """One folder of weights. `name`: `text_encoder`, `text_encoder_2`, `unet`, `controlnet`, `vae`, `clip` or `safety_checker`; `kind`: its
    class in transformers or diffusers, or `open_clip`."""

    name: str
    kind: str
    folder: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    tensors: dict[str, StoredTensor]


def open_part(folder: Path, name: str, kind: str) -> Part:
    """The files of one network. Raises `CheckpointError`."""
    if not folder.is_dir():
        raise CheckpointError(f"the folder {name}/ is missing", "use a whole checkpoint: text encoders, unet, vae, scheduler, tokenizers")
    config = read_json(folder / _CONFIG_NAMES.get(name, "config.json"), "use a whole checkpoint: every network needs its config")
    weights = _weight_files(folder, _KINDS[kind][1])
    tensors: dict[str, StoredTensor] = {}
    for path in weights:
        tensors |= read_header(path)
    return Part(name, kind, folder, config, weights, tensors)


def _weight_files(folder: Path, base: str) -> tuple[Path, ...]:
    """The whole file, or the shards that the index names, or the fp16 variant where it is the only one."""
    index = folder / f"{base}.safetensors.index.json"
    if (folder / f"{base}.safetensors").is_file():
        return (folder / f"{base}.safetensors",)
    if index.is_file():
        raise CheckpointError(
            f"{folder.name}/{index.name}: the weights are in shards", "save the checkpoint with a larger max_shard_size: one file a network"
        )
    if (folder / f"{base}.fp16.safetensors").is_file():
        return (folder / f"{base}.fp16.safetensors",)
    raise CheckpointError(f"{folder.name}/{base}.safetensors is missing", "download or save the checkpoint again, as safetensors")


def check_fields(parts: dict[str, Part]) -> None:
    """The numbers that shapes are made of must be there, and be such numbers."""
    for name, part in parts.items():
        try:
            _KINDS[part.kind][0].model_validate(part.config)
        except ValidationError as error:
            first = error.errors()[0]
            missing = first["type"] == "missing"
            key, value = _place(part.config, first["loc"], missing)
            place = f"{name}/{_CONFIG_NAMES.get(name, 'config.json')}"
            reason = "it should be a table" if first["type"] == "model_type" else first["msg"]
            what = f"has no {key}" if missing else f"has {key} = {repr(value)[:60]}: {reason}"
            raise CheckpointError(f"{place} {what}", f"save the checkpoint again with {_SAVERS.get(name, 'diffusers')}") from error


def _place(config: dict[str, Any], loc: tuple[int | str, ...], missing: bool) -> tuple[str, Any]:
    """(dotted key, its value or None) of what a validation error points to; pydantic adds names of types, which are no keys."""
    keys: list[str] = []
    value: Any = config
    for key in loc:
        if not isinstance(value, dict) or not (missing or key in value):
            break
        keys.append(str(key))
        value = value.get(key)
    return ".".join(keys), value
