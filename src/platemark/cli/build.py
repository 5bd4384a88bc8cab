"""`platemark build`: a checkpoint in, a bundle of verified engines out."""

from __future__ import annotations

from pathlib import Path

import click

from platemark.cli.output import emit, json_option, progress, say
from platemark.errors import MissingExtra

NO_CLIP = "no CLIP: put an open_clip folder at clip/ in the checkpoint and rebuild, or no preset policy can check its pictures"


@click.command("build")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The bundle folder to make.")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@json_option
def command(checkpoint: Path, output: Path, force: bool, as_json: bool) -> int:
    """Build a bundle from a diffusers CHECKPOINT folder (extra `build`)."""
    try:
        import diffusers  # noqa: F401
        import onnx  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtra(f"building (no module {error.name!r})", "build") from error
    from platemark.optimize.build import build

    with progress("building") as update:
        manifest = build(checkpoint, output, replace=force, on_progress=update)
    if as_json:
        emit({"bundle": str(output), "manifest": manifest.model_dump(mode="json")})
        return 0
    for name, component in manifest.components.items():
        worst = max(comparison.rel_l2_error for comparison in component.parity.comparisons)
        bound, shapes = component.parity.bound_rel_l2, len(component.parity.comparisons)
        say(f"{name:13} {component.precision}  parity {worst:.1e} (bound {bound:.0e}) over {shapes} shapes")
    say(f"end to end    {manifest.end_to_end.psnr:.1f} dB against the reference (bound {manifest.end_to_end.bound_psnr:.0f} dB)")
    if "clip_image" not in manifest.components:
        say(f"note: {NO_CLIP}")
    say(f"{output}")
    return 0
