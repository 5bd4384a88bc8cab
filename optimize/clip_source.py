"""Finds an open_clip model on this machine and lays it out in open_clip's local-dir format. Never uses the network, never opens a pickle.

A source is a folder in that format (`local-dir:FOLDER`, or the folder alone), a model in the Hugging Face cache (`hf-hub:ORG/NAME`), or
the name of a model that open_clip knows (`ViT-B-32`, or `ViT-B-32:TAG` for the preprocessing of pretrained weights) with a safetensors
file.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip  # type: ignore[import-untyped]

from platemark.errors import CheckpointError, InputError
from platemark.optimize.clip_vocabulary import WORDS, write_vocabulary
from platemark.optimize.source_files import PICKLES, read_json
from platemark.optimize.staging import copy_file, write_file

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
LOCAL, HUB = "local-dir:", "hf-hub:"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
_SAVE = "save the model as safetensors in open_clip's local-dir format: open_clip_config.json and open_clip_model.safetensors"


def stage_clip(source: str, folder: Path, *, weights: Path | None = None, domain: str | None = None) -> str:
    """Copies the model into `folder` (made if need be) and returns the sha256 of its weights file.

    `weights`: the safetensors file of a model given by name, and only then. `domain`: what pictures it knows; None: what its config says,
    else `general`. The folder can be given to `build` as `clip`. Raises `InputError` (no such source) and `CheckpointError` (files
    missing, pickles, a tokenizer that open_clip's vocabulary does not fit).
    """
    if weights is not None:
        config, files = _named(source), {WEIGHTS: _safetensors(weights)}
    else:
        found = _folder(source)
        config = read_json(found / CONFIG, _SAVE)
        files = {name: found / name for name in _TOKENIZER if (found / name).is_file()} | {WEIGHTS: _weights(found)}
    if domain is not None:
        config["domain"] = domain
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / CONFIG, (json.dumps(config, indent=1) + "\n").encode())
    digests = {name: copy_file(path, folder / name) for name, path in files.items()}
    if "tokenizer.json" not in files and "vocab.json" not in files:
        write_vocabulary(folder, int(config["model_cfg"].get("text_cfg", {}).get("vocab_size", WORDS)))
    return digests[WEIGHTS]


@contextmanager
def staged_clip(source: str, *, weights: Path | None = None, domain: str | None = None) -> Iterator[Path]:
    """The model as a folder that `build` takes for its `clip`, gone at the end. Arguments and errors: see `stage_clip`."""
    with tempfile.TemporaryDirectory(prefix="platemark-clip-") as name:
        stage_clip(source, Path(name), weights=weights, domain=domain)
        yield Path(name)


def _folder(source: str) -> Path:
    if source.startswith(HUB):
        return _cached(source.removeprefix(HUB))
    folder = Path(source.removeprefix(LOCAL))
    if not folder.is_dir():
        known = source in open_clip.list_models()
        remedy = (
            "give its safetensors file too" if known else "name a folder, hf-hub:ORG/NAME, or a model of open_clip with its weights file"
        )
        raise InputError(f"there is no open_clip folder {source[:80]!r}", remedy)
    return folder


def _cached(repository: str) -> Path:
    """The snapshot folder in the Hugging Face cache. Looks nowhere else."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(repository, CONFIG)
    except HFValidationError as error:
        raise InputError(f"{repository[:80]!r} is no repository", "write hf-hub:ORG/NAME") from error
    if not isinstance(config, str):
        raise InputError(f"{repository[:80]!r} is not in the Hugging Face cache", "download it first; Platemark uses no network")
    return Path(config).parent


def _weights(folder: Path) -> Path:
    if (folder / WEIGHTS).is_file():
        return folder / WEIGHTS
    pickles = any(path.suffix.lower() in PICKLES for path in folder.iterdir())
    raise CheckpointError(f"{folder.name} has no {WEIGHTS}" + (", only a pickle" if pickles else ""), _SAVE)


def _safetensors(path: Path) -> Path:
    if path.suffix.lower() != ".safetensors":
        raise CheckpointError(f"{path.name} is not a safetensors file", "convert it: pickles can run code and are never opened")
    if not path.is_file():
        raise InputError(f"there is no file {path.name!r}", "check the path")
    return path


def _named(source: str) -> dict[str, Any]:
    """The config of a model that open_clip knows, with the preprocessing of a tag where one is given."""
    name, _, tag = source.partition(":")
    model = open_clip.get_model_config(name)
    if model is None:
        raise InputError(f"open_clip knows no model {name[:80]!r}", "see open_clip.list_models()")
    known = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    if tag and not known:
        raise InputError(f"open_clip knows no weights {tag[:80]!r} of {name}", "see open_clip.list_pretrained_tags_by_model(name)")
    keys = ("mean", "std", "interpolation", "resize_mode")
    return {"model_cfg": model, "preprocess_cfg": {key: known[key] for key in keys if known.get(key) is not None}}
