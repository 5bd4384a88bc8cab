"""A checkpoint in, a bundle out: copy, export, link, compare, publish. The one function that commands call.

Everything is made in `<out>.partial` and put in place at the end, so a killed build leaves no half bundle: that folder at most, which the
next build removes. torch and its relatives are imported when `build` is called.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platemark import __version__
from platemark.errors import InputError, MissingExtra, ParityError
from platemark.optimize.checkpoint import Checkpoint, open_checkpoint
from platemark.optimize.lora import Lora, merge
from platemark.optimize.parts import CHECKER
from platemark.optimize.settings import SETTINGS, Settings
from platemark.optimize.single_file import Reading, SingleFile, is_single_file, read_single_file, write_folder
from platemark.optimize.staging import copy_file, link_file, publish, publish_files, stage_for, write_file
from platemark.optimize.weights import file_sha256
from platemark.runtime.bundle import MANIFEST
from platemark.runtime.manifest import BuiltEngine, Component, EndToEnd, Manifest, MergedLora, Origin, Source

if TYPE_CHECKING:
    from torch import nn

    from platemark.optimize.engines import EngineRequest
    from platemark.optimize.export import Spec

Progress = Callable[[int, int, str], None]
_UNPACKED, _MERGED = ".unpacked", ".merged"  # in the stage, while it is built


@dataclass
class _Work:
    """One build under way. `nets` are float32 torch networks by part; `copied` maps every copied file to its SHA-256."""

    checkpoint: Checkpoint
    stage: Path
    copied: dict[str, str]
    nets: dict[str, nn.Module] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)
    loras: list[MergedLora] = field(default_factory=list)
    request: EngineRequest | None = None
    engines: list[BuiltEngine] = field(default_factory=list)
    origin: Origin | None = None


def build(
    checkpoint: Path,
    out: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    clip: Path | None = None,
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
    `clip`: a folder in open_clip's local-dir format, taken instead of the checkpoint's own `clip/` (see `optimize.clip.stage_clip` for
    other open_clip models). Without either the bundle has no `clip_image`, and no concepts can be looked for in its pictures: callers
    should say so. A checkpoint's `safety_checker/` becomes the component `safety_checker`.
    `loras` are merged into the weights first; the manifest's source says what each of them did.
    `engines` asks for another backend's engines as well: compared with the same recordings where they run here, then rendered with by
    default; plans where they do not (see `optimize.engines`).
    `settings` come before those of the checkpoint's `platemark.json` and have its fields: see `checkpoint.Settings`.
    `on_progress` hears (steps done, steps in all, what comes next).

    Raises `CheckpointError` (cannot be built from), `InputError` (`out` cannot be written, may not be replaced, or is being built by
    another process), `ParityError` (a graph, or the whole pipeline, is not equal to its reference), `EngineError` (a network cannot be
    exported), `MissingExtra`.
    """
    _require_extra()
    request = _checked(engines) if engines is not None else None
    reading = reading or Reading()
    single, opened = _read(checkpoint, clip, reading)
    name = single.path.stem if single is not None else _named(checkpoint, reading.origin)
    chosen = _settings(name, opened.settings if opened is not None else Settings(), settings or {})
    out = out.resolve()
    in_place = out == checkpoint.resolve()
    if in_place and (loras or single):
        raise InputError("the checkpoint would be lost: neither a file nor LoRAs go in place", "name another output folder")
    with stage_for(out, in_place=in_place, replace=replace) as stage:
        if opened is None:
            assert single is not None
            opened = _unpacked(single, stage, clip)
        merged = stage / _MERGED / opened.root.resolve().name
        merges = merge(opened, loras, merged) if loras else []
        opened = open_checkpoint(merged, clip) if loras else opened
        take = copy_file if single is None else link_file
        copied = {target: take(source, stage / target) for target, source in opened.files()}
        work = _Work(opened, stage, copied, loras=merges, request=request, origin=single.origin() if single else reading.origin)
        manifest = _make(work, chosen, on_progress or (lambda done, total, note: None))
        for folder in (_UNPACKED, _MERGED):
            shutil.rmtree(stage / folder, ignore_errors=True)
        write_file(stage / MANIFEST, _json(manifest.model_dump(mode="json")))
        if in_place:
            publish_files(stage, out, [*work.made, MANIFEST])
        else:
            publish(stage, out)
    return manifest


