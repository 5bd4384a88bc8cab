"""`platemark build`: a checkpoint in, a bundle of verified engines out."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from platemark.cli.output import emit, json_option, progress, say, spelled
from platemark.errors import InputError, MissingExtra

if TYPE_CHECKING:
    from platemark.optimize.plan import Plan
    from platemark.runtime.manifest import BuiltEngine, Manifest, Trial

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
NO_CLIP = "no CLIP: rebuild with --clip, or no preset policy can look for concepts in its pictures"


@click.command("build")
@click.argument("checkpoint", type=click.Path(path_type=Path), required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The bundle folder to make.")
@click.option("--lora", "loras", multiple=True, metavar="FILE[:SCALE]", help="Merge a LoRA into the weights (may be repeated).")
@click.option("--clip", metavar="MODEL", help="The open_clip model that checks pictures: a folder, hf-hub:ORG/NAME, or NAME[:TAG].")
@click.option("--clip-weights", type=click.Path(path_type=Path), help="The safetensors file of a model given by name.")
@click.option("--clip-precision", type=click.Choice(["fp32", "int8"]), help="Of the CLIP exported alone. [default: fp32]")
@click.option("--clip-domain", metavar="NAME", help="What pictures the CLIP knows. [default: its config's, else general]")
@click.option("--controlnet", type=click.Path(path_type=Path), help="A ControlNet folder, for `generate --control`.")
@click.option("--tiny-vae", type=click.Path(path_type=Path), help="A folder of a tiny VAE (AutoencoderTiny), in the VAE's place.")
@click.option("--backend", metavar="NAME", help="Engines beyond the portable graphs: openvino, tensorrt-rtx or tensorrt.")
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16", "bf16", "int8"]), default="fp32", show_default=True, help="Of those engines."
)
@click.option("--target", "targets", metavar="SM", multiple=True, help="A GPU that plans are for, as sm_89; several in one plan.")
@click.option(
    "--profile",
    "profiles",
    metavar="COMPONENT:DIM=MIN,OPT,MAX",
    multiple=True,
    help="Sizes that a plan is for, as unet:height=32,64,128. [default: half, native and twice the size]",
)
@click.option(
    "--feature", "features", metavar="NAME", multiple=True, help="Of plans: refit, weight-streaming, version- or hardware-compatible."
)
@click.option("--prediction-type", metavar="NAME", help="Of a single file that does not say: epsilon, v_prediction or sample.")
@click.option("--ema", is_flag=True, help="Of a single file: take the averaged copy of its weights.")
@click.option("--upscaler", type=click.Path(path_type=Path), help="An ONNX super-resolution network to take into the bundle.")
@click.option("--tune", is_flag=True, help="Time every engine that this machine can run, and keep the fastest of each network.")
@click.option("--plan", is_flag=True, help="Say what memory, disk and time the build would take, and build nothing.")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@json_option
def command(checkpoint: Path | None, output: Path, loras: tuple[str, ...], force: bool, as_json: bool, **options: Any) -> int:
    """Build a bundle from a CHECKPOINT (extra `build`): a diffusers folder, one .safetensors file, or a hub id.

    A hub id, ORG/NAME or ORG/NAME@REVISION, is taken from the Hugging Face cache, and fetched where it is not there.

    With no CHECKPOINT, --upscaler adds its network to the bundle at OUTPUT, and --clip exports the CLIP alone, into a folder that a policy
    can name.
    """
    clip = {name: value for name, value in options.items() if name.startswith("clip")}
    if checkpoint is None and (options["controlnet"] or options["tiny_vae"]):
        raise InputError("--controlnet and --tiny-vae go with a CHECKPOINT, and there is none", "name the checkpoint's folder")
    if importlib.util.find_spec("onnx") is None:
        raise MissingExtra("building (no module 'onnx')", "build")
    from platemark.optimize.build import build, plan
    from platemark.optimize.checkpoint import Added
    from platemark.optimize.engines import request_for
    from platemark.optimize.hub import locate
    from platemark.optimize.lora import Lora
    from platemark.optimize.single_file import Reading
    from platemark.optimize.upscaler import add_upscaler, examine

    if checkpoint is None:
        if loras:
            raise InputError("--lora is merged into a CHECKPOINT, and there is none", "name the checkpoint's folder")
        if options["upscaler"] is not None and clip["clip"] is None:
            return _add_upscaler(output, options["upscaler"], as_json)
        return _export_clip(output, force, as_json, clip)
    if clip["clip_precision"]:
        raise InputError("--clip-precision is for a CLIP exported alone", "leave CHECKPOINT out, and name the folder in a policy")
    backend = spelled(options["backend"])
    wanted = (options["precision"], options["targets"], options["profiles"], options["features"], options["tune"])
    engines = request_for(backend, *wanted)
    enlarging = None if options["upscaler"] is None else examine(options["upscaler"])
    merged = [Lora.parse(text) for text in loras]
    with progress("building") as update, _staged(clip) as folder:
        found = locate(checkpoint)
        added = Added(folder, options["controlnet"], options["tiny_vae"])
        reading = Reading(options["prediction_type"], options["ema"], found.origin)
        if options["plan"]:
            return _say_plan(plan(found.path, output, added=added, merges=bool(merged), engines=engines, reading=reading), as_json)
        manifest = build(found.path, output, added=added, loras=merged, replace=force, engines=engines, reading=reading, on_progress=update)
    manifest = manifest if enlarging is None else add_upscaler(output, enlarging)
    if as_json:
        emit({"bundle": str(output), "manifest": manifest.model_dump(mode="json")})
        return 0
    say(f"family        {manifest.family}{traits(manifest)}")
    for name, component in manifest.components.items():
        worst = max(comparison.rel_l2_error for comparison in component.parity.comparisons)
        bound, shapes = component.parity.bound_rel_l2, len(component.parity.comparisons)
        say(f"{name:13} {component.precision}  parity {worst:.1e} (bound {bound:.0e}) over {shapes} shapes")
    for engine in manifest.engines:
        say(f"{engine.component:13} {engine.precision}  {engine.backend} for {engine.device}: {_proof(engine)}")
        for given_up in engine.tried:
            say(f"{'':13} given up: {given_up}")
    for line in tuned_lines(manifest.tuned):
        say(line)
    for backend_name, end in manifest.engines_end_to_end.items():
        say(f"end to end    {end.psnr:.1f} dB on {backend_name} (bound {end.bound_psnr:.0f} dB)")
    say(f"end to end    {manifest.end_to_end.psnr:.1f} dB against the reference (bound {manifest.end_to_end.bound_psnr:.0f} dB)")
    for lora in manifest.source.loras:
        lost = f"; no place for {', '.join(lora.unmatched)}" if lora.unmatched else ""
        say(f"{lora.file}: {lora.applied} weights changed, scale {lora.scale:g}{lost}")
    origin = manifest.source.origin
    if origin is not None and origin.left_out:
        few = ", ".join(origin.left_out[:5]) + (", …" if len(origin.left_out) > 5 else "")
        say(f"note: tensors in {origin.name} that belong to no network were left out: {few}")
    if "clip_image" not in manifest.components:
        say(f"note: {NO_CLIP}")
    say(f"{output}")
    return 0


def tuned_lines(trials: list[Trial]) -> Iterator[str]:
    """What was tried when a bundle was tuned, as a table."""
    for trial in trials:
        spent = "-" if trial.milliseconds is None else f"{trial.milliseconds:g} ms"
        off = "" if trial.rel_l2_error is None else f"  parity {trial.rel_l2_error:.1e}"
        yield f"{trial.component:13} {trial.backend:11} {trial.precision:5} {spent:>10}{off}  {trial.outcome}"


def _say_plan(found: Plan, as_json: bool) -> int:
    from platemark.optimize.plan import lines

    if as_json:
        emit(found.as_dict())
        return 0
    for line in lines(found):
        say(line)
    return 0


def traits(manifest: Manifest) -> str:
    """What of a bundle's family not all of its bundles have, to be said behind its name."""
    conditioning = manifest.conditioning
    found = {
        "inpainting": conditioning.inpainting,
        "guidance embedded": bool(conditioning.guidance_embedding),
        "ControlNet": "controlnet" in manifest.components,
    }
    return "".join(f", {name}" for name, there in found.items() if there)


