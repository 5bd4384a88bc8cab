"""Opens a Stable Diffusion checkpoint (a diffusers folder) and says, before any work starts, what is wrong with it.

Reads JSON and safetensors headers only; pickles are never opened. Knows nothing about torch: whether a network accepts its weights is
asked in `modules`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from platemark.errors import CheckpointError
from platemark.optimize.weights import StoredTensor, read_header
from platemark.runtime.request import MAX_GUIDANCE, MAX_SIZE, MAX_STEPS, MIN_SIZE
from platemark.runtime.schedulers import NAMES as SAMPLERS

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
SETTINGS = "platemark.json"
NAMES = "names.txt"  # optional: what the checkpoint can draw, one name a line
CHECKER = "safety_checker"
FEATURES = "feature_extractor/preprocessor_config.json"  # how the safety checker's pictures become input
_GENERATED = ("preprocess.json", "golden.json")  # written into clip/ by a build, so never taken from a checkpoint
CLASSES = {"text_encoder": "CLIPTextModel", "unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
_CHECKER_CLASS = "StableDiffusionSafetyChecker"
_WEIGHT_NAMES = {
    "text_encoder": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "clip": "open_clip_model",
    CHECKER: "model",
}
_CONFIG_NAMES = {"clip": "open_clip_config.json"}
_TO_SAFETENSORS = (
    "convert it to safetensors (`pipeline.save_pretrained(folder, safe_serialization=True)`): pickles can run code and are never opened"
)
_SAVERS = {"text_encoder": "transformers", "clip": "open_clip, in its local-dir format"}

Count = Annotated[int, Field(strict=True, ge=1)]
Counts = Annotated[list[Count], Field(min_length=1)]
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=MIN_SIZE, le=MAX_SIZE)]
Domain = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]


def _known_sampler(name: str) -> str:
    if name not in SAMPLERS:
        raise ValueError(f"one of {', '.join(SAMPLERS)}")
    return name


class Settings(BaseModel):
    """Optional `platemark.json` of a checkpoint: what its maker recommends. Sizes are (height, width) in pixels.

    `domain`: what the checkpoint draws, `general` unless it is a narrow set of pictures that only a CLIP of that domain can judge.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = None
    default_steps: int = Field(default=20, ge=1, le=MAX_STEPS)
    default_guidance: float = Field(default=7.5, ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)
    default_scheduler: Annotated[str, AfterValidator(_known_sampler)] | None = None
    output_size: tuple[Side, Side] | None = None
    domain: Domain = "general"


class _TextEncoderFields(BaseModel):
    max_position_embeddings: Count
    vocab_size: Count


class _UnetFields(BaseModel):
    sample_size: Count | tuple[Count, Count]
    block_out_channels: Counts
    cross_attention_dim: Count | Counts
    encoder_hid_dim: Count | None = None


class _VaeFields(BaseModel):
    block_out_channels: Counts
    latent_channels: Literal[4]  # what the UNet reads
    scaling_factor: Annotated[Finite, Field(gt=0)] = 0.18215
    shift_factor: Finite | None = None


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


# What a build reads from each part's config.
_FIELDS: dict[str, type[BaseModel]] = {
    "text_encoder": _TextEncoderFields,
    "unet": _UnetFields,
    "vae": _VaeFields,
    "clip": _ClipFields,
    CHECKER: _CheckerFields,
}


@dataclass(frozen=True)
class Part:
    """One folder of weights: `text_encoder`, `unet`, `vae`, `clip` or `safety_checker`."""

    name: str
    folder: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    tensors: dict[str, StoredTensor]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are there, are safetensors, and are whole."""

    root: Path
    index: dict[str, Any]  # model_index.json
    parts: dict[str, Part]
    scheduler: dict[str, Any]  # scheduler_config.json
    settings: Settings

    @property
    def native_size(self) -> tuple[int, int]:
        """(height, width) in pixels at the UNet's own latent size."""
        height, width = latent_size(self.parts["unet"].config)
        return height * self.vae_scale_factor, width * self.vae_scale_factor

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent cell, a side: every down block of the VAE but the last halves."""
        return int(2 ** (len(self.parts["vae"].config["block_out_channels"]) - 1))

    @property
    def max_tokens(self) -> int:
        return int(self.parts["text_encoder"].config["max_position_embeddings"])

    def files(self) -> Iterator[tuple[str, Path]]:
        """(POSIX path inside the bundle, file) of every file that goes into a bundle: configs, tokenizers, weights."""
        yield from ((name, self.root / name) for name in ("model_index.json", SETTINGS, NAMES) if (self.root / name).is_file())
        for folder in ("scheduler", "tokenizer"):
            yield from ((f"{folder}/{path.name}", path) for path in _texts(self.root / folder))
        for part in self.parts.values():
            paths = _texts(part.folder) if part.name == "clip" else [part.folder / "config.json"]
            yield from ((f"{part.name}/{path.name}", path) for path in (*paths, *part.weights))


def open_checkpoint(root: Path, clip: Path | None = None) -> Checkpoint:
    """Opens the folder. Raises `CheckpointError` naming the file and the remedy.

    `clip`: a folder in open_clip's local-dir format, taken instead of the checkpoint's own `clip/`. `safety_checker/` is a part where
    the checkpoint has one, with its `feature_extractor/`; what else lies beside the plain text-to-image pipeline stays where it is.
    """
    if not root.is_dir():
        raise CheckpointError(f"{root} is not a folder", "name the folder of a diffusers checkpoint (it holds model_index.json)")
    refuse_pickles(root)
    index = read_json(root / "model_index.json", "name the folder of a diffusers checkpoint (it holds model_index.json)")
    _check_family(index)
    parts = {name: _open_part(root / name, name) for name in CLASSES}
    if clip is not None or (root / "clip").is_dir():
        parts["clip"] = open_clip_folder(clip or root / "clip")
    if _has_checker(root, index):
        parts[CHECKER] = _open_part(root / CHECKER, CHECKER)
        read_json(root / FEATURES, "add the feature_extractor folder of the checkpoint, or leave its safety_checker folder out")
    _check_unet(parts["unet"].config)
    _check_fields(parts)
    scheduler = read_json(root / "scheduler" / "scheduler_config.json", "add the scheduler folder of the checkpoint")
    if not (root / "tokenizer" / "tokenizer.json").is_file() and not (root / "tokenizer" / "vocab.json").is_file():
        raise CheckpointError("tokenizer/ holds neither tokenizer.json nor vocab.json", "add the tokenizer folder of the checkpoint")
    return Checkpoint(root, index, parts, scheduler, _read_settings(root))


def open_clip_folder(folder: Path) -> Part:
    """A folder in open_clip's local-dir format: `open_clip_config.json`, `open_clip_model.safetensors`, the tokenizer's files.

    Raises `CheckpointError`.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder", "name a folder in open_clip's local-dir format")
    refuse_pickles(folder)
    part = _open_part(folder, "clip")
    _check_fields({"clip": part})
    return part


