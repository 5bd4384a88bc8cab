"""Reads the mark: hypotheses of layout and geometry → pilots → soft decoding → keyed check → verdict.

"Not detected" says nothing about where a picture comes from: it may never have been marked, or the mark may have been lost.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from platemark.errors import InputError
from platemark.provenance.watermark import dither, search, spectrum
from platemark.provenance.watermark.finding import Finding, Reading, read
from platemark.provenance.watermark.key import WatermarkKey
from platemark.provenance.watermark.layout import LayoutName, layout_for
from platemark.provenance.watermark.payload import CHECK_BITS, Payload

Verdict = Literal["detected", "inconclusive", "not-detected"]
FALSE_POSITIVES = 1e-6  # per picture and key, over the whole search
INCONCLUSIVE = 1e-4  # pilots this unlikely by chance over the whole search, though nothing could be read
_READINGS = 4  # hypotheses decoded at most: each may pass the check by chance
_SMALLEST = 16


@dataclass(frozen=True)
class Detection:
    """What was found with one key.

    `p_value`: the probability that a picture without this key's mark gives a finding this strong somewhere in the whole search (by its
    pilots, times the check where it passed). `symbol_error_rate`: share of carriers that say the opposite of the word, None where nothing
    was read. `geometry` (also of the best hypothesis where nothing was read): for `full`, `scale` (of the tile, against that of a picture
    marked at this size), `rotation` (degrees), `flip`, `shift` (of the tile, canonical pixels); for `pixel`, `step` and `salt`.
    `hypotheses`: how many were tried; `score`: the best one's pilot statistic, N(0, 1) by chance at one shift.
    """

    verdict: Verdict
    payload: Payload | None
    p_value: float
    key_id: str
    layout: LayoutName
    symbol_error_rate: float | None
    geometry: dict[str, Any]
    hypotheses: int
    score: float


def detect(image: NDArray[np.uint8], key: WatermarkKey) -> Detection:
    """Searches a picture, uint8 (H, W, 3), for the mark of one key.

    `detected` only where the keyed check passes and the p-value of the whole search is under 1e-6. Raises `InputError` for another array.
    """
    plane = spectrum.luma(require_picture(image))
    sources: list[Iterable[Finding]] = [search.findings(plane, key)]
    planned = len(search.plan(*plane.shape))
    if layout_for(*plane.shape) == "pixel":
        sources.insert(0, dither.findings(plane, key))
        planned += dither.HYPOTHESES
    return _decide(itertools.chain(*sources), planned, key)


def require_picture(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The array itself. Raises `InputError` unless it is uint8 (H, W, 3) of 16 pixels a side or more."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError("the watermark needs a uint8 RGB picture of shape (height, width, 3)", "convert the picture to 8-bit RGB")
    if min(image.shape[:2]) < _SMALLEST:
        raise InputError(f"the picture is under {_SMALLEST} pixels a side", "use a larger picture")
    return image


def _decide(findings: Iterable[Finding], planned: int, key: WatermarkKey) -> Detection:
    """Reads at once the first hypothesis, where the mark most likely lies, and those whose pilots say so; the best others at the end."""
    tried: list[Finding] = []
    unread: list[Finding] = []
    left = _READINGS
    for finding in findings:
        tried.append(finding)
        if left and (len(tried) == 1 or finding.p_value * planned < INCONCLUSIVE):
            left -= 1
            reading = read(finding.symbols(), key)
            if reading.payload is not None:
                return _report(finding, planned, len(tried), key, reading)
        else:
            unread.append(finding)
    for finding in sorted(unread, key=_chance)[:left]:
        reading = read(finding.symbols(), key)
        if reading.payload is not None:
            return _report(finding, planned, len(tried), key, reading)
    return _report(min(tried, key=_chance), planned, len(tried), key, None)


def _chance(finding: Finding) -> float:
    return finding.p_value


def whole_search(single: float, planned: int, *, checked: bool) -> float:
    """p-value over the whole search, from that of its best hypothesis: one of `planned` does as well by chance and, where the check passed,
    one of the readings passes it too. The two are independent: pilots, symbols and check have keys of their own."""
    pilots = -math.expm1(planned * math.log1p(-min(single, 1 - 1e-12)))
    return max(pilots * (_READINGS * 2.0**-CHECK_BITS if checked else 1.0), 1e-300)


def _report(best: Finding, planned: int, tried: int, key: WatermarkKey, reading: Reading | None) -> Detection:
    p_value = whole_search(best.p_value, planned, checked=reading is not None)
    unread: Verdict = "inconclusive" if p_value < INCONCLUSIVE else "not-detected"
    return Detection(
        verdict="detected" if reading and p_value < FALSE_POSITIVES else unread,
        payload=reading.payload if reading else None,
        p_value=p_value,
        key_id=key.key_id,
        layout=best.layout,
        symbol_error_rate=reading.symbol_error_rate if reading else None,
        geometry=best.geometry,
        hypotheses=tried,
        score=round(best.score, 2),
    )
