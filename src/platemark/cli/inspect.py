"""`platemark inspect`: what a bundle holds, and whether its engines can be used here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from platemark.cli.build import NO_CLIP, traits, tuned_lines
from platemark.cli.output import emit, json_option, say


@click.command("inspect")
@click.argument("bundle", type=click.Path(path_type=Path))
@json_option
def command(bundle: Path, as_json: bool) -> int:
    """Show what a BUNDLE holds and which of its engines run here.

    Every file's hash is checked first.
    """
    from platemark.press import engine_cache
    from platemark.provenance.home import home
    from platemark.runtime.bundle import open_bundle
    from platemark.runtime.engines import states
    from platemark.runtime.family import load_family

    opened = open_bundle(bundle)
    engines = {name: _usable(opened.root / part.graph) for name, part in opened.manifest.components.items()}
    others = states(opened, engine_cache(home()))
    if as_json:
        emit(
            {
                "bundle": str(opened.root),
                "sha256": opened.sha256,
                "engines": engines,
                "other_engines": [s.as_dict() for s in others],
                "manifest": opened.manifest.model_dump(mode="json"),
            }
        )
        return 0
    manifest = opened.manifest
    say(f"{manifest.name}  (from {manifest.source.checkpoint}, by {manifest.created_with})")
    say(f"family {manifest.family}{traits(manifest)}: {load_family(manifest.family).title}")
    (height, width), (high, wide) = manifest.native_size, manifest.output_size
    settings = f"{manifest.default_steps} steps, guidance {manifest.default_guidance}"
    say(f"native {width}x{height}, delivered {wide}x{high}, {settings}")
    for name, part in manifest.components.items():
        worst = max(comparison.rel_l2_error for comparison in part.parity.comparisons)
        state = "runs here" if engines[name]["usable"] else f"cannot run: {engines[name]['why']}"
        say(f"  {name:13} {part.precision} opset {part.opset}  parity {worst:.1e} of {part.parity.bound_rel_l2:.0e}  {state}")
    for engine in others:
        verdict = "can be used here" if engine.usable else "cannot be used here"
        say(f"  {engine.component:13} {engine.backend} {engine.precision} for {engine.device}: {verdict}: {engine.why}")
    for line in tuned_lines(manifest.tuned):
        say(f"  {line}")
    if "clip_image" not in manifest.components:
        say(f"  note: {NO_CLIP}")
    for backend, end in {"onnxruntime": manifest.end_to_end, **manifest.engines_end_to_end}.items():
        default = ", the default" if manifest.engines_end_to_end and backend == manifest.default_backend else ""
        say(f"  end to end    {end.psnr:.1f} dB against {end.reference} ({backend}{default})")
    return 0


def _usable(graph: Path) -> dict[str, Any]:
    from platemark.errors import EngineError
    from platemark.runtime.backends.onnxruntime import compile_graph

    try:
        compile_graph(graph)
    except EngineError as error:
        return {"backend": "onnxruntime", "usable": False, "why": error.message}
    return {"backend": "onnxruntime", "usable": True, "why": None}
