"""`platemark verify`: what each layer of a file says about where it came from."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from platemark.cli.output import emit, json_option, progress, say
from platemark.errors import InputError

if TYPE_CHECKING:
    from platemark.provenance.trust import TrustLists
    from platemark.provenance.verify.batch import Line, Settings

_STDIN = Path("-")
_PATH = click.Path(path_type=Path)


@click.command("verify")
@click.argument("files", metavar="FILE|DIR|-...", nargs=-1, type=click.Path(path_type=Path, readable=False))
@click.option("--fast", is_flag=True, help="Search the watermark in the likely geometries alone.")
@click.option("--deep", is_flag=True, help="Search it in every geometry, also for more than 16 files.")
@click.option("--profile", metavar="NAME", help="Which fields of a regime are there: eu-art50, ca-sb942, cn-gb45438 or iptc.")
@click.option("--trust-list", metavar="PEM", multiple=True, type=_PATH, help="Roots of claim signers to trust (may be repeated).")
@click.option("--tsa-trust-list", metavar="PEM", multiple=True, type=_PATH, help="Roots of time-stamping authorities to trust.")
@click.option("--cawg-trust-list", metavar="PEM", multiple=True, type=_PATH, help="Roots of CAWG identities to trust.")
@click.option("-o", "--output", metavar="FILE", type=_PATH, help="Write a line a file: .jsonl, .csv or .parquet.")
@click.option("--jobs", metavar="N", type=click.IntRange(1, 256), help="Processes. [default: one a core]")
@click.option("--signed-report", metavar="FILE", type=_PATH, help="Write hashes, time and verdicts, signed by this machine's identity.")
@click.option("--check-report", metavar="FILE", type=_PATH, help="Check such a report, and that it speaks of each FILE.")
@json_option
def command(files: tuple[Path, ...], as_json: bool, **options: Any) -> int:
    """Say where each FILE came from, as far as it can be proven.

    Reads its C2PA credentials, watermark, metadata and registry entry, and gives one verdict. A folder stands for the pictures
    below it, `-` for standard input. Nothing is fetched from a network.

    Exit code: 0 traced or intact, 1 nothing found or only claims, 6 tampered, corrupt or in conflict, 2 a file could not be read.
    """
    if options["check_report"] is not None:
        return _check(options["check_report"], files, _trust(options), as_json)
    if options["fast"] and options["deep"]:
        raise click.UsageError("--fast and --deep contradict each other")
    if not files:
        raise InputError("there is nothing to verify", "name files or folders, or - for standard input")
    return _verify(files, options, as_json)


def _verify(files: tuple[Path, ...], options: dict[str, Any], as_json: bool) -> int:
    from platemark.provenance.verify.batch import Settings, expand, is_deep
    from platemark.provenance.verify.output import line_writer
    from platemark.provenance.verify.profiles import load

    if options["profile"] is not None:
        load(options["profile"])  # an unknown name ends the command, not each file
    named = expand(files)
    deep = is_deep(len(named), fast=options["fast"], deep=options["deep"])
    settings = Settings(deep=deep, trust=_trust(options), profile=options["profile"])
    signed = _signed_lines(options["signed_report"])
    worst, counts = 0, Counter[str]()
    with (
        warnings.catch_warnings(action="ignore"),  # what decoders say of damaged files is in the verdict
        line_writer(options["output"]) if options["output"] is not None else nullcontext() as writer,
        progress("verifying") as update,
    ):
        for number, line in enumerate(_lines(named, settings, options["jobs"])):
            worst = max(worst, line.code)
            counts[line.values.get("verdict", "error")] += 1
            if writer is None:
                emit(line.values) if as_json else _print(line.values)
            else:
                writer.write(line.values)
            if signed is not None:
                signed.append(line.values)
            update(number + 1, len(named), "")
    if writer is not None:
        said = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
        emit({"files": counts.total(), "verdicts": dict(counts)}) if as_json else say(f"{counts.total()} files: {said}")
    if signed is not None:
        _write_signed(options["signed_report"], signed)
    return worst


def _lines(files: list[Path], settings: Settings, jobs: int | None) -> Iterator[Line]:
    from platemark.provenance.verify.batch import verify_all, verify_one

    if _STDIN not in files:
        yield from verify_all(files, settings, jobs=jobs)
        return
    for file in files:
        yield verify_one(_stdin() if file == _STDIN else file, str(file), settings)


def _stdin() -> bytes:
    from platemark.imaging import MAX_BYTES

    return sys.stdin.buffer.read(MAX_BYTES + 1)  # `verify` refuses what is over the bound


def _trust(options: dict[str, Any]) -> TrustLists:
    from platemark.provenance.trust import trust_from

    return trust_from(options["trust_list"], options["tsa_trust_list"], options["cawg_trust_list"])


def _signed_lines(path: Path | None) -> list[dict[str, Any]] | None:
    """An empty list where a signed report is wanted, once there is an identity to sign it with and a place for it: before the work."""
    if path is None:
        return None
    from platemark.provenance.files import require_writable
    from platemark.provenance.verify.signed import signer

    require_writable(path)
    signer()
    return []


def _write_signed(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    from platemark.provenance.files import write_atomically
    from platemark.provenance.verify.signed import sign_report

    write_atomically(path, sign_report(lines))


def _check(path: Path, files: tuple[Path, ...], trust: TrustLists, as_json: bool) -> int:
    """0: the signature is valid and each file is in the report; 6: otherwise."""
    import hashlib

    from platemark.imaging import read_bytes
    from platemark.provenance.verify.signed import check_report

    report = check_report(path, trust=trust)
    hashes = {entry.get("sha256"): entry for entry in report.files}
    found = {str(file): hashes.get(hashlib.sha256(_stdin() if file == _STDIN else read_bytes(file)).hexdigest()) for file in files}
    good = report.signature == "valid" and None not in found.values()
    if as_json:
        emit({"report": report.model_dump(mode="json"), "contents": {file: entry is not None for file, entry in found.items()}})
        return 0 if good else 6
    _tell(f"{path}: signature {report.signature}, by '{report.signer}' ({report.trust}), {report.time}, {report.verifier}")
    for one in report.files if not files else ():
        _tell(f"  {one.get('file')}: {one.get('verdict', 'error')}  (sha256 {one.get('sha256', '-')})")
    for file, entry in found.items():
        _tell(f"  {file}: {entry.get('verdict')}" if entry else f"  {file}: not in this report")
    return 0 if good else 6


def _tell(text: str, *, err: bool = False) -> None:
    """One line. Names and texts in files are strangers': what could steer a terminal is escaped."""
    say("".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text), err=err)


def _print(line: dict[str, Any]) -> None:
    if "error" in line:
        _tell(f"error: {line['file']}: {line['error']['message']} ({line['error']['remedy']})", err=True)
        return
    _tell(f"{line['file']}: {line['verdict']}")
    for sentence in line["summary"]:
        _tell(f"  {sentence}")
    _tell("  axes       " + ", ".join(f"{name} {value}" for name, value in line["axes"].items()))
    for name, layer in line["layers"].items():
        facts = ", ".join(
            f"{key} {_short(value)}" for key, value in layer.items() if key != "state" and isinstance(value, str | int | float)
        )
        _tell(f"  {name:10} {layer.get('state', '')}" + (f"  ({facts})" if facts else ""))
    if "profile" in line:
        _print_profile(line["profile"])


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _print_profile(profile: dict[str, Any]) -> None:
    _tell(f"  {profile['title']}")
    for row in profile["rows"]:
        level = "" if row["level"] == "required" else f" ({row['level']})"
        told = f": {row['value']}" if "value" in row else ""
        why = f" ({row['why']})" if "why" in row else ""
        _tell(f"    {row['status']:11} {row['field']}{level}  [{row['clause']}]{told}{why}")
    _tell(f"    {profile['notice']}")
