"""LoRAs merged into a checkpoint's weights: a new checkpoint folder of the same layout, so that everything after it is an ordinary build.

The merge is done in float32 and rounded once to the stored precision, whatever the number of LoRAs; the checkpoint itself is never
touched, so that a build without one is always what it was. Needs numpy alone.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from platemark.errors import CheckpointError, InputError
from platemark.optimize.checkpoint import Checkpoint
from platemark.optimize.lora_file import Change, read_lora
from platemark.optimize.weights import StoredTensor, file_sha256, read_float32, read_header, write_float32
from platemark.runtime.manifest import MergedLora

PARTS = ("unet", "text_encoder", "text_encoder_2")
MAX_SCALE = 10.0


@dataclass(frozen=True)
class Lora:
    """A LoRA to merge: the file, and the factor of its change."""

    path: Path
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Lora:
        """`FILE` or `FILE:SCALE`. Raises `InputError` for a scale that is none, or beyond ±`MAX_SCALE`."""
        name, colon, number = text.rpartition(":")
        if not colon or not name or Path(text).is_file():
            return cls(Path(text))
        try:
            scale = float(number)
        except ValueError:
            return cls(Path(text))  # the colon belongs to the name
        if not math.isfinite(scale) or abs(scale) > MAX_SCALE or scale == 0:
            raise InputError(f"the LoRA scale {number[:20]} cannot be used", f"give -{MAX_SCALE:g} to {MAX_SCALE:g}, and not 0")
        return cls(Path(name), scale)


def merge(checkpoint: Checkpoint, loras: Sequence[Lora], folder: Path) -> list[MergedLora]:
    """Writes the checkpoint with the LoRAs merged to `folder`, which must not exist. What no LoRA changes is linked to.

    Raises `CheckpointError` (a file that is damaged or does not fit) and `InputError` (one of which nothing could be applied; a file that
    cannot be read).
    """
    here = [part for part in PARTS if part in checkpoint.parts]
    known = {name: tensor for part in here for name, tensor in known_weights(part, checkpoint.parts[part].tensors).items()}
    plan, reports = assign(loras, known)
    _write(checkpoint, plan, folder)
    return reports


def assign(
    loras: Sequence[Lora], known: dict[str, StoredTensor]
) -> tuple[dict[StoredTensor, list[tuple[Change, float]]], list[MergedLora]]:
    """What the LoRAs add to each weight, and a report of each. `known` as `known_weights` makes it. Raises as `merge` does."""
    plan: dict[StoredTensor, list[tuple[Change, float]]] = {}
    reports = []
    for lora in loras:
        if not lora.path.is_file():
            raise InputError(f"the LoRA {lora.path.name[-60:]!r} cannot be read", "name a .safetensors file")
        changes, unmatched = read_lora(lora.path)
        applied = 0
        for change in changes:
            name = _target(change, known)
            if name is None:
                unmatched.append(change.module)
                continue
            plan.setdefault(known[name], []).append((change, lora.scale))
            applied += 1
        if not applied:
            raise InputError(
                f"nothing in the LoRA {lora.path.name[-60:]!r} fits this checkpoint: {_few(unmatched)}",
                "use a LoRA made for this family (and not LoHa, LoKr or DoRA)",
            )
        reports.append(_report(lora, applied, unmatched))
    return plan, reports


def _report(lora: Lora, applied: int, unmatched: list[str]) -> MergedLora:
    sha256 = file_sha256(lora.path)
    return MergedLora(file=lora.path.name, sha256=sha256, scale=lora.scale, applied=applied, unmatched=sorted(unmatched))


def known_weights(part: str, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """`part|module` with underscores for dots → the module's weight, also under the short names of text encoders."""
    known = {}
    for name, tensor in tensors.items():
        if not name.endswith(".weight"):
            continue
        flat = name.removesuffix(".weight").replace(".", "_")
        known[f"{part}|{flat}"] = tensor
        if part != "unet":
            known.setdefault(f"{part}|{flat.removeprefix('text_model_')}", tensor)
            known.setdefault(f"{part}|text_model_{flat}", tensor)
    return known


def _target(change: Change, known: dict[str, StoredTensor]) -> str | None:
    flat = change.module.replace(".", "_")
    names = (flat, f"{flat}_0")  # older diffusers left out the 0 of `to_out.0`
    parts = PARTS if change.part is None else (change.part,)
    return next((f"{part}|{name}" for part in parts for name in names if f"{part}|{name}" in known), None)


def _write(checkpoint: Checkpoint, plan: dict[StoredTensor, list[tuple[Change, float]]], folder: Path) -> None:
    touched = {tensor.file for tensor in plan}
    for name, source in _all_files(checkpoint):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source in touched:
            shutil.copyfile(source, target)
        else:
            target.symlink_to(source.resolve())
    for file in touched:
        copy = folder / file.relative_to(checkpoint.root)
        places = read_header(copy)
        for tensor, changes in plan.items():
            if tensor.file == file:
                write_float32(places[tensor.name], changed(tensor, changes))


def changed(tensor: StoredTensor, changes: Iterable[tuple[Change, float]]) -> np.ndarray:
    """The weight with its changes, in float32."""
    values = np.array(read_float32(tensor), np.float32)
    if not tensor.is_float:
        raise CheckpointError(f"{tensor.name} is stored as {tensor.dtype}", "use a checkpoint in float16, bfloat16 or float32")
    for change, scale in changes:
        values += np.float32(scale) * change.delta(tensor.shape)
    return values


def _all_files(checkpoint: Checkpoint) -> Iterable[tuple[str, Path]]:
    """Every file of the checkpoint's folder that a build reads."""
    seen = dict(checkpoint.files())
    for path in sorted(checkpoint.root.rglob("*.json")):
        seen.setdefault(path.relative_to(checkpoint.root).as_posix(), path)
    return seen.items()


def _few(names: list[str]) -> str:
    return ", ".join(name[:80] for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
