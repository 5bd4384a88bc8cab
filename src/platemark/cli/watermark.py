"""`platemark watermark`: the invisible mark alone, without signature or registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from platemark.cli.output import emit, json_option, progress, say

if TYPE_CHECKING:
    from platemark.provenance.mark_reading import MarkReading

_NO_KEY = 4


@click.group("watermark")
def command() -> None:
    """Write and read the invisible mark of single files.

    `platemark generate` marks, signs and registers by itself; this is for pictures from elsewhere.
    """


@command.command("embed")
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.option("-o", "--output", metavar="OUT", required=True, type=click.Path(path_type=Path), help="PNG, JPEG or WebP, by its suffix.")
@click.option("--content-id", metavar="N", required=True, type=int, help="What the mark says: 0 to 2^42 - 1.")
@click.option("--issuer", metavar="N", type=int, help="Who says it: 0 to 2^14 - 1. [default: the key's own]")
@click.option("--strength", metavar="X", type=float, help="A fixed strength, instead of as faint as will still be read.")
@json_option
def embed(source: Path, output: Path, content_id: int, issuer: int | None, strength: float | None, as_json: bool) -> int:
    """Mark the picture IN and write it to OUT.

    Uses the watermark key of the state folder; the mark is read back before OUT appears. Nothing is registered or signed: the registry's
    own content ids belong to generated pictures, so keep a list of yours and use another issuer number. Transparency, ICC profile and
    EXIF are kept; other metadata and C2PA credentials are not. OUT must not be IN.
    """
    from platemark.provenance.home import home
    from platemark.provenance.marking import mark_file, marking_key

    done = mark_file(source, output, marking_key(home()), content_id, issuer=issuer, strength=strength)
    if as_json:
        emit(done.as_dict())
        return 0
    say(f"{done.file}: content id {done.content_id}, issuer {done.issuer}, {done.psnr:.1f} dB, key {done.key_id}")
    for note in done.notes:
        say(f"  {note}")
    return 0


@command.command("detect")
@click.argument("paths", metavar="FILE|DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--deep", is_flag=True, help="Search all rotations, crops and sizes: seconds a picture.")
@click.option("--map", "map_file", metavar="OUT", type=click.Path(path_type=Path), help="PNG that shows where one FILE has lost its mark.")
@click.option("--latent", is_flag=True, help="Also read the layer in the initial noise: seconds a picture.")
@click.option("--bundle", type=click.Path(path_type=Path), help="With --latent: the bundle that rendered. [default: the embedded model]")
@json_option
def detect(paths: tuple[Path, ...], deep: bool, map_file: Path | None, latent: bool, bundle: Path | None, as_json: bool) -> int:
    """Read the mark of each FILE, and of every picture in and below each DIR.

    Reads with all watermark keys of the state folder, on all cores. `not-detected` says nothing about where a picture came from. With
    --map, OUT shows the picture in gray: red where the mark is missing (pasted, redrawn or blurred since), blue where that cannot be told.
    With --latent, each picture is run backwards through the model of --bundle, which must be the one that rendered it.

    Exit code: 0 a mark in every file, 1 not in all, 2 a file could not be read, 4 no key is held here.
    """
    from platemark.models import embedded
    from platemark.provenance.home import home
    from platemark.provenance.mark_reading import pictures_in, read_mapped, read_marks, with_latents

    files = pictures_in(paths)
    readings = read_marks(files, home(), deep=deep) if map_file is None else iter([read_mapped(paths, home(), map_file, deep=deep)])
    if latent:
        readings = with_latents(readings, home(), bundle or embedded())
    code = 0
    with progress("reading marks") as update:
        for number, reading in enumerate(readings, start=1):
            if as_json:
                emit(reading.as_dict())
            else:
                _print(reading)
            code = max(code, _exit_code(reading))
            update(number, len(files), "")
    return code


def _exit_code(reading: MarkReading) -> int:
    if reading.error is not None:
        return reading.exit_code
    return _NO_KEY if reading.verdict == "no-key" else int(not reading.is_marked)


def _print(reading: MarkReading) -> None:
    if reading.error is not None:
        say(f"error: {reading.file}: {reading.error['message']} ({reading.error['remedy']})", err=True)
        return
    say(f"{reading.file}: {reading.verdict}")
    if reading.verdict == "no-key":
        say("  run `platemark keys init`, or import keys with `platemark keys import`")
    if reading.content_id is not None:
        say(f"  content id {reading.content_id}, issuer {reading.issuer}, key {reading.key_id}, p = {reading.p_value:.1e}")
    if reading.latent is not None:
        say(_latent_words(reading.latent))
    if reading.map is not None:
        say("  no mark in {absent:.0%} of the picture, unknown in {unknown:.0%}: {file}".format(**reading.map))
        for region in reading.map["regions"]:
            say("  without mark: left {}, top {}, right {}, bottom {}".format(*region["box"]))


def _latent_words(latent: dict[str, Any]) -> str:
    words = f"  in the noise: {latent['verdict']}, p = {latent['p_value']:.1e}"
    if latent["content_id_mod_4096"] is not None:
        words += f", content id modulo 4096 is {latent['content_id_mod_4096']}, key {latent['key_id']}"
    return words
