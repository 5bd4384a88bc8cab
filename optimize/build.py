"""A checkpoint in, a bundle out: copy, export, link, compare, publish. The one function that commands call.

Everything is made in `<out>.partial` and put in place at the end, so a killed build leaves no half bundle: that folder at most, in which
the next build goes on component by component. What needs torch is done by `work`, and what is compared by `compare`.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platemark.errors import InputError, MissingExtra
from platemark.optimize.checkpoint import Added, Checkpoint, added_parts, open_checkpoint
from platemark.optimize.fit import family_of, kinds_of
from platemark.optimize.lora import Lora, merge
from platemark.optimize.parts import Part
from platemark.optimize.settings import SETTINGS, Settings
from platemark.optimize.single_file import Reading, SingleFile, is_single_file, read_single_file, write_folder
from platemark.optimize.staging import copy_file, keep_only, link_file, publish, publish_files, stage_for, write_file
from platemark.optimize.weights import StoredTensor
from platemark.optimize.work import json_file
from platemark.runtime.bundle import MANIFEST
from platemark.runtime.manifest import Manifest, Origin

if TYPE_CHECKING:
    from platemark.optimize.engines import EngineRequest
    from platemark.optimize.plan import Plan

Progress = Callable[[int, int, str], None]
_UNPACKED, _MERGED = ".unpacked", ".merged"  # in the stage, while it is built
_LIBRARIES = ("diffusers", "onnx", "onnxscript", "open_clip", "torch", "transformers")


def build(
    checkpoint: Path,
    out: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    added: Added | None = None,
    loras: Sequence[Lora] = (),
    replace: bool = False,
    engines: EngineRequest | None = None,
    reading: Reading | None = None,
    on_progress: Progress | None = None,
) -> Manifest:
    """Builds a bundle of ONNX graphs that are proven equal to the checkpoint's torch networks, and returns its manifest.

    `checkpoint`: a diffusers folder, or one `.safetensors` file as web UIs ship it, which is read as `reading` says.
    `out == checkpoint` builds in place: graphs and `bundle.json` go beside the weights, each file atomically; an old `bundle.json` goes
    first and the new one comes last, so a build killed in between leaves a folder without one: run it again.
    `added`: networks taken instead of the checkpoint's own, or beside them (see `optimize.clip_source.stage_clip` for open_clip models that
    are no folder). Without a CLIP the bundle has no `clip_image`, and no concepts can be looked for in its pictures: callers
    should say so. A checkpoint's `safety_checker/` becomes the component `safety_checker`.
    `loras` are merged into the weights first; the manifest's source says what each of them did.
    `engines` asks for another backend's engines as well: compared with the same recordings where they run here, then rendered with by
    default; plans where they do not (see `optimize.engines`).
    `settings` come before those of the checkpoint's `platemark.json` and have its fields: see `checkpoint.Settings`.
    `on_progress` hears (steps done, steps in all, what comes next).

    A build that was killed goes on where it was: components that were finished from the same files, versions and options are kept.

    Raises `CheckpointError` (cannot be built from), `InputError` (`out` cannot be written, may not be replaced, or is being built by
    another process; this machine has too little memory or room, see `plan`), `ParityError` (a graph, or the whole pipeline, is not equal
    to its reference), `EngineError` (a network cannot be exported; memory ran out), `MissingExtra`.
    """
    _require_extra()
    from platemark.optimize.compare import Work, make_manifest
    from platemark.optimize.plan import check_fits, make_plan

    request = _checked(engines) if engines is not None else None
    reading = reading or Reading()
    single, opened = _read(checkpoint, added, reading)
    name = single.path.stem if single is not None else _named(checkpoint, reading.origin)
    chosen = _settings(name, opened.settings if opened is not None else Settings(), settings or {})
    out = out.resolve()
    in_place = out == checkpoint.resolve()
    if in_place and (loras or single or added):
        raise InputError("the checkpoint would be lost: no file, LoRAs or added networks go in place", "name another output folder")
    if opened is not None:
        check_fits(make_plan(opened, out, request, bool(loras)), request)
    with stage_for(out, in_place=in_place, replace=replace, resume=True) as stage:
        for folder in (_UNPACKED, _MERGED):  # of a killed build
            shutil.rmtree(stage / folder, ignore_errors=True)
        if opened is None:
            assert single is not None
            opened = _unpacked(single, stage, added)
            check_fits(make_plan(opened, out, request, bool(loras)), request)
        merged = stage / _MERGED / opened.root.resolve().name
        merges = merge(opened, loras, merged) if loras else []
        opened = open_checkpoint(merged, added) if loras else opened
        copied = {target: _take(source, stage, target) for target, source in opened.files()}
        origin = single.origin() if single else reading.origin
        work = Work(opened, added or Added(), stage, copied, chosen, loras=merges, request=request, origin=origin)
        manifest = make_manifest(work, on_progress or (lambda *step: None))
        write_file(stage / MANIFEST, json_file(manifest.model_dump(mode="json")))
        if in_place:
            publish_files(stage, out, [*(name for name in manifest.files if name not in copied), MANIFEST])
        else:
            keep_only(stage, {*manifest.files, MANIFEST})
            publish(stage, out)
    return manifest


def plan(
    checkpoint: Path,
    out: Path,
    *,
    added: Added | None = None,
    merges: bool = False,
    engines: EngineRequest | None = None,
    reading: Reading | None = None,
) -> Plan:
    """What `build` would take, estimated from the checkpoint's headers: see `optimize.plan`. `merges`: whether LoRAs are merged.

    Raises `CheckpointError`, `InputError`, `MissingExtra`.
    """
    _require_extra()
    from platemark.optimize.plan import make_plan

    single, opened = _read(checkpoint, added, reading or Reading())
    seen = opened if single is None else _preview(single, added or Added())
    assert seen is not None
    return make_plan(seen, out, _checked(engines) if engines is not None else None, merges)


def _preview(single: SingleFile, added: Added) -> Checkpoint:
    """The checkpoint that a single file will be unpacked to, as far as its configs and tensors go."""
    family = family_of(single.index)
    parts, kinds = {}, kinds_of(single.index, family)
    for name, planned in single.parts.items():
        tensors = {
            piece.name: StoredTensor(piece.name, piece.source.dtype, piece.shape, single.path, 0, piece.length) for piece in planned.pieces
        }
        parts[name] = Part(name, kinds.get(name, ""), single.path.parent, planned.config, (single.path,), tensors)
    parts |= added_parts(added)
    return Checkpoint(single.path.parent, single.index, family, parts, single.scheduler, Settings())


def _require_extra() -> None:
    """Looks for the libraries without loading them: torch may be for another process to hold."""
    for name in _LIBRARIES:
        if importlib.util.find_spec(name) is None:
            raise MissingExtra(f"building a bundle (no module {name!r})", "build")


def _checked(request: EngineRequest) -> EngineRequest:
    from platemark.optimize.engines import checked

    return checked(request)


def _read(checkpoint: Path, added: Added | None, reading: Reading) -> tuple[SingleFile | None, Checkpoint | None]:
    """The checkpoint as one file or as a folder, refused here where it cannot be built from."""
    if is_single_file(checkpoint):
        return read_single_file(checkpoint, reading), None
    if reading.prediction_type is not None or reading.ema:
        raise InputError("a prediction type or --ema says how to read one file, and this is a folder", "leave it out: the folder says it")
    return None, open_checkpoint(checkpoint, added)


def _named(folder: Path, origin: Origin | None) -> str:
    """What a bundle is called: by its folder, which in the hub's cache has a commit's name."""
    return folder.resolve().name if origin is None else origin.name.split("/")[-1]


def _unpacked(single: SingleFile, stage: Path, added: Added | None) -> Checkpoint:
    folder = stage / _UNPACKED / single.path.stem
    write_folder(single, folder)
    return open_checkpoint(folder, added)


def _take(source: Path, stage: Path, target: str) -> str:
    """A file of the bundle: its SHA-256. What was made for this build is not written twice; what is anybody else's is copied."""
    own = source.resolve().is_relative_to(stage)
    return (link_file if own else copy_file)(source, stage / target)


def _settings(name: str, own: Settings, given: Mapping[str, Any]) -> Settings:
    """The checkpoint's own settings with those given on top."""
    from pydantic import ValidationError

    try:
        return Settings.model_validate({"name": name, **own.model_dump(exclude_none=True), **given})
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{first['loc'][0]} = {first['input']!r} cannot be used: {first['msg']}", f"give another value, or see {SETTINGS}"
        ) from error
