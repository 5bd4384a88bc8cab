"""`platemark upscale`: a picture in, the same picture larger out, stamped."""

from __future__ import annotations

from pathlib import Path

import click

from platemark.cli.generate import single_target
from platemark.cli.output import emit, json_option, say
from platemark.errors import PolicyBlocked


@click.command("upscale")
@click.argument("image", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, metavar="FILE", help="The file to write (.png, .jpg, .webp).")
@click.option("--factor", type=int, default=2, show_default=True, help="How many times as large, 2 to 8.")
@click.option("--bundle", type=click.Path(path_type=Path), help="A bundle whose upscaler is used. [default: Lanczos]")
@click.option("--policy", metavar="NAME|FILE", help="strict, standard, research, or a TOML file. [default: standard]")
@click.option("--consent", metavar="REF", help="Refers to the consent of the people shown; goes into the log and the record.")
@json_option
def command(image: Path, output: str, factor: int, bundle: Path | None, policy: str | None, consent: str | None, as_json: bool) -> int:
    """Enlarge IMAGE; it is checked, and the result checked, marked, signed and recorded before it is written.

    By the bundle's super-resolution network (`platemark build --upscaler`), else by Lanczos.
    """
    from platemark.press import load

    target = single_target(output)
    result = load(bundle, policy=policy).upscale(image, factor, consent=consent, file_format=target.file_format)
    if result.error is not None:
        raise result.error
    if result.data is None or result.provenance is None:
        raise PolicyBlocked("the policy withheld the picture", "another picture or policy", result.decision)
    file = target.write(0, result)
    if as_json:
        emit({"file": file, **result.as_dict()})
        return 0
    for note in result.notes:
        click.echo(f"note: {note}", err=True)
    facts = result.provenance.facts
    say(f"{file}  {facts.settings['upscale']}, signed by {result.provenance.identity}, recorded as {result.provenance.content_id}")
    return 0
