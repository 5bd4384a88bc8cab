"""The watermark layer: every held key is tried. Knows nothing of the registry or of credentials."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from platemark.provenance.keyring import held_keys
from platemark.provenance.verify.report import WatermarkLayer
from platemark.provenance.watermark.detect import INCONCLUSIVE, Detection, detect
from platemark.provenance.wild import find_wild

SMALLEST = 16  # pixels a side, below which the detector does not look


def read_watermark(array: NDArray[np.uint8], home: Path, *, deep: bool) -> tuple[WatermarkLayer, Detection | None]:
    """Tries every held key; a detection counts, else the lowest p-value. p-values are corrected for the number of keys tried."""
    keys = held_keys(home)
    if not keys:
        return {"state": "no-key"}, None
    if min(array.shape[:2]) < SMALLEST:
        return {"state": "not-detected", "p_value": 1.0, "detail": f"under {SMALLEST} pixels a side"}, None
    found = detect(array, [key.watermark for key in keys], deep=deep)
    return _layer(found, len(keys), deep), found if found.verdict == "detected" else None


def wild_claim(array: NDArray[np.uint8]) -> dict[str, Any] | None:
    """The open watermark of another program, as an unsigned claim; None where there is none that we know."""
    found = find_wild(array)
    return None if found is None else {"source": "open watermark (dwtDct)", **asdict(found)}


def _layer(found: Detection, keys_tried: int, deep: bool) -> WatermarkLayer:
    """`p_value`: that a picture without any of the marks looked for gives a finding this strong with one of the keys (Bonferroni)."""
    p_value = min(1.0, found.p_value * keys_tried)
    state = "not-detected" if found.verdict == "inconclusive" and p_value >= INCONCLUSIVE else found.verdict
    layer: WatermarkLayer = {"state": state, "p_value": p_value, "keys_tried": keys_tried, "deep": deep}
    if found.payload is None:
        return layer
    return {
        **layer,
        "key_id": found.key_id,
        "layout": found.layout,
        "payload": found.payload.hex,
        "content_id": found.payload.content_id,
        "issuer": found.payload.issuer,
        "symbol_error_rate": found.symbol_error_rate,
        "geometry": found.geometry,
    }
