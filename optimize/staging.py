"""Files on their way into a bundle: copied and hashed, flushed to disk, and put in place whole. Knows nothing about what is in them."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from platemark.errors import InputError
from platemark.optimize.weights import file_sha256
from platemark.runtime.bundle import MANIFEST

_CHUNK = 8 << 20
_OTHER = "choose another output folder"


@contextmanager
def stage_for(out: Path, *, in_place: bool, replace: bool, manifest: str = MANIFEST, resume: bool = False) -> Iterator[Path]:
    """A folder beside `out` to build in, gone at the end unless somebody interrupts. Nobody else builds to `out` meanwhile.

    `manifest`: the file by which a folder of this kind is known, so that nothing else is ever replaced.

    What a killed build left there is removed first, or with `resume` still lies in the folder: the caller must look at all of it. A bundle
    that it had set aside is put back. Raises `InputError` where `out` exists
    and may not be replaced, where another build to `out` is under way, and for any failure to read or write inside the block (a full
    disk, say).
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _only_build(out), _stage(_beside(out, "partial"), out, resume) as stage:
            if out.exists() and not in_place:
                _check_replaceable(out, replace, manifest)
            stage.mkdir(exist_ok=resume)
            yield stage
    except OSError as error:
        reason = f"{error.strerror or error}" + (f": {Path(error.filename).name}" if error.filename else "")
        raise InputError(
            f"the bundle {out.name} cannot be written: {reason}", "choose a folder that can be written to and has room"
        ) from error


@contextmanager
def _only_build(out: Path) -> Iterator[None]:
    """Holds the file `.{name}.lock` beside `out`. The system lets go of it when its process dies, however that happens."""
    import filelock

    path = out.with_name(f".{out.name}.lock")
    lock = filelock.FileLock(path, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise InputError(f"another build to {out} is under way", "wait for it to end, or choose another output folder") from error
    try:
        yield
    finally:
        with suppress(OSError):  # while it is held, so that nobody else's is taken away; Windows does not let go of held files
            path.unlink()
        lock.release()


@contextmanager
def _stage(stage: Path, out: Path, resume: bool) -> Iterator[Path]:
    """The place of the stage: cleared before, unless it is to be resumed, and after, unless somebody interrupts."""
    _recover(out, stage, resume)
    try:
        yield stage
    except KeyboardInterrupt:
        if not resume:
            shutil.rmtree(stage, ignore_errors=True)
        raise
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    shutil.rmtree(stage, ignore_errors=True)


def _recover(out: Path, stage: Path, resume: bool) -> None:
    aside = _beside(out, "replaced")
    if aside.exists() and not out.exists():
        aside.rename(out)
    for leftover in (aside,) if resume and stage.is_dir() and not stage.is_symlink() else (stage, aside):
        if leftover.is_symlink() or leftover.is_file():
            leftover.unlink()
        elif leftover.exists():
            shutil.rmtree(leftover)


def _beside(out: Path, suffix: str) -> Path:
    return out.with_name(f"{out.name}.{suffix}")


def _check_replaceable(out: Path, replace: bool, manifest: str) -> None:
    if not (out / manifest).is_file():
        raise InputError(f"{out} exists and is not a bundle" if manifest == MANIFEST else f"{out} exists and holds no {manifest}", _OTHER)
    if not replace:
        raise InputError(f"{out} exists", f"{_OTHER}, or replace what is there with --force")


def copy_file(source: Path, target: Path) -> str:
    """Copies one file, following links, and returns the hex SHA-256 of the bytes written, flushed to disk.

    A target that is there already is kept where it has the same bytes.
    """
    if target.is_file() and not target.is_symlink():
        found = file_sha256(source)
        if file_sha256(target) == found:
            return found
    target.unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with source.open("rb") as read, target.open("xb") as write:
        while chunk := read.read(_CHUNK):
            digest.update(chunk)
            write.write(chunk)
        write.flush()
        os.fsync(write.fileno())
    return digest.hexdigest()


def link_file(source: Path, target: Path) -> str:
    """As `copy_file`, for a source that nobody else changes: a second name for the same bytes where the disk knows such, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # of a killed build
    try:
        os.link(source.resolve(), target)
    except OSError:
        return copy_file(source, target)
    with target.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_file(target: Path, data: bytes) -> None:
    """Writes one file, flushed to disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def replace_file(target: Path, data: bytes) -> None:
    """Puts a file in place whole, over an older one: killed in between, one of the two is there."""
    beside = target.with_name(f"{target.name}.new")
    write_file(beside, data)
    beside.replace(target)
    sync_folder(target.parent)


def keep_only(folder: Path, names: Collection[str]) -> None:
    """Removes every file of a folder that is not named (POSIX paths below it), links and empty folders too."""
    for path in sorted(folder.rglob("*"), key=lambda path: len(path.parts), reverse=True):
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):  # not empty
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in names:
            path.unlink()


def publish(stage: Path, out: Path) -> None:
    """Renames the finished folder into place. A bundle that was there is set aside first and removed last: one is always whole."""
    for folder in (stage, *(path for path in stage.rglob("*") if path.is_dir())):
        sync_folder(folder)
    aside = _beside(out, "replaced")
    if out.exists():
        out.rename(aside)
    stage.rename(out)
    sync_folder(out.parent)
    if aside.exists():
        shutil.rmtree(aside)


def publish_files(stage: Path, out: Path, names: Iterable[str]) -> None:
    """Moves the named files (POSIX paths) from the stage over those of `out`, each atomically, in the order given; leaves the rest.

    `bundle.json` is taken away first and must be the last of `names`: killed in between, `out` is no bundle rather than a damaged one.
    """
    (out / MANIFEST).unlink(missing_ok=True)
    sync_folder(out)
    for name in names:
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (stage / name).replace(target)
        sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries to disk, where the platform can."""
    with suppress(OSError):  # Windows cannot open folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