def _require_extra() -> None:
    try:
        import diffusers  # noqa: F401
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
        import open_clip  # type: ignore[import-untyped]  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingExtra(f"building a bundle (no module {error.name!r})", "build") from error


def _checked(request: EngineRequest) -> EngineRequest:
    from platemark.optimize.engines import checked

    return checked(request)


def _read(checkpoint: Path, clip: Path | None, reading: Reading) -> tuple[SingleFile | None, Checkpoint | None]:
    """The checkpoint as one file or as a folder, refused here where it cannot be built from."""
    if is_single_file(checkpoint):
        return read_single_file(checkpoint, reading), None
    if reading.prediction_type is not None or reading.ema:
        raise InputError("a prediction type or --ema says how to read one file, and this is a folder", "leave it out: the folder says it")
    return None, open_checkpoint(checkpoint, clip)


def _named(folder: Path, origin: Origin | None) -> str:
    """What a bundle is called: by its folder, which in the hub's cache has a commit's name."""
    return folder.resolve().name if origin is None else origin.name.split("/")[-1]


def _unpacked(single: SingleFile, stage: Path, clip: Path | None) -> Checkpoint:
    folder = stage / _UNPACKED / single.path.stem
    write_folder(single, folder)
    return open_checkpoint(folder, clip)


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


def _make(work: _Work, settings: Settings, say: Progress) -> Manifest:
    """Every network to a compared graph, then the whole pipeline, then the manifest."""
    from platemark.optimize.endtoend import check_pipeline, choose_scheduler
    from platemark.optimize.export import specs

    settings = settings.model_copy(update={"default_scheduler": choose_scheduler(work.checkpoint, settings.default_scheduler)})
    found = specs(work.checkpoint)
    components: dict[str, Component] = {}
    total = len(found) + 2
    for spec in found.values():
        say(len(components), total, f"{spec.component}: exporting")
        components[spec.component] = _component(work, spec, lambda note: say(len(components), total, note))
    if "clip" in work.nets:
        _write_clip(work)
    if CHECKER in work.nets:
        _write_checker(work)
    say(len(components), total, "the whole pipeline: comparing")
    _check_weights(work)
    draft = _manifest(work, settings, components)
    whole = check_pipeline(work.checkpoint, work.nets, work.stage, draft)
    draft = draft.model_copy(update={"end_to_end": whole, **_measured(work, draft)})
    if work.request is not None and not work.request.plans:
        backend, precision = work.request.backend, work.request.precision
        other = check_pipeline(work.checkpoint, work.nets, work.stage, draft, backend, precision)
        draft = draft.model_copy(update={"engines_end_to_end": {backend: other}, "default_backend": backend})
    say(len(components) + 1, total, "writing")
    return draft


def _component(work: _Work, spec: Spec, say: Callable[[str], None]) -> Component:
    """Exports, links and compares one network."""
    import torch

    from platemark.optimize.components import export_linked, reference
    from platemark.optimize.engines import make_engine
    from platemark.optimize.export import OPSET
    from platemark.optimize.modules import WRAPPERS, load_part
    from platemark.optimize.parity import check_engine, make_cases, record
    from platemark.runtime.backends.onnxruntime import compile_graph, label

    part = work.checkpoint.parts[spec.part]
    if spec.part not in work.nets:
        work.nets[spec.part] = load_part(part)
    module = WRAPPERS[spec.component](work.nets[spec.part]).eval()
    cases = make_cases(spec)
    write_file(work.stage / spec.graph, export_linked(spec, module, part, cases[0]))
    work.made.append(spec.graph)
    say(f"{spec.component}: comparing")
    labels = f"torch {torch.__version__} fp32", label()
    recorded = record(spec, cases, reference(spec, module))
    parity = check_engine(spec, recorded, compile_graph(work.stage / spec.graph), labels)
    if work.request is not None:
        say(f"{spec.component}: {work.request.backend}")
        engine, files = make_engine(work.request, spec, recorded, work.stage, labels[0])
        work.engines.append(engine)
        work.made += files
    weights = [f"{spec.part}/{path.name}" for path in part.weights]
    return Component(graph=spec.graph, weights=weights, precision="fp32", opset=OPSET, parity=parity)


