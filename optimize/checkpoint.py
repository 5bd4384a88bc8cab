"""Opens a Stable Diffusion checkpoint (a diffusers folder) and says, before any work starts, what is wrong with it.

Reads JSON and safetensors headers only; pickles are never opened. Knows nothing about torch: whether a network accepts its weights is
asked in `modules`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platemark.errors import CheckpointError
from platemark.optimize.parts import CHECKER, Part, check_fields, open_part
from platemark.optimize.settings import SETTINGS, Settings, read_settings
from platemark.optimize.source_files import read_json, refuse_pickles

NAMES = "names.txt"  # optional: what the checkpoint can draw, one name a line
FEATURES = "feature_extractor/preprocessor_config.json"  # how the safety checker's pictures become input
_GENERATED = ("preprocess.json", "golden.json")  # written into clip/ by a build, so never taken from a checkpoint
CLASSES = {"text_encoder": "CLIPTextModel", "unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
_CHECKER_CLASS = "StableDiffusionSafetyChecker"


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
    parts = {name: open_part(root / name, name) for name in CLASSES}
    if clip is not None or (root / "clip").is_dir():
        parts["clip"] = open_clip_folder(clip or root / "clip")
    if _has_checker(root, index):
        parts[CHECKER] = open_part(root / CHECKER, CHECKER)
        read_json(root / FEATURES, "add the feature_extractor folder of the checkpoint, or leave its safety_checker folder out")
    _check_unet(parts["unet"].config)
    check_fields(parts)
    scheduler = read_json(root / "scheduler" / "scheduler_config.json", "add the scheduler folder of the checkpoint")
    if not (root / "tokenizer" / "tokenizer.json").is_file() and not (root / "tokenizer" / "vocab.json").is_file():
        raise CheckpointError("tokenizer/ holds neither tokenizer.json nor vocab.json", "add the tokenizer folder of the checkpoint")
    return Checkpoint(root, index, parts, scheduler, read_settings(root))


def open_clip_folder(folder: Path) -> Part:
    """A folder in open_clip's local-dir format: `open_clip_config.json`, `open_clip_model.safetensors`, the tokenizer's files.

    Raises `CheckpointError`.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder", "name a folder in open_clip's local-dir format")
    refuse_pickles(folder)
    part = open_part(folder, "clip")
    check_fields({"clip": part})
    return part


def _has_checker(root: Path, index: dict[str, Any]) -> bool:
    """Whether the checkpoint brings Stable Diffusion's own safety checker; another class is none that this build knows."""
    entry = index.get(CHECKER)
    named = isinstance(entry, list) and len(entry) == 2 and entry[1] == _CHECKER_CLASS
    return named and (root / CHECKER / "config.json").is_file()


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


def latent_size(config: dict[str, Any]) -> tuple[int, int]:
    """(height, width) of the UNet's own latents, in cells."""
    size = config["sample_size"]
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _texts(folder: Path) -> list[Path]:
    """The JSON and text files of a folder, sorted by name."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix in (".json", ".txt") and path.name not in _GENERATED and path.is_file())
