"""Keeps text embeddings between runs, so that a policy's texts are embedded once. Knows no CLIP: it is given a function.

A cache file that is missing, damaged or not these texts' own is made anew; it can make a check faster, never different.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
_PROBES = 4
_SAME = 1e-3  # how far a stored row may be from the same text embedded now


def cached_embeddings(embed: Callable[[Sequence[str]], Rows], texts: Sequence[str], identity: str, folder: Path | None) -> Rows:
    """`embed(texts)`, float32 (N, D), from `folder` where it lies there.

    `identity` says everything else that decides the result (the model, the templates). The first rows (a policy's own concepts) and the
    last are embedded anew and compared, so that a file which holds something else is not believed.
    """
    if folder is None:
        return embed(texts)
    key = hashlib.sha256(json.dumps([identity, list(texts)]).encode()).hexdigest()
    path = folder / f"texts-{key[:32]}.npy"
    stored = _read(path, len(texts))
    if stored is not None and _believable(stored, embed, texts):
        return stored
    rows = embed(texts)
    _write(path, rows)
    return rows


def _read(path: Path, count: int) -> Rows | None:
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = isinstance(rows, np.ndarray) and rows.dtype == np.float32 and rows.ndim == 2 and len(rows) == count
    return rows if fits and bool(np.isfinite(rows).all()) else None


def _believable(stored: Rows, embed: Callable[[Sequence[str]], Rows], texts: Sequence[str]) -> bool:
    probes = sorted({*range(min(_PROBES, len(texts))), len(texts) - 1})
    now = embed([texts[i] for i in probes])
    unit = np.abs(np.linalg.norm(stored, axis=1) - 1) < _SAME
    return bool(unit.all()) and now.shape == stored[probes].shape and float(np.abs(now - stored[probes]).max()) < _SAME


def _write(path: Path, rows: Rows) -> None:
    """Whole or not at all; a folder that cannot be written to costs time, not correctness."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".npy")
        with os.fdopen(handle, "wb") as file:
            np.save(file, rows, allow_pickle=False)
        Path(name).replace(path)
    except OSError:
        return