def _measured(work: _Work, draft: Manifest) -> dict[str, Any]:
    """What the bundle says of its VAE: how latents show as colours, and what decoding in tiles costs."""
    from platemark.optimize.preview import fit_colours
    from platemark.optimize.tiled import measure_tiles
    from platemark.runtime.backends.onnxruntime import compile_graph
    from platemark.runtime.codec import Codec

    if "vae_encoder" not in draft.components:
        return {}
    engines = {name: compile_graph(work.stage / draft.components[name].graph) for name in ("vae_encoder", "vae_decoder")}
    codec = Codec(draft, engines.__getitem__)
    return {"latent_colours": fit_colours(draft, codec), "tiled_decode": measure_tiles(draft, codec)}


def _write_clip(work: _Work) -> None:
    from platemark.optimize.clip import golden, preprocessing

    part, net = work.checkpoint.parts["clip"], work.nets["clip"]
    preprocess = preprocessing(net, part)
    for name, value in (("clip/preprocess.json", preprocess), ("clip/golden.json", golden(net, part, preprocess))):
        write_file(work.stage / name, _json(value))
        work.made.append(name)


def _write_checker(work: _Work) -> None:
    from platemark.optimize.safety_checker import FILE, checker_file

    name = f"{CHECKER}/{FILE}"
    write_file(work.stage / name, _json(checker_file(work.nets[CHECKER], work.checkpoint.root)))
    work.made.append(name)


def _check_weights(work: _Work) -> None:
    """What was compared must be what was read: no copied file may have changed since."""
    for name, sha256 in work.copied.items():
        if file_sha256(work.stage / name) != sha256:
            raise ParityError(f"{name} changed while the bundle was being built", "build again, and let nothing else write into the folder")


def _manifest(work: _Work, settings: Settings, components: dict[str, Component]) -> Manifest:
    checkpoint = work.checkpoint
    vae = checkpoint.parts["vae"].config
    weights = [f"{part.name}/{path.name}" for part in checkpoint.parts.values() for path in part.weights]
    files = work.copied | {name: file_sha256(work.stage / name) for name in work.made}
    return Manifest(
        format_version=1,
        name=settings.name or checkpoint.root.resolve().name,
        family="sd",
        created_with=f"platemark {__version__}",
        source=Source(
            checkpoint=work.origin.name if work.origin is not None else checkpoint.root.resolve().name,
            weights={name: work.copied[name] for name in weights},
            loras=work.loras,
            origin=work.origin,
        ),
        files=dict(sorted(files.items())),
        components=components,
        end_to_end=_NOT_YET,
        engines=work.engines,
        native_size=checkpoint.native_size,
        output_size=settings.output_size or checkpoint.native_size,
        latent_channels=int(vae["latent_channels"]),
        vae_scale_factor=checkpoint.vae_scale_factor,
        scaling_factor=float(vae.get("scaling_factor", 0.18215)),
        shift_factor=float(vae.get("shift_factor") or 0.0),
        max_tokens=checkpoint.max_tokens,
        default_steps=settings.default_steps,
        default_guidance=settings.default_guidance,
        default_scheduler=settings.default_scheduler,
    )


# Stands in the draft that the whole pipeline is compared with; a draft is never written.
_NOT_YET = EndToEnd(
    reference="", prompt="", seed=0, num_inference_steps=0, guidance_scale=0, height=0, width=0, psnr=float("-inf"), bound_psnr=0
)


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
