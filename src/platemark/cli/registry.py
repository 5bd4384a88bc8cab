"""`platemark registry`: what was released, and where it is recorded."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from platemark.cli.output import emit, json_option, say

moment = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"])
url_option = click.option("--registry", "url", help="Another registry: postgresql://USER@HOST/DATABASE or an SQLite file.")


@click.group("registry")
def command() -> None:
    """Look into, export, prune and serve the registry of released pictures.

    It is an SQLite file in the state folder, unless $PLATEMARK_REGISTRY or `registry use` names another database.
    """


@command.command("show")
@url_option
@json_option
def show(url: str | None, as_json: bool) -> int:
    """Show where the registry is, how much it holds and its schema version. Makes nothing."""
    from platemark.provenance.registry.report import describe

    found = describe(_home(), url)
    return _said(found, [f"{name.replace('_', ' '):9} {value}" for name, value in found.items() if value is not None], as_json)


@command.command("use")
@click.argument("url", required=False)
@click.option("--default", is_flag=True, help="Go back to the SQLite file in the state folder.")
@json_option
def use(url: str | None, default: bool, as_json: bool) -> int:
    """Use the database at URL from now on (`-` reads the URL from stdin, so that a password stays out of the process list).

    The URL is written to registry.toml in the state folder, for its owner alone. Records are not moved.
    """
    from platemark.provenance.registry.report import use

    if default == (url is not None):
        raise click.UsageError("give either a URL or --default")
    where = use(_home(), sys.stdin.readline().strip() if url == "-" else url)
    return _said({"registry": where}, [f"the registry is {where}"], as_json)


@command.command("search")
@click.option("--image", type=click.Path(path_type=Path), help="A picture: finds the released ones that look the same.")
@click.option("--distance", type=click.IntRange(0, 256), default=31, show_default=True, help="Bits of 256 that may differ, with --image.")
@click.option("--content-id", type=int, help="The number in the watermark.")
@click.option("--issuer", type=int, help="The issuer's number.")
@click.option("--sha256", help="Of the released file.")
@click.option("--manifest", help="The label of a C2PA manifest (urn:c2pa:...).")
@click.option("--model", help="The sha256 of a model's weights.")
@click.option("--since", type=moment, help="Released at this time (UTC) or later.")
@click.option("--until", type=moment, help="Released before this time (UTC).")
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=20, show_default=True, help="At most so many.")
@url_option
@json_option
def search(image: Path | None, distance: int, limit: int, url: str | None, as_json: bool, **wanted: Any) -> int:
    """Find released pictures: by looks, id, hash, model or time.

    Exit code: 0 found, 1 nothing found.
    """
    from platemark.provenance.registry.report import find, find_alike

    with _open(url) as registry:
        criteria = _filter(**wanted)
        found: list[tuple[int | None, Any]]
        if image is None:
            found = [(None, entry) for entry in find(registry, criteria, limit)]
        else:
            found = [*find_alike(registry, image, criteria, distance, limit)]
    for bits, entry in found:
        if as_json:
            emit(entry.as_dict() | ({} if bits is None else {"distance": bits}))
        else:
            model = entry.record.facts.model_name if entry.record else f"pruned {entry.pruned}"
            near = "" if bits is None else f"  {bits} of 256 bits differ"
            what = f"{entry.created}  {model}  {entry.decision}  sha256 {entry.image_sha256[:16]}"
            say(f"{entry.content_id}  issuer {entry.issuer}  {what}{near}")
    if not found and not as_json:
        say("nothing found", err=True)
    return 0 if found else 1


@command.command("export")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--format", "file_format", type=click.Choice(["jsonl", "csv", "parquet"]), help="Default: by FILE's suffix, else jsonl.")
@click.option("--manifests", is_flag=True, help="With the C2PA manifests (base64; in Parquet as bytes).")
@click.option("--issuer", type=int, help="Of this issuer only.")
@click.option("--since", type=moment, help="Released at this time (UTC) or later.")
@click.option("--until", type=moment, help="Released before this time (UTC).")
@url_option
@json_option
def export(file: Path, file_format: str | None, manifests: bool, url: str | None, as_json: bool, **wanted: Any) -> int:
    """Write the records to FILE, one a line or row (`-`: stdout).

    Records hold what the policy let them hold: a prompt only where it is written in clear.
    """
    from platemark.provenance.registry.export import export

    with _open(url) as registry:
        count = export(registry.entries(_filter(**wanted)), file, file_format, manifests=manifests)
    if str(file) == "-":
        return 0
    return _said({"file": str(file), "records": count}, [f"{count} records written to {file}"], as_json)


@command.command("prune")
@click.option("--older-than", "days", type=click.FloatRange(min=0), required=True, metavar="DAYS", help="Released more than DAYS ago.")
@click.option(
    "--keep",
    type=click.Choice(["hashes", "record"]),
    default="hashes",
    show_default=True,
    help="What is kept: ids and hashes, or the record too (then only the manifest goes).",
)
@click.option("--issuer", type=int, help="Of this issuer only.")
@click.option("--dry-run", is_flag=True, help="Only say what would be pruned.")
@click.option("--compact", is_flag=True, help="Give the freed space back to the file system.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@url_option
@json_option
def prune(days: float, keep: Any, issuer: int | None, dry_run: bool, compact: bool, yes: bool, url: str | None, as_json: bool) -> int:
    """Empty old records. Their ids and hashes stay: no id is given again, and copies are still recognised.

    What was pruned cannot be restored, neither from the registry nor from a stripped file.
    """
    from platemark.provenance.registry.report import prune

    if as_json and not (yes or dry_run):
        raise click.UsageError("--json cannot ask: give --yes or --dry-run too")
    with _open(url) as registry:
        if not (yes or dry_run):
            planned = prune(registry, days, keep=keep, issuer=issuer, dry_run=True)
            click.confirm(f"Empty {planned.entries} records ({planned.freed_bytes} bytes of manifests) for good?", abort=True, err=True)
        done = prune(registry, days, keep=keep, issuer=issuer, dry_run=dry_run, compact=compact)
    said = f"{done.entries} records {'would be ' if dry_run else ''}pruned, {done.freed_bytes} bytes of manifests"
    return _said({"pruned": done.entries, "freed_bytes": done.freed_bytes, "dry_run": dry_run}, [said], as_json)


@command.command("restore")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where the restored PNG goes.")
@click.option("--sidecar", type=click.Path(path_type=Path), help="Also (or only) write the C2PA manifest to this file.")
@click.option("--content-id", type=int, help="The record, where it is known; with --issuer.")
@click.option("--issuer", type=int, help="The issuer's number.")
@url_option
@json_option
def restore(
    file: Path, output: Path | None, sidecar: Path | None, content_id: int | None, issuer: int | None, url: str | None, as_json: bool
) -> int:
    """Put the credentials back into a PNG that was stripped of them.

    The result is byte for byte the released file, or nothing is written. Copies that were encoded anew cannot be restored; their manifest
    can be had with --sidecar.

    Exit code: 0 restored (or nothing was missing), 1 not.
    """
    from platemark.provenance.restore import restore_file

    if output is None and sidecar is None:
        raise click.UsageError("give -o, --sidecar or both")
    if (content_id is None) != (issuer is None):
        raise click.UsageError("--content-id and --issuer belong together")
    key = None if content_id is None or issuer is None else (content_id, issuer)
    with _open(url) as registry:
        found = restore_file(file, output, sidecar, home=_home(), registry=registry, key=key)
    lines = [f"{found.state}: {found.detail}"]
    lines += [f"content id {found.content_id}, issuer {found.issuer}, by its {found.found_by}"] if found.content_id is not None else []
    written = [str(path) for path in found.written]
    lines += [f"wrote {path}" for path in written]
    _said(found.as_dict() | {"written": written}, lines, as_json)
    wanted = [path for path in (output, sidecar) if path is not None]
    return 0 if len(written) == len(wanted) else 1


@command.command("migrate")
@url_option
@json_option
def migrate(url: str | None, as_json: bool) -> int:
    """Bring the registry's schema up to date (also done whenever it is opened)."""
    from platemark.provenance.registry.report import migrate

    before, after = migrate(_home(), url)
    return _said({"from": before, "to": after}, [f"schema {before or 'none'} -> {after}"], as_json)


