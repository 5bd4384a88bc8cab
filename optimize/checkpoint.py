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
from platemark.optimize.fit import CONTROLNET, check_together, check_unet, family_of, kinds_of, levels, named
from platemark.optimize.parts import CHECKER, CHECKER_CLASS, Part, check_fields, open_part
from platemark.optimize.settings import SETTINGS, Settings, read_settings
from platemark.optimize.source_files import read_json, refuse_pickles
from platemark.runtime.family import Family

NAMES = "names.txt"  # optional: what the checkpoint can draw, one name a line
FEATURES = "feature_extractor/preprocessor_config.json"  # how the safety checker's pictures become input
_GENERATED = ("preprocess.json", "golden.json")  # written into clip/ by a build, so never taken from a checkpoint


@dataclass(frozen=True)
class Vae:
    """How latents are scaled: see `Manifest`."""

    scaling_factor: float
    shift_factor: float
    mean: list[float] | None
    std: list[float] | None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are there, are safetensors, and are whole."""

    root: Path
    index: dict[str, Any]  # model_index.json
    family: Family
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
        return int(2 ** (levels(self.parts["vae"]) - 1))

    @property
    def max_tokens(self) -> int:
        return int(self.parts["text_encoder"].config["max_position_embeddings"])

    @property
    def pipeline(self) -> tuple[str, ...]:
        """The parts that render."""
        texts = (text.component for text in self.family.texts)
        return (*texts, "unet", "vae", *(("controlnet",) if "controlnet" in self.parts else ()))

    @property
    def empty_negative_is_zero(self) -> bool:
        """Whether no negative prompt is a row of zeros: a choice of the pipelines that read a pooled text."""
        return self.family.reads_sizes and bool(self.index.get("force_zeros_for_empty_prompt", True))

    @property
    def vae(self) -> Vae:
        config = self.parts["vae"].config
        usual = 1.0 if self.parts["vae"].kind == "AutoencoderTiny" else 0.18215
        found = config if self.family.latent_statistics else {}
        mean, std = found.get("latents_mean"), found.get("latents_std")
        scaling, shift = float(config.get("scaling_factor", usual)), float(config.get("shift_factor") or 0.0)
        return Vae(scaling, shift, mean, std) if mean and std else Vae(scaling, shift, None, None)

    def files(self) -> Iterator[tuple[str, Path]]:
        """(POSIX path inside the bundle, file) of every file that goes into a bundle: configs, tokenizers, weights."""
        yield from ((name, self.root / name) for name in ("model_index.json", SETTINGS, NAMES) if (self.root / name).is_file())
        for folder in ("scheduler", *(text.tokenizer for text in self.family.texts)):
            yield from ((f"{folder}/{path.name}", path) for path in _texts(self.root / folder))
        for part in self.parts.values():
            paths = _texts(part.folder) if part.name == "clip" else [part.folder / "config.json"]
            yield from ((f"{part.name}/{path.name}", path) for path in (*paths, *part.weights))


@dataclass(frozen=True)
class Added:
    """Folders of networks that are taken instead of the checkpoint's own, or beside them.

    `clip`: in open_clip's local-dir format. `controlnet` and `tiny_vae` (an AutoencoderTiny, in the VAE's place): as diffusers saves them.
    """

    clip: Path | None = None
    controlnet: Path | None = None
    tiny_vae: Path | None = None

    def __bool__(self) -> bool:
        return any((self.clip, self.controlnet, self.tiny_vae))


def open_checkpoint(root: Path, added: Added | None = None) -> Checkpoint:
    """Opens the folder. Raises `CheckpointError` naming the file and the remedy.

    `safety_checker/` is a part where the checkpoint has one, with its `feature_extractor/`, and so is `controlnet/`; what else lies beside
    the pipeline's networks stays where it is.
    """
    added = added or Added()
    if not root.is_dir():
        raise CheckpointError(f"{root} is not a folder", "name the folder of a diffusers checkpoint (it holds model_index.json)")
    refuse_pickles(root)
    index = read_json(root / "model_index.json", "name the folder of a diffusers checkpoint (it holds model_index.json)")
    family = family_of(index)
    kinds = kinds_of(index, family)
    given = added_parts(added)
    parts = {name: given.get(name) or _part(root / name, name, kind) for name, kind in kinds.items()}
    if named(index, "controlnet") is not None and "controlnet" not in given:
        parts["controlnet"] = _part(root / "controlnet", "controlnet", CONTROLNET)
    if (root / "clip").is_dir() and "clip" not in given:
        parts["clip"] = open_clip_folder(root / "clip")
    parts |= given
    if _has_checker(root, index):
        parts[CHECKER] = open_part(root / CHECKER, CHECKER, CHECKER_CLASS)
        read_json(root / FEATURES, "add the feature_extractor folder of the checkpoint, or leave its safety_checker folder out")
    check_unet(parts["unet"].config, family)
    check_fields(parts)
    check_together(parts, family)
    scheduler = read_json(root / "scheduler" / "scheduler_config.json", "add the scheduler folder of the checkpoint")
    for folder in (text.tokenizer for text in family.texts):
        if not (root / folder / "tokenizer.json").is_file() and not (root / folder / "vocab.json").is_file():
            raise CheckpointError(f"{folder}/ holds neither tokenizer.json nor vocab.json", "add that folder of the checkpoint")
    return Checkpoint(root, index, family, parts, scheduler, read_settings(root))


def added_parts(added: Added) -> dict[str, Part]:
    """The networks that are added, by the name of their part. Raises `CheckpointError`."""
    found = {}
    if added.tiny_vae is not None:
        found["vae"] = _part(added.tiny_vae, "vae", "AutoencoderTiny")
    if added.controlnet is not None:
        found["controlnet"] = _part(added.controlnet, "controlnet", CONTROLNET)
    if added.clip is not None:
        found["clip"] = open_clip_folder(added.clip)
    return found


def _part(folder: Path, name: str, kind: str) -> Part:
    """A network of the pipeline. Raises `CheckpointError`, also where its config names another class."""
    refuse_pickles(folder)
    part = open_part(folder, name, kind)
    if part.config.get("_class_name", kind) != kind:
        raise CheckpointError(f"{name}/config.json is that of a {part.config['_class_name']!r}", f"name the folder of a {kind}")
    return part


def open_clip_folder(folder: Path) -> Part:
    """A folder in open_clip's local-dir format: `open_clip_config.json`, `open_clip_model.safetensors`, the tokenizer's files.

    Raises `CheckpointError`.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder", "name a folder in open_clip's local-dir format")
    refuse_pickles(folder)
    part = open_part(folder, "clip", "open_clip")
    check_fields({"clip": part})
    return part


def _has_checker(root: Path, index: dict[str, Any]) -> bool:
    """Whether the checkpoint brings Stable Diffusion's own safety checker; another class is none that this build knows."""
    return named(index, CHECKER) == CHECKER_CLASS and (root / CHECKER / "config.json").is_file()


def latent_size(config: dict[str, Any]) -> tuple[int, int]:
    """(height, width) of the UNet's own latents, in cells."""
    size = config["sample_size"]
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _texts(folder: Path) -> list[Path]:
    """The JSON and text files of a folder, sorted by name."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix in (".json", ".txt") and path.name not in _GENERATED and path.is_file())
