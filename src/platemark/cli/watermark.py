"""`platemark watermark`: the invisible mark alone, without signature or registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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
@json_option
def detect(paths: tuple[Path, ...], deep: bool, as_json: bool) -> int:
    """Read the mark of each FILE, and of every picture in and below each DIR.

    Reads with all watermark keys of the state folder, on all cores. `not-detected` says nothing about where a picture came from.

    Exit code: 0 a mark in every file, 1 not in all, 2 a file could not be read, 4 no key is held here.
    """
    from platemark.provenance.home import home
    from platemark.provenance.mark_reading import pictures_in, read_marks

    files = pictures_in(paths)
    code = 0
    with progress("reading marks") as update:
        for number, reading in enumerate(read_marks(files, home(), deep=deep), start=1):
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
    return _NO_KEY if reading.verdict == "no-key" else int(reading.verdict != "detected")


def _print(reading: MarkReading) -> None:
    if reading.error is not None:
        say(f"error: {reading.file}: {reading.error['message']} ({reading.error['remedy']})", err=True)
        return
    say(f"{reading.file}: {reading.verdict}")
    if reading.verdict == "no-key":
        say("  run `platemark keys init`, or import keys with `platemark keys import`")
    if reading.content_id is not None:
        say(f"  content id {reading.content_id}, issuer {reading.issuer}, key {reading.key_id}, p = {reading.p_value:.1e}")
