"""Writes registry entries as JSON Lines, CSV or Parquet: a stream into a file (whole or not at all), or onto an open binary stream.

One entry a line or row. JSON Lines carry the whole record; CSV and Parquet its flat fields. Content ids and seeds are numbers beyond what
spreadsheets keep, so seeds are text everywhere. Knows nothing of databases.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal

from platemark.errors import InputError, MissingExtra
from platemark.provenance.files import DEFAULT_MODE, remove_stale, sync_folder
from platemark.provenance.registry.entry import Entry

Format = Literal["jsonl", "csv", "parquet"]
FORMATS: tuple[Format, ...] = ("jsonl", "csv", "parquet")
_COLUMNS = (
    "content_id", "issuer", "created", "pruned", "image_sha256", "perceptual_hash", "manifest_label", "model_name", "model_sha256",
    "bundle_sha256", "seed", "request_hmac", "decision", "policy_id", "policy_sha256", "watermark", "watermark_key_id", "identity",
    "development_identity", "generator", "manifest_bytes",
)  # fmt: skip
_OF_RECORD = ("watermark", "watermark_key_id", "identity", "development_identity", "generator")
_INTEGERS = {"content_id", "issuer", "manifest_bytes"}
_ROWS = 2000  # of one Parquet row group


def write(entries: Iterable[Entry], out: BinaryIO, file_format: Format, *, manifests: bool = False) -> int:
    """Writes the entries onto `out` and returns their number; with `manifests` also the C2PA stores (base64; raw bytes in Parquet).

    Raises `MissingExtra` (Parquet without pyarrow).
    """
    writer = {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet}[file_format]
    return writer(entries, out, manifests)


def write_file(entries: Iterable[Entry], path: Path, file_format: Format, *, manifests: bool = False) -> int:
    """As `write`, into a file that appears once it is whole. Raises `InputError` where it cannot be written."""
    try:
        with _atomic(path) as out:
            return write(entries, out, file_format, manifests=manifests)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a usable path"
        remedy = "write elsewhere, or make room; nothing was left half written"
        raise InputError(f"cannot write {str(path)[-120:]!r}: {reason}", remedy) from error


def export(entries: Iterable[Entry], target: Path, file_format: str | None, *, manifests: bool = False) -> int:
    """Writes to `target` (`-`: stdout) in the named format, else in the one of its suffix, else as JSON Lines; returns the number.

    Raises as `write_file`, and `InputError` for a format that is none of the three.
    """
    chosen = file_format or next((name for name in FORMATS if target.suffix.lower() == f".{name}"), "jsonl")
    if chosen not in FORMATS:
        raise InputError(f"cannot export as {chosen[:20]!r}", f"use {', '.join(FORMATS)}")
    if str(target) == "-":
        count = write(entries, sys.stdout.buffer, chosen, manifests=manifests)
        sys.stdout.buffer.flush()
        return count
    return write_file(entries, target, chosen, manifests=manifests)


def flat(entry: Entry) -> dict[str, Any]:
    """The fields of one row; None where the entry was pruned of them."""
    facts = entry.record.facts if entry.record else None
    row: dict[str, Any] = dict.fromkeys(_COLUMNS)
    row |= {name: getattr(entry, name) for name in _COLUMNS if hasattr(entry, name)}
    row["manifest_bytes"] = len(entry.manifest)
    if entry.record is not None and facts is not None:
        row |= {name: getattr(entry.record, name) for name in _OF_RECORD}
        row |= {name: getattr(facts, name) for name in ("model_name", "bundle_sha256", "request_hmac")}
        row |= {"seed": str(facts.seed), **{name: facts.decision.get(name) for name in ("policy_id", "policy_sha256")}}
    return row


def _jsonl(entries: Iterable[Entry], out: BinaryIO, manifests: bool) -> int:
    count = 0
    for entry in entries:
        line = entry.as_dict() | ({"manifest": base64.b64encode(entry.manifest).decode()} if manifests else {})
        out.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        count += 1
    return count


def _csv(entries: Iterable[Entry], out: BinaryIO, manifests: bool) -> int:
    text = io.TextIOWrapper(out, encoding="utf-8", newline="", write_through=True)
    table = csv.DictWriter(text, [*_COLUMNS, *(["manifest"] if manifests else [])])
    table.writeheader()
    count = 0
    for entry in entries:
        table.writerow(flat(entry) | ({"manifest": base64.b64encode(entry.manifest).decode()} if manifests else {}))
        count += 1
    text.detach()
    return count


def _parquet(entries: Iterable[Entry], out: BinaryIO, manifests: bool) -> int:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("a Parquet file", "parquet") from error
    kinds = {name: pa.int64() if name in _INTEGERS else pa.bool_() if name == "development_identity" else pa.string() for name in _COLUMNS}
    schema = pa.schema([*kinds.items(), *([("manifest", pa.binary())] if manifests else [])])
    count = 0
    with parquet.ParquetWriter(out, schema, compression="zstd") as table:
        for batch in _batches(entries):
            rows = [flat(entry) | ({"manifest": entry.manifest} if manifests else {}) for entry in batch]
            table.write_table(pa.Table.from_pylist(rows, schema=schema))
            count += len(rows)
    return count


def _batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    batch: list[Entry] = []
    for entry in entries:
        batch.append(entry)
        if len(batch) == _ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


@contextmanager
def _atomic(path: Path) -> Iterator[BinaryIO]:
    """A stream that becomes `path` when the block ends well, and nothing otherwise."""
    remove_stale(path.parent)
    temporary = path.with_name(f".platemark-{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, DEFAULT_MODE)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    sync_folder(path.parent)
