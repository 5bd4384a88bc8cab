"""The audit log's files: records as JSON lines, chained by hash, in numbered segments, with a head file that says where the chain ends.

    audit-000001.jsonl   {"seq": 1, "prev": "0000…", …}       prev: sha256 of the line before it, without its newline
    audit-000002.jsonl   …                                    the chain runs on across segments
    head.json            {"first_segment", "first_prev", "first_seq", "segment", "seq", "bytes", "last"}

The head is replaced whole after each record, so a log that was cut short, at the end too, does not fit its head. What a kill leaves is
told from that: a whole record that the head does not know yet continues the chain and is adopted; a torn line is kept, named by a
`sealed` record after it, and the chain goes on. Whoever can rewrite all lines and the head together leaves no trace here: keep a copy of
the head's `last` elsewhere. Knows nothing of what the records say.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HEAD = "head.json"
START = "0" * 64
TORN = "sealed"  # kind of the record that names a torn line before it


@dataclass(frozen=True)
class Head:
    """Where the chain begins and ends. `seq`: number of the last record; `bytes`: length of the last segment; `last`: its line's hash."""

    first_segment: int = 1
    first_prev: str = START
    first_seq: int = 1
    segment: int = 1
    seq: int = 0
    bytes: int = 0
    last: str = START


@dataclass(frozen=True)
class Problem:
    """A place where the log is not what was written. `line` counts from 1; None where the whole file is meant."""

    file: str
    line: int | None
    what: str

    def __str__(self) -> str:
        return f"{self.file}{'' if self.line is None else f', line {self.line}'}: {self.what}"


@dataclass(frozen=True)
class Line:
    """One line: its place, its bytes without the newline, whether the newline was there, and the record, where it is one."""

    segment: int
    number: int
    data: bytes
    whole: bool
    record: dict[str, Any] | None

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def segment_path(folder: Path, number: int) -> Path:
    return folder / f"audit-{number:06d}.jsonl"


def segments(folder: Path) -> list[int]:
    """The numbers of the segments that are there, rising."""
    stems = (path.stem.removeprefix("audit-") for path in folder.glob("audit-??????.jsonl"))
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit())


def read_head(folder: Path) -> Head | None:
    """The head; None where there is none. Raises `ValueError` (damaged) and `OSError`."""
    try:
        content = json.loads((folder / HEAD).read_bytes())
    except FileNotFoundError:
        return None
    shape = {name: type(value) for name, value in asdict(Head()).items()}
    if not isinstance(content, dict) or {name: type(value) for name, value in content.items()} != shape:
        raise ValueError("the head file is damaged")
    return Head(**content)


def write_head(folder: Path, head: Head) -> None:
    """Replaces the head whole. Raises `OSError`. The caller holds the log's lock."""
    temporary = folder / ".head.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0), 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(json.dumps(asdict(head)).encode())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / HEAD)
    if hasattr(os, "O_DIRECTORY"):  # the new name, and that of a new segment, on the disk too
        place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(place)
        finally:
            os.close(place)


def append_bytes(path: Path, data: bytes) -> None:
    """Adds to a segment and sees it to the disk. Raises `OSError`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0), 0o600)
    with os.fdopen(descriptor, "ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def lines(folder: Path, segment: int, start: int = 0) -> Iterator[Line]:
    """The lines of a segment from a byte offset on (the numbers count from there). Raises `OSError`."""
    with segment_path(folder, segment).open("rb") as file:
        file.seek(start)
        for number, raw in enumerate(file, 1):
            data = raw.removesuffix(b"\n")
            yield Line(segment, number, data, raw.endswith(b"\n"), _record(data))


def encode(record: dict[str, Any]) -> bytes:
    """One line without its newline: JSON, ASCII, no spaces."""
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode()


def _record(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


class Walk:
    """Follows the chain line by line; `problem` is the first place where it breaks."""

    def __init__(self, head: Head) -> None:
        self.prev, self.seq = head.first_prev, head.first_seq - 1
        self.torn: list[Line] = []
        self.last: Line | None = None
        self.sealed = 0
        self.problem: Problem | None = None

    def step(self, line: Line) -> None:
        if self.problem:
            return
        record, self.last = line.record, line
        if record is None or not line.whole:
            self.torn.append(line)  # a later `sealed` record must name it
            return
        if self.torn and not (record.get("kind") == TORN and record.get("torn_sha256") == [torn.sha256 for torn in self.torn]):
            self.problem = _at(self.torn[0], "not a record: damaged")
        elif record.get("prev") != self.prev:
            self.problem = _at(line, "does not follow the line before it: edited, removed or inserted here or just before")
        elif record.get("seq") != self.seq + 1:
            self.problem = _at(line, f"number {record.get('seq')} where {self.seq + 1} should be")
        else:
            self.sealed += len(self.torn)
            self.torn, self.prev, self.seq = [], line.sha256, self.seq + 1


def _at(line: Line, what: str) -> Problem:
    return Problem(segment_path(Path(), line.segment).name, line.number, what)
