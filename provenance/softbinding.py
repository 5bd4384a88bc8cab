"""Soft bindings: which registered manifests belong to a watermark payload, a fingerprint, or a picture.

Values are base64 texts, as the C2PA Soft Binding Resolution API has them: of a watermark the 8 bytes of its payload, of a fingerprint the
32 bytes of its PDQ hash; the hex digits that manifests and records show may be encoded instead. Entries whose manifest was pruned are never
matches. Knows nothing of HTTP; gives out manifests and their ids alone, never a key, a record or a prompt of the registry.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from platemark.errors import InputError, ProvenanceUnavailable
from platemark.imaging import hash_distance, perceptual_hash
from platemark.provenance.record import WATERMARK_ALGORITHM
from platemark.provenance.registry import Entry, Registry
from platemark.provenance.watermark.detect import detect
from platemark.provenance.watermark.key import WatermarkKey
from platemark.provenance.watermark.payload import Payload

FINGERPRINT_ALGORITHM = "com.platemark.pdq.1"
ALGORITHMS = (WATERMARK_ALGORITHM, FINGERPRINT_ALGORITHM)
SAME_PICTURE = 31  # bits of 256 by which PDQ hashes of copies differ at most
_SIZES = {WATERMARK_ALGORITHM: 8, FINGERPRINT_ALGORITHM: 32}  # bytes of a value
_SMALLEST = 16  # pixels a side, below which there is no watermark to look for
_MAX_VALUE = 256  # characters of a base64 text


@dataclass(frozen=True)
class Match:
    """A registered manifest. `similarity` (0 to 100) for fingerprints; None where a match is exact."""

    manifest_id: str
    similarity: int | None = None


@dataclass(frozen=True)
class Binding:
    """One soft binding as asked for: the algorithm's name and the base64 text. Raises `InputError` where either cannot be."""

    algorithm: str
    value: str

    def __post_init__(self) -> None:
        self.digits  # noqa: B018 - decodes it, or says why not

    @property
    def digits(self) -> str:
        """The value in hex digits."""
        require_algorithm(self.algorithm)
        size, raw = _SIZES[self.algorithm], _decode(self.value)
        text = raw.hex() if len(raw) == size else raw.decode("ascii", "replace").lower()
        if len(text) != 2 * size or not all(char in "0123456789abcdef" for char in text):
            raise InputError(f"a value of {self.algorithm} is the base64 text of {size} bytes or of their hex digits", "correct the value")
        return text


def require_algorithm(name: str) -> None:
    """Raises `InputError` for an algorithm that is not one of ours."""
    if name not in ALGORITHMS:
        raise InputError(f"the soft binding algorithm {name[:60]!r} is not supported", f"use {' or '.join(ALGORITHMS)}")


def by_binding(registry: Registry, binding: Binding, limit: int) -> list[Match]:
    """Manifests that belong to a soft binding, the best first, at most `limit`. Raises `ProvenanceUnavailable`."""
    return [_match(binding.algorithm, distance, entry) for distance, entry in _bound(registry, binding, limit)]


def by_content(
    registry: Registry, keys: Sequence[WatermarkKey], picture: NDArray[np.uint8], *, algorithm: str | None, hint: Binding | None, limit: int
) -> list[Match]:
    """Manifests that belong to a picture (uint8 RGB, height, width, 3): by its watermark first, then by its looks; at most `limit`.

    `algorithm` asks for one of the two alone. `hint` is a soft binding that the asker knows: where it leads to pictures that look the same,
    they are the answer, and the long search for a watermark is saved. Raises `ProvenanceUnavailable`.
    """
    looks = perceptual_hash(picture)
    if hint is not None:
        hinted = [entry for _, entry in _bound(registry, hint, limit) if hash_distance(looks, entry.perceptual_hash) <= SAME_PICTURE]
        if hinted:
            return [_match(hint.algorithm, hash_distance(looks, entry.perceptual_hash), entry) for entry in hinted]
    found: dict[str, Match] = {}
    if algorithm in (None, WATERMARK_ALGORITHM):
        for entry in _marked(registry, keys, picture):
            found.setdefault(entry.manifest_label, Match(entry.manifest_label))
    if algorithm in (None, FINGERPRINT_ALGORITHM):
        for distance, entry in _alike(registry, looks, limit):
            found.setdefault(entry.manifest_label, _match(FINGERPRINT_ALGORITHM, distance, entry))
    return list(found.values())[:limit]


