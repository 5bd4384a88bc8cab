"""The files that a build reads: pickles are refused, JSON is a table or an error. Knows nothing about models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from platemark.errors import CheckpointError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_TO_SAFETENSORS = (
    "convert it to safetensors (`pipeline.save_pretrained(folder, safe_serialization=True)`): pickles can run code and are never opened"
)


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
