"""Where in a picture the mark is: a map of cells, so that a pasted face or a redrawn part shows.

Once the payload and the geometry are found, the whole carrier is known. Its correlation with the picture, cell by cell (`evidence`), is
compared with what the mark's own strength would give there (`segment`). A cell that could not tell (flat where compression took the mark,
black, white, very busy) is `unknown`, not `absent`. Neighbours speak for each other: the map is the one that explains all cells with a
short border.

An absent mark says that these pixels were made or changed after marking, or come from elsewhere. It does not say by what: a sticker, an
inpainted part and a strong local blur look alike. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from platemark.provenance.watermark.detect import Detection, detect
from platemark.provenance.watermark.evidence import Evidence, full_evidence, pixel_evidence
from platemark.provenance.watermark.key import WatermarkKey
from platemark.provenance.watermark.payload import Payload
from platemark.provenance.watermark.search import Place, Search, open_search
from platemark.provenance.watermark.segment import Segments, regions, segment

_PRESENT, _UNKNOWN, _ABSENT = ".", "?", "#"
_RED, _BLUE = (214.0, 40.0, 40.0), (70.0, 110.0, 200.0)
_SHADE, _TINT = 0.45, 0.55


@dataclass(frozen=True)
class Region:
    """A connected part without the mark. `box`: (left, top, right, bottom) in pixels; `share` of the picture's cells; `odds`: natural
    logarithm of how much likelier its cells are without a mark than with it."""

    box: tuple[int, int, int, int]
    share: float
    odds: float


@dataclass(frozen=True)
class PresenceMap:
    """The mark's presence, cell by cell. `absent`, `unknown`: bool (rows, columns), never both; the rest holds the mark. `confidence`:
    0 to 1 (rows, columns), the probability that the cell's own evidence gives its verdict. `edges`: pixels at which rows and columns of
    cells begin and end. `detection`: the finding that the map is of."""

    absent: NDArray[np.bool_]
    unknown: NDArray[np.bool_]
    confidence: NDArray[np.float32]
    edges: tuple[NDArray[np.intp], NDArray[np.intp]]
    regions: tuple[Region, ...]
    detection: Detection

    def mask(self) -> NDArray[np.bool_]:
        """The part without the mark, of the picture's own size (H, W)."""
        return _spread(self.absent, self.edges)

    def overlay(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The picture (H, W, 3) in gray, red where the mark is absent and blue where that cannot be told."""
        levels = 255 - _SHADE * (255 - np.arange(256, dtype=np.float32)[:, None].repeat(3, axis=1))
        gray = np.asarray(PIL.Image.fromarray(image).convert("L"))
        shown = levels.astype(np.uint8)[gray]
        for cells, colour in ((self.absent, _RED), (self.unknown, _BLUE)):
            where = _spread(cells, self.edges)
            shown[where] = ((1 - _TINT) * levels + _TINT * np.array(colour)).astype(np.uint8)[gray[where]]
        return np.asarray(shown, dtype=np.uint8)

    def as_dict(self) -> dict[str, Any]:
        """As the JSON line shows it: `block` (height and width of a cell in pixels), `grid` (rows, columns), shares of cells, `regions`,
        and `cells`, a string a row: `.` the mark is there, `#` it is not, `?` unknown."""
        signs = np.where(self.absent, _ABSENT, np.where(self.unknown, _UNKNOWN, _PRESENT))
        return {
            "block": [round(float(np.diff(side).mean()), 1) for side in self.edges],
            "grid": list(self.absent.shape),
            "absent": round(float(self.absent.mean()), 4),
            "unknown": round(float(self.unknown.mean()), 4),
            "regions": [{"box": list(r.box), "share": round(r.share, 4), "odds": round(r.odds, 1)} for r in self.regions],
            "cells": ["".join(row) for row in signs],
        }


def presence_map(image: NDArray[np.uint8], key: WatermarkKey | Sequence[WatermarkKey], *, deep: bool = False) -> PresenceMap | None:
    """Reads a picture, uint8 (H, W, 3), as `detect` does, and maps the mark found; None where none was detected.

    Where two marks of the same key are in one picture, the map is that of the one read, and the other's part counts as absent.
    Raises `InputError` as `detect` does.
    """
    keys = [key] if isinstance(key, WatermarkKey) else list(key)
    return map_of(image, keys, detect(image, keys, deep=deep))


def map_of(image: NDArray[np.uint8], keys: Sequence[WatermarkKey], found: Detection) -> PresenceMap | None:
    """The map of what `detect` has found in this picture with one of these keys; None where that was no mark."""
    key = next((key for key in keys if key.key_id == found.key_id), None)
    if found.payload is None or key is None:
        return None
    evidence = _evidence(image, key, found, found.payload)
    return None if evidence is None else _mapped(evidence, found)


def _evidence(image: NDArray[np.uint8], key: WatermarkKey, found: Detection, payload: Payload) -> Evidence | None:
    if found.layout == "pixel":
        return pixel_evidence(image, key, found.geometry["salt"], found.geometry["step"], payload)
    search = open_search(image)
    place = _place(search, key, payload, deep=found.search == "deep")
    return None if place is None else full_evidence(image, search, key, place, payload)


def _place(search: Search, key: WatermarkKey, payload: Payload, *, deep: bool) -> Place | None:
    """Where the payload reads: the report's geometry is rounded, so the search is gone through again up to there."""
    for stage in search.stages(key, deep=deep):
        for place in stage.places:
            if search.read(key, place).payload == payload:
                return place
    return None


def _mapped(evidence: Evidence, found: Detection) -> PresenceMap:
    parts = segment(evidence)
    certain = 1 / (1 + np.exp(np.where(parts.absent, -parts.odds, parts.odds)))
    confidence = np.where(parts.unknown, 0.5, certain).astype(np.float32)
    return PresenceMap(parts.absent, parts.unknown, confidence, evidence.edges, tuple(_regions(parts, evidence)), found)


def _regions(parts: Segments, evidence: Evidence) -> list[Region]:
    label, found = regions(parts.absent), []
    for number in range(1, int(label.max()) + 1):
        rows, columns = np.nonzero(label == number)
        tops, lefts = evidence.edges
        box = int(lefts[columns.min()]), int(tops[rows.min()]), int(lefts[columns.max() + 1]), int(tops[rows.max() + 1])
        found.append(Region(box, rows.size / label.size, float(parts.odds[rows, columns].sum())))
    return sorted(found, key=lambda region: -region.share)


def _spread(cells: NDArray[np.bool_], edges: tuple[NDArray[np.intp], NDArray[np.intp]]) -> NDArray[np.bool_]:
    return np.asarray(np.repeat(np.repeat(cells, np.diff(edges[0]), axis=0), np.diff(edges[1]), axis=1))
