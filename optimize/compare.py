"""The half of a build that holds no torch: every exported graph against its recording, engines, the whole pipeline, the manifest.

Asks `work` for what the stage does not hold yet. Knows nothing about where a bundle goes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from platemark import __version__
from platemark.errors import ParityError
from platemark.optimize import apart, work
from platemark.optimize.checkpoint import FEATURES, Added, Checkpoint
from platemark.optimize.export import OPSET
from platemark.optimize.fit import reads_mask, recommended
from platemark.optimize.journal import SCRATCH, Entry, Journal, key_of
from platemark.optimize.parts import CHECKER
from platemark.optimize.settings import Settings
from platemark.optimize.specs import Spec, specs
from platemark.optimize.weights import file_sha256
from platemark.optimize.work import PICTURE, Job, fp32_bytes, load_recorded, memory_errors
from platemark.runtime import devices
from platemark.runtime.manifest import (
    BuiltEngine,
    Component,
    Conditioning,
    EndToEnd,
    Manifest,
    MergedLora,
    Origin,
    Source,
    Trial,
)
from platemark.runtime.parity import PRECISIONS

if TYPE_CHECKING:
    from platemark.optimize.engines import EngineRequest

Progress = Callable[[int, int, str], None]
_MADE_WITH = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx-ir", "open-clip-torch", "numpy")
_LARGE = 1 << 30  # bytes of float32 weights from which on torch gets a process of its own: starting one takes seconds


@dataclass(frozen=True)
class Work:
    """One build under way. `copied` maps every copied file to its SHA-256."""

    checkpoint: Checkpoint
    added: Added
    stage: Path
    copied: dict[str, str]
    settings: Settings
    loras: list[MergedLora] = field(default_factory=list)
    request: EngineRequest | None = None
    origin: Origin | None = None

    @property
    def large(self) -> bool:
        return sum(fp32_bytes(self.checkpoint, part) for part in self.checkpoint.parts) > _LARGE


def make_manifest(build: Work, progress: Progress) -> Manifest:
    """Everything of the bundle but `bundle.json`, in the stage; returns what is to stand in that.

    Raises `CheckpointError`, `EngineError`, `ParityError`, `InputError`.
    """
    from platemark.optimize.endtoend import choose_scheduler

    scheduler = choose_scheduler(build.checkpoint, build.settings.default_scheduler)
    settings = build.settings.model_copy(update={"default_scheduler": scheduler})
    found = list(specs(build.checkpoint).values())
    draft = _manifest(build, settings, {}, [], {})
    say = _counted(progress, 2 * len(found) + 2)
    exported = _exported(build, found, draft, say)
    components, engines, trials, made = {}, [], [], {name: sha for entry in exported.values() for name, sha in entry.files.items()}
    for spec in found:
        say(f"{spec.component}: comparing")
        entry = _compared(build, spec, exported[spec.component], say)
        components[spec.component] = Component.model_validate(entry.facts["component"])
        engines += [BuiltEngine.model_validate(one) for one in entry.facts["engines"]]
        trials += [Trial.model_validate(one) for one in entry.facts["trials"]]
        made |= entry.files
    say("the whole pipeline: comparing")
    _check_weights(build)
    draft = _manifest(build, settings, components, engines, made).model_copy(update={"tuned": trials})
    draft = _whole(build, draft, exported[PICTURE])
    say("writing")
    return draft


def _counted(progress: Progress, total: int) -> Callable[[str], None]:
    """Counts the steps by their notes: `<what>: exporting`, `: comparing` and the last are one each, what else is said belongs to them."""
    done = -1

    def say(note: str) -> None:
        nonlocal done
        done += note.endswith((": exporting", ": comparing", "writing"))
        progress(min(max(done, 0), total - 1), total, note)

    return say


def _exported(build: Work, found: list[Spec], draft: Manifest, say: Callable[[str], None]) -> dict[str, Entry]:
    """The journal's entry of every component and of the picture, after the torch half made what was missing."""
    keys = {spec.component: _export_key(build, spec) for spec in found}
    keys[PICTURE] = key_of(keys, build.copied, draft.model_dump(mode="json"))
    journal = Journal(build.stage)
    missing = {name: key for name, key in keys.items() if journal.find(name, key) is None}
    if missing:
        job = Job(checkpoint=build.checkpoint.root, added=build.added, stage=build.stage, todo=missing, draft=draft)
        (apart.run if build.large else work.run)(job, say)
        journal = Journal(build.stage)
    entries = {name: journal.find(name, key) for name, key in keys.items()}
    lost = [name for name, entry in entries.items() if entry is None]
    if lost:
        raise ParityError(f"{lost[0]} changed while the bundle was being built", "build again, and let nothing else write into the folder")
    return {name: entry for name, entry in entries.items() if entry is not None}