@command.command("skip-ids")
@url_option
@json_option
def skip_ids(url: str | None, as_json: bool) -> int:
    """After restoring the registry from an older backup: leave out the ids that may have been given since.

    Run it before the next picture is made.
    """
    with _open(url) as registry:
        jumps = registry.skip_ids()
    lines = [f"issuer {issuer}: {count} ids are left out" for issuer, count in jumps.items()]
    return _said({"skipped": {str(issuer): count for issuer, count in jumps.items()}}, lines or ["no ids were ever given"], as_json)


@command.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8737, show_default=True, help="0 takes a free one.")
@click.option("--rate", type=click.IntRange(1), default=120, show_default=True, help="Requests a minute and client; pictures count 10.")
@click.option("--max-megabytes", type=click.IntRange(1, 512), default=32, show_default=True, help="Size of a picture.")
@click.option("--proxy", "proxies", multiple=True, metavar="ADDRESS", help="A proxy whose X-Forwarded-For names the client; repeatable.")
@url_option
def serve(host: str, port: int, rate: int, max_megabytes: int, proxies: tuple[str, ...], url: str | None) -> int:
    """Serve the C2PA Soft Binding Resolution API: who holds a watermark or a copy finds the manifest.

    Public and read-only; gives out manifests and nothing else of the registry.
    """
    from platemark.server.run import serve

    with _open(url) as registry:
        serve(
            _home(),
            registry,
            address=(host, port),
            per_minute=rate,
            max_bytes=max_megabytes * 2**20,
            proxies=proxies,
            ready=lambda where: say(f"serving {registry.where} on {where}", err=True),
        )
    return 0


def _home() -> Path:
    from platemark.provenance.home import home

    return home()


def _open(url: str | None) -> Any:
    from platemark.provenance.registry import Registry

    return Registry.open(_home(), url, create=False)


def _filter(since: datetime | None, until: datetime | None, issuer: int | None, **wanted: Any) -> Any:
    from platemark.provenance.registry.report import make_filter

    return make_filter(since=since, until=until, issuer=issuer, **wanted)


def _said(found: dict[str, Any], lines: list[str], as_json: bool) -> int:
    if as_json:
        emit(found)
    else:
        for line in lines:
            say(line)
    return 0
