"""Writes a safetensors file out of pieces of other ones: whole tensors, rows of them, or their transposes, at their stored precision.

Bytes are copied through; memory holds one tensor at most, and that only where it is transposed. Knows nothing about models.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from platemark.optimize.weights import StoredTensor

_CHUNK = 8 << 20


@dataclass(frozen=True)
class Piece:
    """A tensor to be written: `name` and `shape` in the new file, and where its values lie now.

    `part` of `parts`: this equal share of the source's rows. `transposed`: the source is a matrix, written as its transpose.
    """

    name: str
    shape: tuple[int, ...]
    source: StoredTensor
    part: int = 0
    parts: int = 1
    transposed: bool = False

    @property
    def length(self) -> int:
        """Bytes."""
        return self.source.length // self.parts


def write_pieces(path: Path, pieces: Iterable[Piece]) -> None:
    """Writes the file, flushed to disk; the widest types first, so that every tensor is aligned to its own type. Raises `OSError`."""
    ordered = sorted(pieces, key=lambda piece: (-(piece.source.length // max(1, piece.source.size)), piece.name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for piece in ordered:
        header[piece.name] = {"dtype": piece.source.dtype, "shape": list(piece.shape), "data_offsets": [place, place + piece.length]}
        place += piece.length
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        for piece in ordered:
            for chunk in _bytes(piece):
                stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())


def _bytes(piece: Piece) -> Iterator[bytes]:
    source = piece.source
    if piece.transposed:
        raw = np.memmap(source.file, np.uint8, "r", source.offset, (source.length,))
        rows, columns = source.shape
        yield np.ascontiguousarray(raw.reshape(rows, columns, -1).transpose(1, 0, 2)).tobytes()
        return
    left = piece.length
    with source.file.open("rb") as stream:
        stream.seek(source.offset + piece.part * piece.length)
        while left:
            chunk = stream.read(min(_CHUNK, left))
            if not chunk:
                raise OSError(f"{source.file.name} became shorter while it was read")
            left -= len(chunk)
            yield chunk
