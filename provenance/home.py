"""The state folder: keys, registry, locks. Knows where it is and how to write into it, not what is in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from platemark.errors import ProvenanceUnavailable
from platemark.provenance.files import replace_file

_SECRET, _PRIVATE = 0o600, 0o700  # modes of files and folders
_LOCK_SECONDS = 60.0


def home(explicit: str | Path | None = None) -> Path:
    """`explicit`, else `$PLATEMARK_HOME`, else the platform's user data folder. Makes nothing."""
    if explicit is not None:
        return Path(explicit)
    if named := os.environ.get("PLATEMARK_HOME"):
        return Path(named)
    import platformdirs

    return platformdirs.user_data_path("platemark", appauthor=False)


def make_private(folder: Path) -> Path:
    """Makes `folder`, and those above it that are missing, for their owner alone (0700). Raises `ProvenanceUnavailable`.

    A folder that exists keeps its mode, which is its owner's choice. So whoever makes a folder inside the state folder makes it with this.
    """
    try:
        for missing in reversed([at for at in (folder, *folder.parents) if not at.exists()]):
            missing.mkdir(exist_ok=True, mode=_PRIVATE)  # one by one: `parents=True` would make those above with the default mode
        folder.mkdir(exist_ok=True, mode=_PRIVATE)
    except OSError as error:
        raise unwritable(folder, error) from error
    return folder


def write_secret(path: Path, data: bytes) -> None:
    """Writes a file of the state folder whole or not at all, mode 0600. Raises `ProvenanceUnavailable`."""
    make_private(path.parent)
    try:
        replace_file(path, data, mode=_SECRET)
    except OSError as error:
        raise unwritable(path, error) from error


def read_state(path: Path) -> bytes | None:
    """The bytes of a file of the state folder; None where there is none. Raises `ProvenanceUnavailable` where it cannot be read."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ProvenanceUnavailable(f"cannot read {str(path)!r}: {error.strerror}", "correct its owner and permissions") from error


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Holds the lock file `.{name}.lock` of the state folder against other processes. Raises `ProvenanceUnavailable`."""
    import filelock

    make_private(folder)
    path = folder / f".{name}.lock"
    lock = filelock.FileLock(path, timeout=_LOCK_SECONDS, mode=_SECRET)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise ProvenanceUnavailable(f"another process holds {str(path)!r}", "wait for it to end, then try again") from error
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield
    finally:
        lock.release()


def unwritable(path: Path, error: OSError) -> ProvenanceUnavailable:
    """The error for a state folder that refuses to be written."""
    return ProvenanceUnavailable(
        f"cannot write the state folder: {str(path)!r}: {error.strerror}", "make it writable, or set PLATEMARK_HOME to a folder that is"
    )
