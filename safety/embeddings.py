"""Keeps text embeddings between runs, so that a policy's texts are embedded once. Knows no CLIP: it is given a function.

A cache file is a .npy file with a sha256 behind it, over the texts, what embeds them, and the rows. One that is missing, damaged or not
these texts' own is made anew. The sha256 is no signature: of a file forged on purpose, only the rows that are embedded anew are checked.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
_DIGEST = 32  # bytes
_SAME = 1e-3  # how far a stored row may be from the same text embedded now


def cached_embeddings(
    embed: Callable[[Sequence[str]], Rows], texts: Sequence[str], identity: str, folder: Path | None, probes: int
) -> Rows:
    """`embed(texts)`, float32 (N, D), from `folder` where it lies there.

    `identity` says everything else that decides the result (the model, the templates). The first `probes` rows (a policy's own concepts:
    few, and what the check stands on) and the last are embedded anew and compared; the file's sha256 ties all others.
    """
    if folder is None:
        return embed(texts)
    key = hashlib.sha256(json.dumps([identity, list(texts)]).encode())
    path = folder / f"texts-{key.hexdigest()[:32]}.npy"
    stored = _read(path, key.digest(), len(texts))
    if stored is not None and _believable(stored, embed, texts, probes):
        return stored
    rows = embed(texts)
    _write(path, key.digest(), rows)
    return rows


def _read(path: Path, key: bytes, count: int) -> Rows | None:
    try:
        content = path.read_bytes()
        data, digest = content[:-_DIGEST], content[-_DIGEST:]
        if digest != hashlib.sha256(key + data).digest():
            return None
        rows = np.load(io.BytesIO(data), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = isinstance(rows, np.ndarray) and rows.dtype == np.float32 and rows.ndim == 2 and len(rows) == count
    return rows if fits and bool(np.isfinite(rows).all()) else None


def _believable(stored: Rows, embed: Callable[[Sequence[str]], Rows], texts: Sequence[str], probes: int) -> bool:
    places = sorted({*range(min(probes, len(texts))), len(texts) - 1})
    now = embed([texts[i] for i in places])
    unit = np.abs(np.linalg.norm(stored, axis=1) - 1) < _SAME
    return bool(unit.all()) and now.shape == stored[places].shape and float(np.abs(now - stored[places]).max()) < _SAME


def _write(path: Path, key: bytes, rows: Rows) -> None:
    """Whole or not at all; a folder that cannot be written to costs time, not correctness."""
    buffer = io.BytesIO()
    np.save(buffer, rows, allow_pickle=False)
    data = buffer.getvalue()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".npy")
        with os.fdopen(handle, "wb") as file:
            file.write(data + hashlib.sha256(key + data).digest())
        Path(name).replace(path)
    except OSError:
        return