def _staged(options: dict[str, Any]) -> Any:
    """Yields the folder of the open_clip model that was asked for, None for none."""
    from platemark.optimize.clip_source import staged_clip

    if options["clip"] is None:
        _refuse_strays(options)
        return nullcontext()
    return staged_clip(options["clip"], weights=options["clip_weights"], domain=options["clip_domain"])


def _refuse_strays(options: dict[str, Any]) -> None:
    stray = next((name for name, value in options.items() if value is not None), None)
    if stray is not None:
        raise InputError(f"--{stray.replace('_', '-')} says how to take a CLIP, and none is named", "add --clip MODEL")


def _export_clip(output: Path, force: bool, as_json: bool, options: dict[str, Any]) -> int:
    """The CLIP alone."""
    from platemark.optimize.clip import export_clip

    if options["clip"] is None:
        raise InputError("there is nothing to build", "name a CHECKPOINT folder, or --clip MODEL to export a CLIP alone")
    with progress("exporting") as update:
        manifest = export_clip(
            options["clip"],
            output,
            weights=options["clip_weights"],
            domain=options["clip_domain"],
            precision=options["clip_precision"] or "fp32",
            replace=force,
            on_progress=lambda note: update(0, 1, note),
        )
    if as_json:
        emit({"clip": str(output), "manifest": manifest})
        return 0
    for tower in ("image", "text"):
        parity = manifest[tower]
        say(f"{tower:5} {parity['precision']}  cosine {min(parity['cosines']):.4f} with its reference (bound {parity['bound_cosine']})")
    say(f"{output}")
    return 0


def _add_upscaler(bundle: Path, path: Path, as_json: bool) -> int:
    """A network for a bundle that is there."""
    from platemark.optimize.upscaler import add_upscaler, examine

    manifest = add_upscaler(bundle, examine(path))
    card = manifest.upscaler
    if as_json or card is None:
        emit({"bundle": str(bundle), "manifest": manifest.model_dump(mode="json")})
        return 0
    size = "any size" if card.tile is None else f"tiles of {card.tile} cells"
    worst = max(comparison.rel_l2_error for comparison in manifest.components["upscaler"].parity.comparisons)
    say(f"{card.name}: enlarges {card.factor} times, takes {size}, looks {card.reach} cells far, parity {worst:.1e}")
    say(f"{bundle}")
    return 0


def _proof(engine: BuiltEngine) -> str:
    if engine.parity is None:
        return "plan built, never run"
    worst = max(comparison.rel_l2_error for comparison in engine.parity.comparisons)
    return f"parity {worst:.1e} (bound {engine.parity.bound_rel_l2:.0e})"