def _has_checker(root: Path, index: dict[str, Any]) -> bool:
    """Whether the checkpoint brings Stable Diffusion's own safety checker; another class is none that this build knows."""
    entry = index.get(CHECKER)
    named = isinstance(entry, list) and len(entry) == 2 and entry[1] == _CHECKER_CLASS
    return named and (root / CHECKER / "config.json").is_file()


def refuse_pickles(root: Path) -> None:
    """Raises `CheckpointError` for a pickle that is not the twin of a safetensors file beside it (twins are left behind unread)."""
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in PICKLES and path.is_file() and not _has_twin(path):
            raise CheckpointError(f"{path.relative_to(root).as_posix()} is a pickle", _TO_SAFETENSORS)


def _has_twin(path: Path) -> bool:
    stems = {path.stem, path.stem.replace("pytorch_model", "model")}
    return any(path.with_name(f"{stem}.safetensors").is_file() for stem in stems)


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON table. Raises `CheckpointError` where it is missing or is none."""
    place = f"{path.parent.name}/{path.name}"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{place} is missing or cannot be read", remedy) from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{place} is not JSON", "download or save the checkpoint again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{place} is not a JSON table", "download or save the checkpoint again")
    return value


def _check_family(index: dict[str, Any]) -> None:
    found = index.get("_class_name")
    if found != "StableDiffusionPipeline":
        raise CheckpointError(
            f"model_index.json names the pipeline {found!r}", "use a StableDiffusionPipeline checkpoint (SD 1.x or 2.x layout)"
        )
    for name, expected in CLASSES.items():
        entry = index.get(name)
        kind = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if kind != expected:
            raise CheckpointError(f"model_index.json names {kind!r} as {name}", f"use a checkpoint whose {name} is a {expected}")


def _open_part(folder: Path, name: str) -> Part:
    if not folder.is_dir():
        raise CheckpointError(f"the folder {name}/ is missing", "use a whole checkpoint: text_encoder, unet, vae, scheduler, tokenizer")
    config = read_json(folder / _CONFIG_NAMES.get(name, "config.json"), "use a whole checkpoint: every network needs its config")
    weights = _weight_files(folder, _WEIGHT_NAMES[name])
    tensors: dict[str, StoredTensor] = {}
    for path in weights:
        tensors |= read_header(path)
    return Part(name, folder, config, weights, tensors)


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


def _check_unet(config: dict[str, Any]) -> None:
    """Refuses UNets that need inputs which this build does not make."""
    wanted: dict[str, tuple[Any, ...]] = {
        "in_channels": (4,),
        "out_channels": (4,),
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "time_cond_proj_dim": (None,),
        "encoder_hid_dim_type": (None, "text_proj"),
        "addition_embed_type": (None, "text"),
    }
    for key, values in wanted.items():
        found = config.get(key, values[0])
        if found not in values:
            raise CheckpointError(
                f"unet/config.json has {key} = {found!r}", "use a text-to-image checkpoint (4 latent channels, no class or image inputs)"
            )
    dims = config.get("cross_attention_dim")
    if isinstance(dims, list) and any(dim != dims[0] for dim in dims):
        raise CheckpointError(f"unet/config.json has cross_attention_dim = {dims!r}", "use a checkpoint with one text encoder")


def _check_fields(parts: dict[str, Part]) -> None:
    """The numbers that shapes are made of must be there, and be such numbers."""
    for name, part in parts.items():
        try:
            _FIELDS[name].model_validate(part.config)
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


def latent_size(config: dict[str, Any]) -> tuple[int, int]:
    """(height, width) of the UNet's own latents, in cells."""
    size = config["sample_size"]
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _read_settings(root: Path) -> Settings:
    if not (root / SETTINGS).is_file():
        return Settings()
    try:
        return Settings.model_validate(read_json(root / SETTINGS, "remove the file or make it readable"))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(v) for v in first["loc"])
        raise CheckpointError(
            f"{SETTINGS}: {place}: {first['msg']}", "mend the file: name, default_steps, default_guidance, output_size"
        ) from error


def _texts(folder: Path) -> list[Path]:
    """The JSON and text files of a folder, sorted by name."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix in (".json", ".txt") and path.name not in _GENERATED and path.is_file())
