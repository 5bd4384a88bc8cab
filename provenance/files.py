"""Whole files or none: writing through a temporary file, fsync and rename. Knows nothing of what is written."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from platemark.errors import InputError

DEFAULT_MODE = 0o666  # the process's umask applies


def write_atomically(path: str | Path, data: bytes, *, mode: int = DEFAULT_MODE) -> None:
    """Writes `data` to `path` so that at every moment the path holds the old file or the whole new one, also after a power cut.

    A symbolic link is replaced, not followed. Raises `InputError` naming the cause (missing folder, disk full, no permission).
    """
    path = Path(path)
    try:
        replace_file(path, data, mode=mode)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a usable path"
        raise InputError(
            f"cannot write {str(path)[-120:]!r}: {reason}", "write elsewhere, or make room; nothing was left half written"
        ) from error


def replace_file(path: Path, data: bytes, *, mode: int) -> None:
    """As `write_atomically`, raising `OSError`."""
    temporary = path.with_name(f".platemark-{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), mode)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` durable, where the system can (POSIX)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
