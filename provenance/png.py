"""PNG files as chunks: taking the credentials out and putting them back, without touching a byte of anything else.

A skeleton is what a PNG holds besides its pixel data and its credentials: which chunks come in which order, and the bytes of the small
ones. With it, the pixel data of a stripped file and the manifest store, the file comes back as it was. Layout of a skeleton: `PMSK1`, then
deflated chunks, each as length (4 bytes, big-endian), type (4) and, unless the type is IDAT or caBX, the data. Knows nothing of pixels.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from platemark.errors import DamagedImageError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CREDENTIALS = b"caBX"  # the chunk of a C2PA manifest store
_PIXELS = b"IDAT"
_MAGIC = b"PMSK1"
_MAX_SKELETON = 1 << 20  # bytes before deflating: XMP, texts and a colour profile, and not a second picture


@dataclass(frozen=True)
class Chunk:
    kind: bytes
    data: bytes

    def pack(self) -> bytes:
        """Length, type, data, CRC-32."""
        return struct.pack(">I", len(self.data)) + self.kind + self.data + struct.pack(">I", zlib.crc32(self.data, zlib.crc32(self.kind)))


def chunks(data: bytes) -> list[Chunk]:
    """The chunks of a PNG up to IEND. Raises `DamagedImageError`: no PNG, cut short, a wrong checksum, or bytes behind the end."""
    return list(_chunks(data))


def without_credentials(data: bytes) -> bytes:
    """The PNG without its C2PA chunks. Raises as `chunks`."""
    return _join([chunk for chunk in chunks(data) if chunk.kind != CREDENTIALS])


def has_credentials(data: bytes) -> bool:
    """Whether there is a C2PA chunk. Raises as `chunks`."""
    return any(chunk.kind == CREDENTIALS for chunk in chunks(data))


def with_credentials(data: bytes, manifest: bytes) -> bytes:
    """The PNG with one C2PA chunk, right behind IHDR, where signing puts it; others are taken out. Raises as `chunks`."""
    head, *rest = [chunk for chunk in chunks(data) if chunk.kind != CREDENTIALS]
    return _join([head, Chunk(CREDENTIALS, manifest), *rest])


def skeleton(data: bytes) -> bytes | None:
    """The skeleton of a PNG; None where there is none to keep: another format, damaged, or over a megabyte of metadata."""
    if not data.startswith(SIGNATURE):
        return None
    try:
        found = chunks(data)
    except DamagedImageError:
        return None
    kept = b"".join(
        struct.pack(">I", len(chunk.data)) + chunk.kind + (b"" if chunk.kind in (_PIXELS, CREDENTIALS) else chunk.data) for chunk in found
    )
    return None if len(kept) > _MAX_SKELETON else _MAGIC + zlib.compress(kept, 9)


def rebuild(bones: bytes, data: bytes, manifest: bytes) -> bytes | None:
    """The file that `bones` is the skeleton of, with the pixel data of the PNG `data`; None where they do not belong together.

    Raises as `chunks` for `data`. Whether the result is the file of old is for its hash to say.
    """
    pixels = b"".join(chunk.data for chunk in chunks(data) if chunk.kind == _PIXELS)
    out, taken = [], 0
    for length, kind, kept in _bones(bones):
        if kind == _PIXELS:
            kept, taken = pixels[taken : taken + length], taken + length
        elif kind == CREDENTIALS:
            kept = manifest
        if len(kept) != length:
            return None
        out.append(Chunk(kind, kept))
    return _join(out) if out and taken == len(pixels) else None


def _bones(bones: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Length, type and data (empty for IDAT and caBX) of each chunk; nothing where the skeleton is damaged."""
    if not bones.startswith(_MAGIC):
        return
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(bones[len(_MAGIC) :], _MAX_SKELETON)
    except zlib.error:
        return
    at = 0
    while at + 8 <= len(text):
        length, kind = struct.unpack_from(">I4s", text, at)
        size = 0 if kind in (_PIXELS, CREDENTIALS) else length
        yield length, kind, text[at + 8 : at + 8 + size]
        at += 8 + size


def _chunks(data: bytes) -> Iterator[Chunk]:
    if not data.startswith(SIGNATURE):
        raise _damaged("does not begin like one")
    at = len(SIGNATURE)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        if len(body) != length or struct.pack(">I", zlib.crc32(body, zlib.crc32(kind))) != data[at + 8 + length : at + 12 + length]:
            raise _damaged("a chunk is cut short or has a wrong checksum")
        if (at == len(SIGNATURE)) != (kind == b"IHDR"):
            raise _damaged("its header is missing")
        yield Chunk(kind, body)
        at += 12 + length
        if kind == b"IEND":
            if at != len(data):
                raise _damaged("there are bytes behind its end")
            return
    raise _damaged("its end is missing")


def _join(found: list[Chunk]) -> bytes:
    return SIGNATURE + b"".join(chunk.pack() for chunk in found)


def _damaged(why: str) -> DamagedImageError:
    return DamagedImageError(f"the PNG cannot be taken apart: {why}", "get an undamaged copy")
