"""Compiled engines in the user's cache, one file each, found by everything that decides whether they may be used.

File: 8 bytes little-endian length of the header, the header as JSON (`key`, `sha256` of what follows, `size`, `parity`), then the
engine as its library wrote it. `<folder>/<graph and weights>/<key>.engine`: so the engines of one network lie together, and one that
was made by another version is seen and named. Written beside, flushed, renamed: an engine is whole or not there, and a full disk
leaves the old one. Knows no engine library.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

_HEADER_LIMIT = 1 << 20
_WAIT_SECONDS = 1800.0  # for another process that compiles the same engine
_PRIVATE = 0o700
_SPOKEN = {"backend": "backend", "version": "version", "precision": "precision", "device": "device", "driver": "driver"}


@dataclass(frozen=True)
class EngineKey:
    """All that decides whether a compiled engine may be used.

    `graph` and `weights` are hex SHA-256 (of the graph file; over the hashes of the weight files). `profile` maps a free dim to its
    (smallest, usual, largest) size; empty where every size will do. `device` as in `devices`; `driver` only where engines depend on it.
    """

    graph: str
    weights: str
    backend: str
    version: str
    precision: str
    device: str
    driver: str = ""
    profile: dict[str, list[int]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """One hash of all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def network(self) -> str:
        """One hash of the graph and its weights alone."""
        return hashlib.sha256(f"{self.graph}{self.weights}".encode()).hexdigest()

    def differs(self, other: EngineKey) -> str:
        """What `other` was made for and this is not: `version 2026.3, here 2026.4`. Empty where they are the same."""
        pairs = [(word, getattr(other, name), getattr(self, name)) for name, word in _SPOKEN.items()]
        said = [f"{word} {theirs or 'none'}, here {ours or 'none'}" for word, theirs, ours in pairs if theirs != ours]
        said += ["another shape profile"] if other.profile != self.profile else []
        return "; ".join(said)


@dataclass(frozen=True)
class Entry:
    """One engine of the cache. `parity` is what it was compared with, as JSON types."""

    key: EngineKey
    blob: bytes
    parity: dict[str, Any]


class DamagedEntryError(ValueError):
    """A cache file that is not what it says; never leaves this package."""


class EngineCache:
    """The engines below one folder. The folder is made at the first write, for its owner alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: EngineKey) -> Path:
        return self.folder / key.network[:32] / f"{key.digest}.engine"

    def read(self, key: EngineKey) -> Entry | None:
        """The engine; None where there is none. Raises `DamagedEntryError` for a file that is cut short, changed, or of another key."""
        path = self.path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        entry = _parse(data)
        if entry.key != key:
            raise DamagedEntryError(f"it was made for {key.differs(entry.key) or 'another network'}")
        return entry

    def write(self, entry: Entry) -> bool:
        """Puts an engine in place, and takes those away that an older version or driver made for the same. False: no room or no right."""
        path = self.path(entry.key)
        try:
            _make_private(path.parent)
            _replace(path, _render(entry))
        except OSError:
            return False
        for old in self.others(entry.key):
            if replace(old, version=entry.key.version, driver=entry.key.driver) == entry.key:
                with suppress(OSError):
                    self.path(old).unlink()
        return True

    def others(self, key: EngineKey) -> list[EngineKey]:
        """The keys of this network's other engines, those that can be read."""
        found = []
        for path in sorted(self.path(key).parent.glob("*.engine")):
            if path == self.path(key):
                continue
            with suppress(DamagedEntryError, OSError):
                found.append(_key(_header(path)))
        return found

    @contextmanager
    def locked(self, key: EngineKey) -> Iterator[bool]:
        """Holds the key's lock, waiting for another process that compiles it. False where it cannot be had: nothing is stored then."""
        import filelock

        path = self.path(key).with_suffix(".lock")
        lock = filelock.FileLock(path, timeout=_WAIT_SECONDS, mode=0o600)
        try:
            _make_private(path.parent)
            lock.acquire()
        except (OSError, filelock.Timeout):
            yield False
            return
        try:
            yield True
        finally:
            lock.release()


def get_or_make(cache: EngineCache, key: EngineKey, load: Callable[[bytes], Any], make: Callable[[], tuple[Entry, Any]]) -> Any:
    """The engine that `load` makes of the cached bytes; where there are none, or they do not load, `make` compiles entry and engine anew.

    `load` raises `ValueError` for bytes that it cannot use. Processes that want the same engine wait for the first one to compile it.
    """
    engine = _usable(cache, key, load)
    if engine is not None:
        return engine
    with cache.locked(key) as held:
        engine = _usable(cache, key, load) if held else None
        if engine is not None:
            return engine
        entry, made = make()
        if held:
            cache.write(entry)
        return made


def _usable(cache: EngineCache, key: EngineKey, load: Callable[[bytes], Any]) -> Any:
    try:
        entry = cache.read(key)
        return None if entry is None else load(entry.blob)
    except ValueError:  # damaged, or bytes that the library refuses: it is compiled anew
        return None


def state(cache: EngineCache, key: EngineKey) -> str:
    """In a few words, what the cache has for this key: for `inspect`."""
    try:
        if cache.read(key) is not None:
            return "in the cache"
    except DamagedEntryError as error:
        return f"the cached engine is damaged ({error}): it will be compiled anew"
    same = [other for other in cache.others(key) if other.backend == key.backend]
    if same:
        return f"the cached engine was made for {key.differs(same[0])}: it will be compiled anew"
    return "will be compiled at first use"


def _render(entry: Entry) -> bytes:
    header = {
        "key": asdict(entry.key),
        "parity": entry.parity,
        "sha256": hashlib.sha256(entry.blob).hexdigest(),
        "size": len(entry.blob),
    }
    head = json.dumps(header, sort_keys=True).encode()
    return len(head).to_bytes(8, "little") + head + entry.blob


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        return _parse_header(stream.read(8), stream.read(_HEADER_LIMIT))[0]


def _parse_header(prefix: bytes, rest: bytes) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(_HEADER_LIMIT, len(rest)):
        raise DamagedEntryError("its header is cut short")
    try:
        header = json.loads(rest[:length])
    except (ValueError, RecursionError) as error:
        raise DamagedEntryError("its header is not JSON") from error
    if not isinstance(header, dict):
        raise DamagedEntryError("its header is no table")
    return header, length


def _parse(data: bytes) -> Entry:
    header, length = _parse_header(data[:8], data[8 : 8 + _HEADER_LIMIT])
    blob = data[8 + length :]
    if header.get("size") != len(blob) or header.get("sha256") != hashlib.sha256(blob).hexdigest():
        raise DamagedEntryError("its bytes are not those that were written")
    parity = header.get("parity")
    return Entry(_key(header), blob, parity if isinstance(parity, dict) else {})


def _key(header: Mapping[str, Any]) -> EngineKey:
    try:
        return EngineKey(**header["key"])
    except (KeyError, TypeError) as error:
        raise DamagedEntryError("its header has no key") from error


def _make_private(folder: Path) -> None:
    for missing in reversed([at for at in (folder, *folder.parents) if not at.exists()]):
        missing.mkdir(exist_ok=True, mode=_PRIVATE)  # one by one: `parents=True` would give those above the default mode


def _replace(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