def _export_key(build: Work, spec: Spec) -> str:
    """Everything that decides a graph and its recording."""
    files = {name: sha256 for name, sha256 in build.copied.items() if name.split("/")[0] == spec.part}
    if spec.part == CHECKER:
        files[FEATURES] = file_sha256(build.checkpoint.root / FEATURES)
    return key_of(__version__, [version(name) for name in _MADE_WITH], files, repr(spec))


def _compared(build: Work, spec: Spec, exported: Entry, say: Callable[[str], None]) -> Entry:
    """The journal's entry of one component's comparison, made where it is not there."""
    from platemark.runtime.backends import onnxruntime

    request = build.request
    backend = None if request is None else (repr(request), _versions(request))
    key = key_of(exported.key, onnxruntime.label(), devices.cpu(), backend)
    journal, name = Journal(build.stage), f"{spec.component}: compared"
    entry = journal.find(name, key)
    if entry is not None:
        return entry
    with memory_errors(f"{spec.component}, comparing"):
        facts, made = _compare(build, spec, exported, say)
    return journal.add(name, key, made, facts=facts)


def _versions(request: EngineRequest) -> str:
    """Of every library that the engines may come from."""
    from platemark.optimize.tune import candidates

    return repr(candidates()) if request.tune else str(request.module.version())


def _compare(build: Work, spec: Spec, exported: Entry, say: Callable[[str], None]) -> tuple[dict[str, Any], list[str]]:
    """The component's record and its engines', as JSON types, and the files that were made."""
    from platemark.optimize.engines import make_engine
    from platemark.optimize.parity import check_engine
    from platemark.optimize.tune import candidates, tune
    from platemark.runtime.backends.onnxruntime import compile_graph, label

    (place,) = exported.scratch
    recorded = load_recorded(build.stage / place)
    reference = str(exported.facts["reference"])
    parity = check_engine(spec, recorded, compile_graph(build.stage / spec.graph), (reference, label()))
    weights = [f"{spec.part}/{path.name}" for path in build.checkpoint.parts[spec.part].weights]
    component = Component(graph=spec.graph, weights=weights, precision="fp32", opset=OPSET, parity=parity)
    engine, trials, files = None, list[Trial](), list[str]()
    if build.request is not None and build.request.tune:
        say(f"{spec.component}: tuning")
        trials, engine = tune(spec, recorded, build.stage / spec.graph, reference, candidates())
    elif build.request is not None:
        say(f"{spec.component}: {build.request.backend}")
        engine, files = make_engine(build.request, spec, recorded, build.stage, reference)
    facts: dict[str, Any] = {"component": component.model_dump(mode="json"), "trials": [one.model_dump(mode="json") for one in trials]}
    return {**facts, "engines": [] if engine is None else [engine.model_dump(mode="json")]}, files


def _whole(build: Work, draft: Manifest, picture: Entry) -> Manifest:
    """The draft with the comparisons of the whole pipeline."""
    from platemark.optimize.endtoend import check_pipeline, compared_request
    from platemark.optimize.tune import TUNED

    request = compared_request(build.checkpoint, draft)
    with np.load(build.stage / next(iter(picture.scratch)), allow_pickle=False) as stored:
        expected = stored["picture"]
    with memory_errors("the whole pipeline"):
        whole = check_pipeline(build.stage, draft, request, expected, "onnxruntime", "fp32")
        draft = draft.model_copy(update={"end_to_end": whole, **_measured(build, draft)})
        if build.request is None or build.request.plans:
            return draft
        draft = _with_backends(build.request, draft)
        while True:
            try:
                name, backend = (TUNED, None) if build.request.tune else (build.request.backend, build.request.backend)
                other = check_pipeline(build.stage, draft, request, expected, backend, _loosest(draft))
                return draft.model_copy(update={"engines_end_to_end": {name: other}})
            except ParityError as error:
                draft = _safer(build, draft, error)


def _with_backends(request: EngineRequest, draft: Manifest) -> Manifest:
    """The draft with what renders by default: the backend asked for, or each component's fastest."""
    if not request.tune:
        return draft.model_copy(update={"default_backend": request.backend})
    return draft.model_copy(update={"backends": {engine.component: engine.backend for engine in draft.engines}})


