"""Gives a PNG that was stripped of its credentials its manifest back, so that it is byte for byte the file that was released.

The record is found by the perceptual hash or the watermark; that the right one was found is proven by the sha256 of the result, never
assumed. Copies whose pixel data were encoded anew (another format, another size, saved by another program) cannot be restored: the
signature covers the file's bytes. For them the manifest can be had as a sidecar, which reads as "content differs" and is still the signed
statement about the original. Changes no file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from platemark.errors import DamagedImageError, ProvenanceUnavailable
from platemark.imaging import Decoded, decode, hash_distance, perceptual_hash, read_bytes
from platemark.provenance import credentials, png
from platemark.provenance.files import write_atomically
from platemark.provenance.home import home as default_home
from platemark.provenance.keyring import held_keys
from platemark.provenance.registry import Entry, Registry
from platemark.provenance.watermark.detect import detect

State = Literal["restored", "whole", "re-encoded", "pruned", "unknown"]
FoundBy = Literal["file hash", "perceptual hash", "watermark", "content id"]
_SMALLEST = 16  # pixels a side, below which there is no watermark to look for
_CANDIDATES = 20  # look-alikes that are tried: pictures of one prompt may be near each other


@dataclass(frozen=True)
class Restored:
    """What came of it.

    `restored`: `data` is the released file. `whole`: it is the released file already. `re-encoded`: a copy of a registered picture, whose
    bytes cannot come back. `pruned`: its manifest is no longer kept. `unknown`: no record fits.
    `manifest` is the C2PA store of the record (also for `re-encoded`); `distance` counts bits of 256 between the perceptual hashes.
    """

    state: State
    detail: str
    data: bytes | None = field(default=None, repr=False)
    manifest: bytes | None = field(default=None, repr=False)
    content_id: int | None = None
    issuer: int | None = None
    found_by: FoundBy | None = None
    distance: int | None = None
    written: tuple[Path, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the bytes."""
        return {name: getattr(self, name) for name in ("state", "detail", "content_id", "issuer", "found_by", "distance")}


def restore(
    source: bytes | str | Path, *, home: str | Path | None = None, registry: Registry | None = None, key: tuple[int, int] | None = None
) -> Restored:
    """Restores one picture, given as bytes or a path. `key`: its (content id, issuer), where they are known; else it is searched for.

    `registry` None: that of the state folder `home`. Raises `InputError` (unreadable path), `ImageError` (no picture that can be decoded)
    or `ProvenanceUnavailable` (registry or keys cannot be read).
    """
    data, place = read_bytes(source), default_home(home)
    if registry is not None:
        return _restore(data, place, registry, key)
    if not Registry.exists(place):
        return Restored("unknown", "there is no registry here")
    with Registry.open(place) as opened:
        return _restore(data, place, opened, key)


def restore_file(
    source: Path, output: Path | None, sidecar: Path | None, *, home: Path, registry: Registry, key: tuple[int, int] | None = None
) -> Restored:
    """As `restore`, and writes what came of it: the released file to `output`, its manifest to `sidecar`, each whole or not at all.

    `written` names what was. Raises as `restore`, and `InputError` where a file cannot be written.
    """
    found = restore(source, home=home, registry=registry, key=key)
    written = []
    for path, data in ((output, found.data), (sidecar, found.manifest)):
        if path is not None and data is not None:
            write_atomically(path, data)
            written.append(path)
    return replace(found, written=tuple(written))


def _restore(data: bytes, home: Path, registry: Registry, key: tuple[int, int] | None) -> Restored:
    decoded = decode(data)
    known = registry.find_by_sha256(hashlib.sha256(data).hexdigest())
    if known is not None:
        return _result("whole", "this is the released file, with its credentials", known, "file hash", decoded, data)
    seen: list[tuple[Entry, FoundBy]] = []
    for entry, found_by in _candidates(decoded, home, registry, key):
        seen.append((entry, found_by))
        rebuilt = _rebuild(data, entry)
        if rebuilt is not None:
            return _result("restored", "the file is the released one again, byte for byte", entry, found_by, decoded, rebuilt)
    return _not_restored(seen, decoded)


def _candidates(decoded: Decoded, home: Path, registry: Registry, key: tuple[int, int] | None) -> Iterator[tuple[Entry, FoundBy]]:
    """The named record; else those that look the same, nearest first, and last what the watermark says, which takes longest to read."""
    if key is not None:
        named = registry.find(*key)
        if named is not None:
            yield named, "content id"
        return
    for _, entry in registry.find_by_hash(perceptual_hash(decoded.array), limit=_CANDIDATES):
        yield entry, "perceptual hash"
    marked = _by_watermark(decoded, home, registry)
    if marked is not None:
        yield marked, "watermark"


def _by_watermark(decoded: Decoded, home: Path, registry: Registry) -> Entry | None:
    if min(decoded.array.shape[:2]) < _SMALLEST:
        return None
    for held in held_keys(home):
        found = detect(decoded.array, held.watermark)
        if found.verdict == "detected" and found.payload is not None:
            return registry.find(found.payload.content_id, found.payload.issuer)
    return None


def _rebuild(data: bytes, entry: Entry) -> bytes | None:
    """The released file, proven by its hash; None where this picture and this record do not give it."""
    if entry.pruned or not data.startswith(png.SIGNATURE):
        return None
    try:
        attempts = [png.with_credentials(data, entry.manifest)]
        if entry.skeleton is not None:
            attempts.append(png.rebuild(entry.skeleton, data, entry.manifest) or b"")
    except DamagedImageError:
        return None
    for attempt in attempts:
        if hashlib.sha256(attempt).hexdigest() == entry.image_sha256:
            report = credentials.read(attempt, "image/png", b"")
            if report.state != "valid":
                why = ", ".join(report.failures) or report.detail or report.state
                raise ProvenanceUnavailable(f"the restored file does not verify: {why}", "restore the registry from a backup")
            return attempt
    return None


def _not_restored(seen: list[tuple[Entry, FoundBy]], decoded: Decoded) -> Restored:
    """The watermark's word counts before a look-alike's."""
    if not seen:
        return Restored("unknown", "neither its watermark nor its looks are those of a registered picture")
    entry, found_by = next((pair for pair in seen if pair[1] == "watermark"), seen[0])
    if entry.pruned:
        return _result("pruned", f"its manifest was pruned on {entry.pruned}", entry, found_by, decoded, None)
    detail = "a copy whose bytes were encoded anew: the released file cannot come back; its manifest can, as a sidecar"
    return _result("re-encoded", detail, entry, found_by, decoded, None)


def _result(state: State, detail: str, entry: Entry, found_by: FoundBy, decoded: Decoded, data: bytes | None) -> Restored:
    distance = hash_distance(perceptual_hash(decoded.array), entry.perceptual_hash)
    return Restored(state, detail, data, entry.manifest or None, entry.content_id, entry.issuer, found_by, distance)
