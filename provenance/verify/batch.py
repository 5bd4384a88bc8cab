"""Many files: found in folders, verified on all cores, one line each in their order. One bad file never stops the others.

Each core has a process of its own that takes one file at a time. A file whose process dies or hangs gets an error, and a new process goes
on. Processes start fresh ("spawn"), because contexts of the C2PA library do not survive a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from platemark.errors import InputError, PlatemarkError, ProvenanceUnavailable
from platemark.provenance.mark_reading import one_thread_each
from platemark.provenance.trust import TrustLists

PICTURES = frozenset((".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".avifs", ".tif", ".tiff", ".gif"))
DEEP_FILES = 16  # files that are searched deeply without being asked
ALONE = 4  # files that are not worth a second process
SECONDS = 300.0  # that one file may take


@dataclass(frozen=True)
class Settings:
    """How each file is verified: as `verify` takes it."""

    home: str | None = None
    deep: bool = True
    trust: TrustLists = field(default_factory=TrustLists)
    profile: str | None = None


@dataclass(frozen=True)
class Line:
    """One file's answer: `values` is a `FileReport` or a `FileError` as a dict; `code`: its exit code."""

    values: dict[str, Any]
    code: int


def expand(paths: Sequence[Path]) -> list[Path]:
    """Files as given, and in place of a folder the pictures below it by their suffix, in order. Links to folders are not followed.

    A folder below that cannot be listed stands for itself: its line is an error. Raises `InputError` for a folder that holds no picture.
    """
    return [file for path in paths for file in (_pictures(path) if path.is_dir() else [path])]


def is_deep(count: int, *, fast: bool, deep: bool) -> bool:
    """Whether so many files are searched deeply: up to 16 unless `fast`, more where `deep` asks for it."""
    return not fast and (deep or count <= DEEP_FILES)


def verify_one(file: Path | bytes, name: str, settings: Settings) -> Line:
    """One line, whatever the file is."""
    from platemark.provenance.verify import exit_code, verify

    try:
        report = verify(file, home=settings.home, deep=settings.deep, trust=settings.trust, profile=settings.profile)
    except PlatemarkError as error:
        return _failed(name, error)
    return Line({"file": name} | report.as_dict(), exit_code(report.verdict))


def verify_all(files: Sequence[Path], settings: Settings, *, jobs: int | None = None, seconds: float = SECONDS) -> Iterator[Line]:
    """The lines of all files, in their order. `jobs`: processes (None: one a core); few files are done in this process."""
    jobs = min(jobs or _cores(), len(files))
    if jobs <= 1 or len(files) <= ALONE:
        yield from (verify_one(file, str(file), settings) for file in files)
        return
    pool = _Pool(files, settings, seconds)
    try:
        yield from pool.lines(jobs)
    finally:
        pool.close()


@dataclass
class _Worker:
    process: multiprocessing.process.BaseProcess
    pipe: Connection
    file: int | None = None
    since: float = 0.0


class _Pool:
    """Processes that each verify one file at a time."""

    def __init__(self, files: Sequence[Path], settings: Settings, seconds: float) -> None:
        self._files, self._settings, self._seconds = files, settings, seconds
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._next = 0
        self._done: dict[int, Line] = {}

    def lines(self, jobs: int) -> Iterator[Line]:
        self._workers = [self._started() for _ in range(jobs)]
        for worker in self._workers:
            self._give(worker)
        for wanted in range(len(self._files)):
            while wanted not in self._done:
                self._step()
            yield self._done.pop(wanted)

    def close(self) -> None:
        for worker in self._workers:
            self._end(worker)
        self._workers = []

    def _started(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, self._settings), daemon=True)
        with one_thread_each():
            process.start()
        theirs.close()
        return _Worker(process, ours)

    def _give(self, worker: _Worker) -> None:
        """The next file to a worker, which may be dead: `_step` sees that."""
        if self._next >= len(self._files):
            worker.file = None
            return
        worker.file, worker.since = self._next, time.monotonic()
        self._next += 1
        try:
            worker.pipe.send(os.fspath(self._files[worker.file]))
        except OSError:
            self._replace(worker, "ended")

    def _step(self) -> None:
        """Waits for one answer, one death, or the time limit."""
        busy = [worker for worker in self._workers if worker.file is not None]
        limit = min(worker.since for worker in busy) + self._seconds - time.monotonic()
        ready = wait([worker.pipe for worker in busy], timeout=max(0.0, limit))
        for worker in [one for one in busy if one.pipe in ready]:
            self._hear(worker)
        if not ready:
            slow = min(busy, key=lambda worker: worker.since)
            self._replace(slow, f"took longer than {self._seconds:g} s")

    def _hear(self, worker: _Worker) -> None:
        try:
            line = worker.pipe.recv()
        except (EOFError, OSError):
            self._replace(worker, "ended")
            return
        if worker.file is not None:
            self._done[worker.file] = line
        self._give(worker)

    def _replace(self, worker: _Worker, what: str) -> None:
        """The file of a worker that died or hangs gets an error; a fresh process takes its place."""
        failed = worker.file
        self._end(worker)
        if failed is not None:
            error = ProvenanceUnavailable(f"the process that verified this file {what}", "verify the file alone, and report it")
            self._done[failed] = _failed(str(self._files[failed]), error)
        fresh = self._started()
        worker.process, worker.pipe, worker.file = fresh.process, fresh.pipe, None
        self._give(worker)

    @staticmethod
    def _end(worker: _Worker) -> None:
        worker.pipe.close()
        worker.process.terminate()
        worker.process.join(5)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _work(pipe: Connection, settings: Settings) -> None:
    """A worker: file names in, lines out, until the other end closes."""
    warnings.simplefilter("ignore")  # what decoders say of damaged files is in the verdict
    while True:
        try:
            name = pipe.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        pipe.send(verify_one(Path(name), name, settings))


def _failed(name: str, error: PlatemarkError) -> Line:
    return Line({"file": name, "error": error.as_dict()}, error.exit_code)


def _pictures(folder: Path) -> list[Path]:
    failed: list[OSError] = []
    found = []
    for at, folders, files in os.walk(folder, onerror=failed.append):
        folders.sort()
        found += [Path(at) / name for name in sorted(files) if Path(name).suffix.lower() in PICTURES]
    if not found:
        reason = f": {failed[0].strerror}" if failed else ""
        raise InputError(f"there is no picture in the folder {str(folder)[-120:]!r}{reason}", "name another folder, or files")
    return found + [Path(error.filename) for error in failed]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
