"""Where the lines of a batch go: JSONL, CSV or Parquet, whole or not at all. Knows nothing of verifying.

CSV and Parquet have one flat row a file. In CSV, a text that a spreadsheet would take for a formula gets an apostrophe in front.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO

from platemark.errors import InputError, MissingExtra
from platemark.provenance.files import sync_folder

FORMATS = (".jsonl", ".csv", ".parquet")
COLUMNS = (
    "file", "verdict", "integrity", "trust", "recovery", "content_id", "issuer", "sha256", "c2pa", "signer", "claim_generator",
    "digital_source_type", "signed_at", "watermark", "p_value", "metadata", "claims", "registry", "created", "distance", "summary",
    "error", "message", "profile", "missing", "wrong", "not_checked",
)  # fmt: skip
_INTEGERS, _FLOATS = ("content_id", "issuer", "distance"), ("p_value",)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_ROW_GROUP = 1000


class LineWriter(Protocol):
    def write(self, line: Mapping[str, Any]) -> None: ...


@contextmanager
def line_writer(path: Path) -> Iterator[LineWriter]:
    """A writer for a file by its suffix; the file appears when the block ends well, and not otherwise.

    Raises `InputError` (another suffix, not writable), `MissingExtra` (Parquet without pyarrow).
    """
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"cannot write {path.name[-40:]!r}", f"name a file that ends in {', '.join(FORMATS)}")
    temporary = path.with_name(f".platemark-{secrets.token_hex(8)}.tmp")
    try:
        with _opened(path.suffix.lower(), temporary) as writer:
            yield writer
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or "not a usable path"
        raise InputError(f"cannot write {str(path)[-120:]!r}: {reason}", "write elsewhere, or make room") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def flat(line: Mapping[str, Any]) -> dict[str, Any]:
    """One row with the keys of `COLUMNS`; None where a line says nothing."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row["file"] = line["file"]
    if "error" in line:
        return row | {"error": line["error"]["code"], "message": line["error"]["message"]}
    layers = line["layers"]
    c2pa, watermark, metadata, registry = (layers[name] for name in ("c2pa", "watermark", "metadata", "registry"))
    row |= {key: line[key] for key in ("verdict", "content_id", "issuer", "sha256")} | line["axes"]
    row |= {name: layers[name]["state"] for name in ("c2pa", "watermark", "metadata", "registry")}
    row |= {key: c2pa.get(key) for key in ("signer", "claim_generator", "digital_source_type", "signed_at")}
    row |= {"p_value": watermark.get("p_value"), "created": registry.get("created"), "distance": registry.get("distance")}
    row["claims"] = "; ".join(claim["source"] for claim in metadata.get("claims", ())) or None
    row["summary"] = " ".join(line["summary"])
    return row | (_profile_row(line["profile"]) if "profile" in line else {})


def _profile_row(profile: Mapping[str, Any]) -> dict[str, str]:
    """The profile's name, and the ids of its rows that are not present."""
    row = {"profile": str(profile["name"])}
    for column, status in (("missing", "missing"), ("wrong", "wrong"), ("not_checked", "not-checked")):
        row[column] = "; ".join(str(one["id"]) for one in profile["rows"] if one["status"] == status)
    return row


@contextmanager
def _opened(suffix: str, path: Path) -> Iterator[LineWriter]:
    if suffix == ".parquet":
        with _parquet(path) as writer:
            yield writer
        return
    with path.open("x", encoding="utf-8", newline="", errors="backslashreplace") as handle:
        yield _JsonLines(handle) if suffix == ".jsonl" else _Csv(handle)


class _JsonLines:
    def __init__(self, handle: TextIO) -> None:
        self._handle = handle

    def write(self, line: Mapping[str, Any]) -> None:
        self._handle.write(json.dumps(line, separators=(",", ":")) + "\n")


class _Csv:
    def __init__(self, handle: TextIO) -> None:
        self._writer = csv.DictWriter(handle, COLUMNS)
        self._writer.writeheader()

    def write(self, line: Mapping[str, Any]) -> None:
        self._writer.writerow({key: _harmless(value) for key, value in flat(line).items()})


class _Parquet:
    def __init__(self, writer: Any, schema: Any) -> None:
        self._writer, self._schema, self._rows = writer, schema, list[dict[str, Any]]()

    def write(self, line: Mapping[str, Any]) -> None:
        self._rows.append({key: _utf8(value) for key, value in flat(line).items()})
        if len(self._rows) >= _ROW_GROUP:
            self.flush()

    def flush(self) -> None:
        import pyarrow as pa

        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []


@contextmanager
def _parquet(path: Path) -> Iterator[LineWriter]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtra("writing Parquet", "parquet") from error
    kinds = {key: pa.int64() if key in _INTEGERS else pa.float64() if key in _FLOATS else pa.string() for key in COLUMNS}
    schema = pa.schema(kinds.items())
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        out = _Parquet(writer, schema)
        yield out
        out.flush()


def _harmless(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = " ".join(value.split("\0"))
    return "'" + text if text.startswith(_FORMULA) else text


def _utf8(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
