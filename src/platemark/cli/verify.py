"""`platemark verify`: what each layer of a file says about where it came from."""

from __future__ import annotations

from pathlib import Path

import click

from platemark.cli.output import emit, json_option, progress, say
from platemark.errors import PlatemarkError


@click.command("verify")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@json_option
def command(files: tuple[Path, ...], as_json: bool) -> int:
    """Say where each FILE came from, as far as it can be proven.

    Reads its C2PA credentials, watermark, metadata and registry entry, and gives one verdict.

    Exit code: 0 traced or intact, 1 nothing found, 6 tampered, corrupt or in conflict, 2 a file could not be read.
    """
    from platemark.provenance.verify import exit_code, verify

    codes = []
    with progress("verifying") as update:
        for number, file in enumerate(files):
            try:
                report = verify(file)
            except PlatemarkError as error:  # one bad file does not stop the others
                codes.append(error.exit_code)
                if as_json:
                    emit({"file": str(file), "error": error.as_dict()})
                else:
                    say(f"error: {file}: {error.message} ({error.remedy})", err=True)
                continue
            codes.append(exit_code(report.verdict))
            if as_json:
                emit({"file": str(file), **report.as_dict()})
            else:
                _print(file, report.verdict, report.layers, report.summary)
            update(number + 1, len(files), "")
    return max(codes, default=0)


def _print(file: Path, verdict: str, layers: dict[str, dict[str, object]], summary: list[str]) -> None:
    say(f"{file}: {verdict}")
    for sentence in summary:
        say(f"  {sentence}")
    for name, layer in layers.items():
        facts = ", ".join(f"{key} {value}" for key, value in layer.items() if key != "state" and isinstance(value, str | int | float))
        say(f"  {name:10} {layer.get('state', '')}" + (f"  ({facts})" if facts else ""))