def _loosest(draft: Manifest) -> str:
    """Of the precisions in use, the one whose pictures may differ most."""
    return min((engine.precision for engine in draft.engines), key=lambda name: PRECISIONS[name].psnr, default="fp32")


def _safer(build: Work, draft: Manifest, failed: ParityError) -> Manifest:
    """The draft with its least exact engine in float32 instead. Raises what failed where all of them are."""
    from platemark.optimize.engines import SAFEST, in_precision

    narrow = [engine for engine in draft.engines if engine.precision != SAFEST and engine.parity is not None]
    if not narrow:
        raise failed
    worst = max(narrow, key=lambda one: max(c.rel_l2_error for c in one.parity.comparisons) if one.parity else 0.0)
    spec = specs(build.checkpoint)[worst.component]
    recorded = load_recorded(build.stage / f"{SCRATCH}/{worst.component}.npz")
    assert worst.parity is not None
    tried = [*worst.tried, f"{worst.precision}: {failed.message}"]
    again = in_precision(worst.backend, SAFEST, spec, recorded, build.stage, worst.parity.reference, tried)
    return draft.model_copy(update={"engines": [again if one is worst else one for one in draft.engines]})


def _measured(build: Work, draft: Manifest) -> dict[str, Any]:
    """What the bundle says of its VAE: how latents show as colours, and what decoding in tiles costs."""
    from platemark.optimize.preview import fit_colours
    from platemark.optimize.tiled import measure_tiles
    from platemark.runtime.backends.onnxruntime import compile_graph
    from platemark.runtime.codec import Codec

    if "vae_encoder" not in draft.components:
        return {}
    engines = {name: compile_graph(build.stage / draft.components[name].graph) for name in ("vae_encoder", "vae_decoder")}
    codec = Codec(draft, engines.__getitem__)
    return {"latent_colours": fit_colours(draft, codec), "tiled_decode": measure_tiles(draft, codec)}


def _check_weights(build: Work) -> None:
    """What was compared must be what was read: no copied file may have changed since."""
    for name, sha256 in build.copied.items():
        if file_sha256(build.stage / name) != sha256:
            raise ParityError(f"{name} changed while the bundle was being built", "build again, and let nothing else write into the folder")


def _manifest(
    build: Work, settings: Settings, components: dict[str, Component], engines: list[BuiltEngine], made: dict[str, str]
) -> Manifest:
    checkpoint, copied = build.checkpoint, build.copied
    vae, unet = checkpoint.vae, checkpoint.parts["unet"].config
    steps, guidance = recommended(checkpoint.family, unet, checkpoint.scheduler)
    weights = [f"{part.name}/{path.name}" for part in checkpoint.parts.values() for path in part.weights]
    return Manifest(
        format_version=1,
        name=settings.name or checkpoint.root.resolve().name,
        family=checkpoint.family.name,
        conditioning=Conditioning(
            inpainting=reads_mask(unet),
            guidance_embedding=int(unet.get("time_cond_proj_dim") or 0),
            empty_negative_is_zero=checkpoint.empty_negative_is_zero,
        ),
        created_with=f"platemark {__version__}",
        source=Source(
            checkpoint=build.origin.name if build.origin is not None else checkpoint.root.resolve().name,
            weights={name: copied[name] for name in weights},
            loras=build.loras,
            origin=build.origin,
        ),
        files=dict(sorted((copied | made).items())),
        components=components,
        end_to_end=_NOT_YET,
        engines=engines,
        native_size=checkpoint.native_size,
        output_size=settings.output_size or checkpoint.native_size,
        latent_channels=int(checkpoint.parts["vae"].config["latent_channels"]),
        vae_scale_factor=checkpoint.vae_scale_factor,
        scaling_factor=vae.scaling_factor,
        shift_factor=vae.shift_factor,
        latents_mean=vae.mean,
        latents_std=vae.std,
        max_tokens=checkpoint.max_tokens,
        default_steps=settings.default_steps or steps,
        default_guidance=guidance if settings.default_guidance is None else settings.default_guidance,
        default_scheduler=settings.default_scheduler,
    )


# Stands in the draft that the whole pipeline is compared with; a draft is never written.
_NOT_YET = EndToEnd(reference="", prompt="", seed=0, num_inference_steps=0, guidance_scale=0, height=0, width=0, psnr=0, bound_psnr=0)
