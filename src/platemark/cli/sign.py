"""`platemark sign`: puts Content Credentials on a picture that was made elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from platemark.cli.output import emit, json_option, say


@click.command("sign")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to write the signed file. [default: FILE itself]")
@click.option("--source-type", metavar="TERM", help="State how FILE was made: an IPTC digital source type, e.g. digitalCapture.")
@click.option("--timestamp", metavar="URL", help="Get an RFC 3161 time stamp from this authority, or fail.")
@json_option
def command(file: Path, output: Path | None, source_type: str | None, timestamp: str | None, as_json: bool) -> int:
    """Sign a PNG, JPEG, WebP, AVIF, TIFF or GIF file with C2PA Content Credentials.

    No pixel changes, and no watermark is added. Credentials that FILE carries are kept: they become the ingredient of the new ones.
    """
    from platemark.provenance.home import home
    from platemark.provenance.identity import development_identity
    from platemark.provenance.signing import SignOptions, sign_file
    from platemark.provenance.timestamps import NO_TIMESTAMP, TimestampRule
    from platemark.provenance.trust import held_trust

    place, target = home(), output or file
    rule = TimestampRule("required", timestamp, held_trust(place).tsa) if timestamp else NO_TIMESTAMP
    signed = sign_file(file, target, development_identity(place), source_type=source_type, options=SignOptions(timestamp=rule))
    if as_json:
        emit({"file": str(target), "manifest_label": signed.label, "timestamp": signed.timestamp})
    else:
        say(f"{target}: signed, {signed.label}" + ("" if signed.timestamp == "none" else f", time stamp {signed.timestamp}"))
    return 0
