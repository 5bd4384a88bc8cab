"""Reads safetensors files as tables of offsets, so that an ONNX graph can point into them instead of carrying a copy.

Knows nothing about models. Format: 8 bytes little-endian header length, a JSON header, then the raw tensors
(https://huggingface.co/docs/safetensors, "Format").
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from platemark.errors import CheckpointError

DAMAGED = "download or save the checkpoint again: this file is not a whole safetensors file"
_MAX_HEADER = 100 << 20  # the format's own limit
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_FLOATS: dict[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
PRECISION = {"F64": "fp32", "F32": "fp32", "F16": "fp16", "BF16": "bf16"}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file: `offset` and `length` are bytes from the start of the file."""

    name: str
    dtype: str  # the format's own spelling: "F16", "F32", "BF16", ...
    shape: tuple[int, ...]
    file: Path
    offset: int
    length: int

    @property
    def is_float(self) -> bool:
        return self.dtype in PRECISION

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.length // _ITEM_BYTES[self.dtype]


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, by name. Raises `CheckpointError` for a truncated or otherwise damaged file."""
    header, base = _header(path)
    header.pop("__metadata__", None)
    tensors = {name: _entry(path, name, entry, base) for name, entry in header.items()}
    _check_extent(path, tensors.values(), base)
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """What the file says of itself: free texts by name. Raises `CheckpointError` as `read_header` does."""
    found = _header(path)[0].get("__metadata__", {})
    return {str(name): str(text) for name, text in found.items()} if isinstance(found, dict) else {}


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header's table, and where the tensors begin."""
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            size = path.stat().st_size
            if not 2 <= length <= min(_MAX_HEADER, size - 8):
                raise CheckpointError(
                    f"{path.name} is truncated or not a safetensors file: header of {length} bytes in a file of {size}", DAMAGED
                )
            header = json.loads(stream.read(length))
    except OSError as error:
        raise CheckpointError(f"cannot read {path.name}: {error.strerror}", "check that the file exists and may be read") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path.name} has a header that is not JSON", DAMAGED) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path.name} has a header that is not a table", DAMAGED)
    return header, 8 + length


def _entry(path: Path, name: str, entry: Any, base: int) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path.name}: the entry of tensor {name!r} is not complete", DAMAGED) from error
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise CheckpointError(f"{path.name}: tensor {name!r} is stored as {dtype}", "save the checkpoint as float16, bfloat16 or float32")
    if not all(type(v) is int and v >= 0 for v in (*shape, begin, end)):
        raise CheckpointError(f"{path.name}: tensor {name!r} has a shape or place that is not made of whole numbers", DAMAGED)
    count = 1
    for dim in shape:
        count *= dim
    if end - begin != count * _ITEM_BYTES[dtype]:
        raise CheckpointError(f"{path.name}: tensor {name!r} of shape {list(shape)} does not fill its {end - begin} bytes", DAMAGED)
    return StoredTensor(name, dtype, shape, path, base + begin, end - begin)


def _check_extent(path: Path, tensors: Iterable[StoredTensor], base: int) -> None:
    """Tensors must lie one after another, without gap or overlap, and end where the file ends."""
    position = base
    for tensor in sorted(tensors, key=lambda t: (t.offset, t.length)):
        if tensor.offset != position:
            raise CheckpointError(f"{path.name}: tensor {tensor.name!r} overlaps another or leaves a gap", DAMAGED)
        position += tensor.length
    size = path.stat().st_size
    if position != size:
        raise CheckpointError(f"{path.name} is truncated or has extra bytes: {size} bytes where its header tells of {position}", DAMAGED)


def read_float32(tensor: StoredTensor) -> NDArray[np.float32]:
    """The values of a float tensor as float32, in its stored shape."""
    raw = np.memmap(tensor.file, np.uint8, "r", tensor.offset, (tensor.length,)) if tensor.length else np.zeros(0, np.uint8)
    if tensor.dtype == "BF16":
        values = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        values = np.asarray(raw.view(_FLOATS[tensor.dtype]), np.float32)
    return values.reshape(tensor.shape)


def write_float32(tensor: StoredTensor, values: NDArray[np.float32]) -> None:
    """Puts `values` in the tensor's place in its file, as `as_stored` rounds them. Raises `CheckpointError` on overflow."""
    place = np.memmap(tensor.file, np.uint8, "r+", tensor.offset, (tensor.length,))
    place[:] = as_stored(tensor, values).reshape(-1).view(np.uint8)
    place.flush()


def as_stored(tensor: StoredTensor, values: NDArray[np.float32]) -> NDArray[Any]:
    """`values` in the tensor's shape, rounded to nearest at its stored precision; bfloat16 as the uint16 of its bits.

    Raises `CheckpointError` on overflow.
    """
    flat = np.ascontiguousarray(values, np.float32).ravel()
    stored: NDArray[Any]
    if tensor.dtype == "BF16":
        bits = flat.view(np.uint32)
        stored = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)  # ties to even, as torch rounds
        finite = (stored & 0x7F80) != 0x7F80
    else:
        with np.errstate(over="ignore"):
            stored = flat.astype(_FLOATS[tensor.dtype])
        finite = np.isfinite(stored)
    if not np.isfinite(flat).all() or not finite.all():
        raise CheckpointError(f"{tensor.name} does not fit {PRECISION[tensor.dtype]} any more", "use a smaller scale")
    return stored.reshape(tensor.shape)


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
