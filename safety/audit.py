"""The audit log: one record for each decision, written before anything is released.

`$PLATEMARK_HOME/audit/` holds the chained segments and the head (platemark.safety.audit_chain says how they stand together). A record has
the request, the policy and its hash, the stage, what every detector said, what was decided by which rule, and hashes of the picture;
never the prompt itself, unless the policy says so. Several processes may write at once. A log that cannot be written, or is no longer
what was written, refuses: the caller releases nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from platemark.errors import InputError, SafetyUnavailable
from platemark.safety.audit_chain import (
    HEAD,
    START,
    TORN,
    Head,
    Line,
    Problem,
    Walk,
    append_bytes,
    encode,
    lines,
    read_head,
    segment_path,
    segments,
    write_head,
)
from platemark.safety.policy_model import AuditRules

FOLDER = "audit"
_LOCK_SECONDS = 60.0
_REMEDY = "nothing was released; make the state folder writable"
_BROKEN = "nothing was released; run `platemark safety audit verify`, keep the folder as evidence and move it away to begin a new log"


@dataclass(frozen=True)
class AuditReport:
    """What `verify` found. `records` in the log from `first_seq` on; `sealed`: torn lines that a later record names; `last`: the head's
    hash, to be kept elsewhere; `problem`: the first place where the log is not what was written."""

    records: int
    first_seq: int
    segments: int
    sealed: int
    last: str
    problem: Problem | None

    @property
    def intact(self) -> bool:
        return self.problem is None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self) | {"intact": self.intact}


class AuditLog:
    """The log of a state folder. Safe to share between threads and processes."""

    def __init__(self, home: Path, rules: AuditRules) -> None:
        self.folder, self.rules = home / FOLDER, rules

    def write(self, record: dict[str, Any]) -> None:
        """Adds one record (plain JSON types) and sees it to the disk. Does nothing where the policy keeps no log.

        `seq`, `time` and `prev` are filled in. Raises `SafetyUnavailable` where it cannot be written or the log is not what was written.
        """
        if not self.rules.enabled:
            return
        with self._locked():
            head = self._tail(self._head())
            if head.bytes >= self.rules.rotate_mib << 20:
                head = self._rotated(head)
            self._append(head, record)

    def verify(self) -> AuditReport:
        """Reads the whole log and follows its chain. Raises `SafetyUnavailable` where it cannot be read."""
        if not self.folder.is_dir():
            return AuditReport(0, 1, 0, 0, START, None)
        with self._locked():
            return self._verified()

    def search(self, matches: Callable[[dict[str, Any]], bool] = lambda record: True) -> Iterator[dict[str, Any]]:
        """The records that `matches`, oldest first. What is damaged is passed over: `verify` tells. Raises `SafetyUnavailable`."""
        for number in segments(self.folder) if self.folder.is_dir() else ():
            with _refusing(_REMEDY):
                found = [line.record for line in lines(self.folder, number) if line.record is not None]
            yield from (record for record in found if record.get("kind") != TORN and matches(record))

    def _head(self) -> Head:
        head = read_head(self.folder)
        if head is None and segments(self.folder):
            raise SafetyUnavailable("the audit log has lost its head file", _BROKEN)
        if head is None:
            head = Head()
            write_head(self.folder, head)  # before the first record, so that segments without a head are never a kill's doing
        return head

    def _tail(self, head: Head) -> Head:
        """The head after what a killed writer left: a whole record is adopted, a torn one sealed. A log that was cut or changed refuses."""
        path = segment_path(self.folder, head.segment)
        size = path.stat().st_size if path.exists() else 0
        if size < head.bytes or any(number > head.segment + 1 for number in segments(self.folder)):
            raise SafetyUnavailable("the audit log was cut short", _BROKEN)
        if head.bytes and _last_line(path, head.bytes) != head.last:
            raise SafetyUnavailable("the audit log's last record was changed", _BROKEN)
        following = segment_path(self.folder, head.segment + 1)
        if following.exists():  # a writer was killed between the first record of a segment and its head
            if size > head.bytes:
                raise SafetyUnavailable("the audit log was changed after its last record", _BROKEN)
            head, size = replace(head, segment=head.segment + 1, bytes=0), following.stat().st_size
        return self._adopted(head, size) if size > head.bytes else head

    def _adopted(self, head: Head, size: int) -> Head:
        walk = Walk(replace(head, first_prev=head.last, first_seq=head.seq + 1))
        for line in lines(self.folder, head.segment, head.bytes):
            walk.step(line)
        if walk.problem:
            raise SafetyUnavailable("the audit log was changed after its last record", _BROKEN)
        head = replace(head, seq=walk.seq, last=walk.prev, bytes=size)
        return self._sealed(head, walk.torn) if walk.torn else head

    def _sealed(self, head: Head, torn: list[Line]) -> Head:
        if not torn[-1].whole:
            append_bytes(segment_path(self.folder, head.segment), b"\n")
            head = replace(head, bytes=head.bytes + 1)
        return self._append(head, {"kind": TORN, "torn_sha256": [line.sha256 for line in torn]})

    def _append(self, head: Head, record: dict[str, Any]) -> Head:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = encode({"seq": head.seq + 1, "time": now, **record, "prev": head.last})
        append_bytes(segment_path(self.folder, head.segment), line + b"\n")
        after = replace(head, seq=head.seq + 1, bytes=head.bytes + len(line) + 1, last=Line(head.segment, 0, line, True, None).sha256)
        write_head(self.folder, after)
        return after

    def _rotated(self, head: Head) -> Head:
        """The head of a new segment; segments whose youngest record is older than the policy keeps are removed, oldest first."""
        oldest_kept = (datetime.now(UTC) - timedelta(days=self.rules.retain_days)).isoformat()
        head = replace(head, segment=head.segment + 1, bytes=0)
        for number in segments(self.folder):
            last = list(lines(self.folder, number))[-1:]
            if number >= head.segment - 1 or not last or last[0].record is None or str(last[0].record.get("time")) >= oldest_kept:
                break
            head = replace(head, first_segment=number + 1, first_prev=last[0].sha256, first_seq=int(last[0].record["seq"]) + 1)
            still = segment_path(self.folder, head.segment - 1).stat().st_size
            write_head(self.folder, replace(head, segment=head.segment - 1, bytes=still))
            segment_path(self.folder, number).unlink()
        return head

    def _verified(self) -> AuditReport:
        there = segments(self.folder)
        try:
            head = read_head(self.folder)
        except ValueError as error:
            return AuditReport(0, 1, len(there), 0, START, Problem(HEAD, None, str(error)))
        if head is None:
            missing = Problem(HEAD, None, "the head file is missing") if there else None
            return AuditReport(0, 1, len(there), 0, START, missing)
        walk = Walk(head)
        wanted = range(head.first_segment, max([head.segment, *there]) + 1) if there or head.seq else ()
        for number in wanted:
            if number not in there:
                walk.problem = walk.problem or Problem(segment_path(self.folder, number).name, None, "the file is missing")
                break
            for line in lines(self.folder, number):
                walk.step(line)
        problem = walk.problem or _unfinished(walk, head, self.folder)
        return AuditReport(walk.seq - head.first_seq + 1, head.first_seq, len(there), walk.sealed, head.last, problem)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        import filelock

        with _refusing(_REMEDY):
            for missing in reversed([at for at in (self.folder, *self.folder.parents) if not at.exists()]):
                missing.mkdir(exist_ok=True, mode=0o700)
        lock = filelock.FileLock(self.folder / ".lock", timeout=_LOCK_SECONDS, mode=0o600)
        with _refusing(_REMEDY), lock:
            yield


def since(text: str) -> datetime:
    """A date or time (RFC 3339; UTC where it names no zone). Raises `InputError`."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"{text[:40]!r} is no date", "write it as 2026-01-31 or 2026-01-31T12:00:00Z") from error
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _unfinished(walk: Walk, head: Head, folder: Path) -> Problem | None:
    """What is wrong at the end of a chain whose lines all follow each other."""
    name = segment_path(folder, head.segment).name
    if walk.torn and walk.seq >= head.seq:
        torn = walk.torn[0]
        return Problem(segment_path(folder, torn.segment).name, torn.number, "torn: a writer was killed; the next record will seal it")
    if walk.seq < head.seq:
        line = walk.last.number + (not walk.torn) if walk.last and walk.last.segment == head.segment else 1
        return Problem(name, line, f"cut short: {head.seq - walk.seq} record(s) are missing at the end")
    if walk.seq == head.seq and walk.prev != head.last:
        return Problem(name, walk.last.number if walk.last else None, "the last record is not the one that the head names: edited")
    return None


def _last_line(path: Path, end: int) -> str:
    """sha256 of the line that ends at byte `end`, without its newline."""
    with path.open("rb") as file:
        start = end - 1
        while start > 0:
            step = min(start, 1 << 16)
            file.seek(start - step)
            place = file.read(step).rfind(b"\n")
            if place >= 0:
                start = start - step + place + 1
                break
            start -= step
        file.seek(start)
        return Line(0, 0, file.read(end - 1 - start), True, None).sha256


@contextmanager
def _refusing(remedy: str) -> Iterator[None]:
    """Turns what the file system and the lock raise into `SafetyUnavailable`."""
    import filelock

    try:
        yield
    except filelock.Timeout as error:
        raise SafetyUnavailable("another process holds the audit log", "wait for it to end, then try again") from error
    except OSError as error:
        raise SafetyUnavailable(f"the audit log cannot be written: {error.strerror or os.strerror(error.errno or 0)}", remedy) from error
    except ValueError as error:
        raise SafetyUnavailable(f"the audit log is damaged: {error}", _BROKEN) from error
