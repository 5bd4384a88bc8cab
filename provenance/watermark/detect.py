"""Reads the mark: hypotheses of layout and geometry → pilots → soft decoding → keyed check → verdict.

"Not detected" says nothing about where a picture comes from: it may never have been marked, or the mark may have been lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from platemark.errors import InputError
from platemark.provenance.watermark import code, dither, spectrum
from platemark.provenance.watermark.calibration import TAILS, SearchName
from platemark.provenance.watermark.key import ALGORITHM, WatermarkKey
from platemark.provenance.watermark.layout import LayoutName, layout_for
from platemark.provenance.watermark.payload import CHECK_BITS, PAYLOAD_BITS, Payload
from platemark.provenance.watermark.reading import Reading
from platemark.provenance.watermark.report import geometry_of
from platemark.provenance.watermark.search import Place, Search, open_search

Verdict = Literal["detected", "inconclusive", "not-detected"]
FALSE_POSITIVES = 1e-6  # per picture and key, over the whole search
INCONCLUSIVE = 1e-4  # pilots this unlikely by chance over the whole search, though nothing could be read
_READINGS = {"fast": 2, "deep": 14}  # places decoded at most: each word of each list may pass the check by chance
_READINGS_OF_STAGE = {"direct": 2}  # three of each other
_PIXEL_READINGS = 4
_WORTH_READING = 4.8  # pilot statistic under which a place of the deep search is not decoded
_SMALLEST = 16


@dataclass(frozen=True)
class Detection:
    """What was found with one key.

    `p_value`: the probability that a picture without this key's mark gives a finding this strong somewhere in the whole search (by its
    pilots, times the check where it passed). `symbol_error_rate`: share of carriers that say the opposite of the word, None where nothing
    was read. `geometry` (also of the best hypothesis where nothing was read): for `full`, `scale` (of the tile, against that of a picture
    marked at this size), `rotation` (degrees, counter-clockwise), `flip`, `aspect` (width over height, against the original's), `skew`,
    `shift` (of the tile from the centre, canonical pixels); for `pixel`, `step` and `salt`. `version`: of the algorithm, which the key's
    pilots carry. `search`: `fast` or `deep`; `hypotheses`: how many of `planned` were tried; `score`: the best one's pilot statistic.
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
    planned: int = 0
    search: SearchName = "fast"
    version: int = ALGORITHM


def detect(image: NDArray[np.uint8], key: WatermarkKey | Sequence[WatermarkKey], *, deep: bool = False) -> Detection:
    """Searches a picture, uint8 (H, W, 3), for the mark of one of the keys; what is found with none is reported of the likeliest.

    Without `deep`: the picture's own geometry (any resize, mirrored or turned by quarters), and cuts at unchanged scale from usual sizes.
    With it: every angle, 0.3 to 3.3 times the scale, other aspect ratios, slight shear and perspective. `detected` only where the keyed
    check passes and the p-value of the whole search is under 1e-6. Raises `InputError` for another array or no key.
    """
    keys = [key] if isinstance(key, WatermarkKey) else list(key)
    if not keys:
        raise InputError("no watermark key was given", "make one with `platemark keys init`")
    require_picture(image)
    name: SearchName = "deep" if deep else "fast"
    if layout_for(image.shape[0], image.shape[1]) == "pixel":
        small = [_pixel(spectrum.luma(image), one, name) for one in keys]
        if any(one.verdict == "detected" for one in small):
            return min(small, key=_rank)
    search = open_search(image)
    found = [_full(search, one, name, deep=False) for one in keys]
    if deep and not any(one.verdict == "detected" for one in found):
        found = [_full(search, one, name, deep=True) for one in keys]
    return min(found, key=_rank)


def _rank(found: Detection) -> tuple[int, float]:
    return ("detected", "inconclusive", "not-detected").index(found.verdict), found.p_value


def require_picture(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The array itself. Raises `InputError` unless it is uint8 (H, W, 3) of 16 pixels a side or more."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError("the watermark needs a uint8 RGB picture of shape (height, width, 3)", "convert the picture to 8-bit RGB")
    if min(image.shape[:2]) < _SMALLEST:
        raise InputError(f"the picture is under {_SMALLEST} pixels a side", "use a larger picture")
    return image


def _full(search: Search, key: WatermarkKey, name: SearchName, *, deep: bool) -> Detection:
    """Reads the best place of the fast search in any case, and those of all stages that stand out; stops at the first that passes."""
    tried, best = 0, Place.nowhere()
    for found in search.stages(key, deep=deep):
        tried += found.hypotheses
        best = max(best, found.places[0], key=lambda place: place.score)
        worth = [place for n, place in enumerate(found.places) if place.score >= _WORTH_READING or (found.stage == "direct" and n == 0)]
        for place in worth[: _READINGS_OF_STAGE.get(found.stage, 3)]:
            reading = search.read(key, place)
            if reading.payload is not None:
                return _report(search, place, tried, key, name, reading)
    return _report(search, best, tried, key, name, None)


def _report(search: Search, place: Place, tried: int, key: WatermarkKey, name: SearchName, reading: Reading | None) -> Detection:
    planned = search.planned(name)
    p_value = _joint(TAILS[name].p_value(place.score, planned), _READINGS[name], reading)
    geometry = geometry_of(place.nominal, search.samples.own, place.shift)
    return Detection(
        *_verdict(p_value, reading), p_value, key.key_id, "full", _errors(reading), geometry, tried, round(place.score, 2), planned, name
    )


def _pixel(plane: NDArray[np.float32], key: WatermarkKey, name: SearchName) -> Detection:
    """The best hypotheses of the pixel layout, read."""
    findings = sorted(dither.findings(plane, key), key=lambda finding: finding.p_value)
    best, reading = findings[0], None
    for finding in findings[:_PIXEL_READINGS]:
        one = finding.symbols().read(key)
        if one.payload is not None:
            best, reading = finding, one
            break
    pilots = -math.expm1(len(findings) * math.log1p(-min(best.p_value, 1 - 1e-12)))
    p_value, count = _joint(pilots, _PIXEL_READINGS, reading), len(findings)
    score = round(best.score, 2)
    return Detection(*_verdict(p_value, reading), p_value, key.key_id, "pixel", _errors(reading), best.geometry, count, score, count, name)


def _joint(pilots: float, readings: int, reading: Reading | None) -> float:
    """p-value of the whole search: of its pilots and, where the check passed, of reading such a word by chance. The two are independent:
    pilots, symbols and check have keys of their own.

    Of a picture without the mark, any given word's statistic is a sum of independent a·cos(uniform), so that P(score > z) ≤ exp(-z²/2)
    (its moment generating function is I0(ta) ≤ exp(t²a²/4)); there are 2^64 words with a valid check, and some places are read. The check
    alone gives a second bound: every word of every list passes it with probability 2^-24.
    """
    if reading is None:
        return pilots
    word = math.exp(min(0.0, math.log(readings) + PAYLOAD_BITS * math.log(2) - max(reading.score, 0.0) ** 2 / 2))
    return max(pilots * min(word, readings * code.LIST * 2.0**-CHECK_BITS), 1e-300)


def _verdict(p_value: float, reading: Reading | None) -> tuple[Verdict, Payload | None]:
    if reading is not None and p_value < FALSE_POSITIVES:
        return "detected", reading.payload
    return ("inconclusive" if p_value < INCONCLUSIVE else "not-detected"), None


def _errors(reading: Reading | None) -> float | None:
    return None if reading is None else round(reading.symbol_error_rate, 4)
