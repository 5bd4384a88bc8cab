"""Whole files or none: writing through a temporary file, fsync and rename. Knows nothing of what is written."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import time
from pathlib import Path

from platemark.errors import InputError

DEFAULT_MODE = 0o666  # the process's umask applies
STALE_SECONDS = 3600.0  # no write takes this long: what is older was left by a kill
_TEMPORARY = re.compile(r"\.platemark-[0-9a-f]{16}\.tmp")


def write_atomically(path: str | Path, data: bytes, *, mode: int = DEFAULT_MODE) -> None:
    """Writes `data` to `path` so that at every moment the path holds the old file or the whole new one, also after a power cut.

    A symbolic link is replaced, not followed. A kill may leave a temporary file (`.platemark-*.tmp`) beside the target; writes into the
    same folder remove it once it is an hour old. Raises `InputError` naming the cause (missing folder, disk full, no permission).
    """
    path = Path(path)
    try:
        replace_file(path, data, mode=mode)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a usable path"
        raise InputError(
            f"cannot write {str(path)[-120:]!r}: {reason}", "write elsewhere, or make room; nothing was left half written"
        ) from error


def require_writable(path: Path) -> None:
    """Raises `InputError` where `path` could not be written: for those who write at the end of a long run. Writes nothing."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write {str(path)[-120:]!r}: its folder is missing or not writable, or it is one", "write elsewhere")


def replace_file(path: Path, data: bytes, *, mode: int) -> None:
    """As `write_atomically`, raising `OSError`."""
    remove_stale(path.parent)
    temporary = path.with_name(f".platemark-{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), mode)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        _publish(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    sync_folder(path.parent)


def _publish(temporary: Path, path: Path) -> None:
    """The one moment at which the new file appears."""
    temporary.replace(path)


def remove_stale(folder: Path) -> None:
    """Removes the temporary files that a killed write left in `folder` over an hour ago: regular files of this user with our own names.

    What cannot be listed or removed stays: cleaning up never makes a write fail.
    """
    before = time.time() - STALE_SECONDS
    with contextlib.suppress(OSError, ValueError), os.scandir(folder) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_if_stale(entry, before)


def _remove_if_stale(entry: os.DirEntry[str], before: float) -> None:
    found = entry.stat(follow_symlinks=False)
    ours = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    if ours and stat.S_ISREG(found.st_mode) and found.st_mtime < before:
        Path(entry.path).unlink()


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` durable, where the system can (POSIX)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