def manifest(registry: Registry, manifest_id: str, *, active_only: bool = False) -> bytes | None:
    """The manifest store in which `manifest_id` is the active manifest; with `active_only` without the other manifests in it.

    None where there is none, or no longer. Raises `ProvenanceUnavailable`.
    """
    entry = registry.find_by_label(manifest_id)
    if entry is None or not entry.manifest:
        return None
    return active_manifest(entry.manifest) if active_only else entry.manifest


def active_manifest(store: bytes) -> bytes:
    """A manifest store (JUMBF, ISO 19566-5) that holds the active manifest alone: the last one, says the C2PA specification.

    Raises `ProvenanceUnavailable` where the store is damaged.
    """
    boxes = list(_boxes(store))
    inside = list(_boxes(boxes[0][1])) if len(boxes) == 1 and boxes[0][0] == b"jumb" else []
    if len(inside) < 2 or inside[0][0] != b"jumd" or inside[-1][0] != b"jumb":
        raise ProvenanceUnavailable("a manifest store in the registry is damaged", "restore the registry from a backup")
    return _box(b"jumb", _box(*inside[0]) + _box(*inside[-1]))


def _bound(registry: Registry, binding: Binding, limit: int) -> list[tuple[int, Entry]]:
    """(distance, entry) by a binding's value."""
    if binding.algorithm == FINGERPRINT_ALGORITHM:
        return _alike(registry, binding.digits, limit)
    payload = Payload.unpack(bytes.fromhex(binding.digits))
    entry = registry.find(payload.content_id, payload.issuer)
    exact = entry is not None and entry.manifest and entry.record is not None and entry.record.watermark_payload == binding.digits
    return [(0, entry)] if entry is not None and exact else []


def _alike(registry: Registry, looks: str, limit: int) -> list[tuple[int, Entry]]:
    return [(distance, entry) for distance, entry in registry.find_by_hash(looks, SAME_PICTURE, limit=limit) if entry.manifest]


def _marked(registry: Registry, keys: Sequence[WatermarkKey], picture: NDArray[np.uint8]) -> Iterator[Entry]:
    if min(picture.shape[:2]) < _SMALLEST:
        return
    for key in keys:
        read = detect(picture, key)
        if read.verdict == "detected" and read.payload is not None:
            entry = registry.find(read.payload.content_id, read.payload.issuer)
            if entry is not None and entry.manifest:
                yield entry


def _match(algorithm: str, distance: int, entry: Entry) -> Match:
    return Match(entry.manifest_label, round(100 * (1 - distance / 256)) if algorithm == FINGERPRINT_ALGORITHM else None)


def _decode(value: str) -> bytes:
    """Base64, also its URL-safe form, with or without padding; a plus sign may have come out of a query string as a space."""
    text = value.strip(" \r\n=").replace(" ", "+").replace("-", "+").replace("_", "/")
    if not text or len(text) > _MAX_VALUE:
        raise InputError(f"a soft binding's value has 1 to {_MAX_VALUE} base64 characters", "correct the value")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError("a soft binding's value must be base64 text", "correct the value") from error


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and content of the boxes that fill `data`; stops where it is damaged."""
    at = 0
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if length < 8 or at + length > len(data):
            return
        yield kind, data[at + 8 : at + length]
        at += length


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content) + 8) + kind + content
