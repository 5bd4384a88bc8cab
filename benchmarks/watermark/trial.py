"""One trial: mark a picture under a key, change it, read it; what came of it as plain data."""

from __future__ import annotations

import functools
import hashlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.watermark import attacks, images, signal
from benchmarks.watermark.images import Kind, Pixels, Spec, Split
from benchmarks.watermark.table import Record
from platemark.errors import PlatemarkError
from platemark.provenance.watermark.detect import Detection, detect
from platemark.provenance.watermark.embed import embed
from platemark.provenance.watermark.key import WatermarkKey
from platemark.provenance.watermark.payload import Payload

KEYS = 8
ASIDE = (".map", ".null", ".calibration")  # modules that decide nothing of the mark


@dataclass(frozen=True)
class Setting:
    """What all trials of a run share. `psnr`: dB that every mark is brought to; None: as faint as the algorithm itself decides."""

    split: Split
    size: int
    psnr: float | None
    kinds: tuple[Kind, ...]

    def as_dict(self) -> Record:
        named = {"split": self.split, "size": self.size, "psnr": self.psnr, "kinds": list(self.kinds)}
        return {**named, "algorithm": algorithm(), "pictures": images.EDITION}


@dataclass(frozen=True)
class Pair:
    """Picture × key, with the payload that goes into it."""

    number: int
    spec: Spec
    key: int

    @property
    def payload(self) -> Payload:
        rng = np.random.default_rng([self.number, 0xC0DE])
        return Payload(int(rng.integers(1 << 42)), issuer=self.key * 1999 % (1 << 14))


@functools.cache
def keys() -> tuple[WatermarkKey, ...]:
    """The benchmark's keys: public, so never to be used for real."""
    return tuple(WatermarkKey.from_secret(hashlib.sha256(f"platemark benchmark key {n}".encode()).digest()) for n in range(KEYS))


def algorithm(aside: tuple[str, ...] = ASIDE) -> str:
    """A hash over the source of what embeds and detects, so that results of two versions are never mixed."""
    digest = hashlib.sha256()
    for name in sorted(name for name in sys.modules if name.startswith("platemark.provenance.watermark.")):
        source = sys.modules[name].__file__
        digest.update(Path(source).read_bytes() if source and not name.endswith(aside) else b"")
    return digest.hexdigest()[:12]


def pairs(setting: Setting, count: int) -> list[Pair]:
    """The first `count` pairs: pictures in a fixed random order, each with another key when it comes again."""
    specs = images.ordered(setting.split, setting.size, setting.kinds)
    return [Pair(n, specs[n % len(specs)], (n * 5 + n // len(specs)) % KEYS) for n in range(count)]


def mark(picture: Pixels, payload: Payload, key: WatermarkKey, psnr: float | None, seed: int) -> Pixels:
    """The marked picture. Raises `PlatemarkError` where it cannot be marked."""
    bounds = {} if psnr is None else {"min_psnr": psnr, "max_psnr": psnr}
    return embed(picture, payload, key, rng=np.random.default_rng(seed), **bounds).image


def run(setting: Setting, pair: Pair, rows: list[str]) -> list[Record]:
    """The records of one pair: first of the marking, then one a row. A picture that cannot be marked fails in every row."""
    picture, key = images.load(pair.spec), keys()[pair.key]
    began = time.process_time()
    try:
        marked = mark(picture, pair.payload, key, setting.psnr, pair.spec.seed)
    except PlatemarkError as error:
        records: list[Record] = [{"pair": pair.number, "picture": pair.spec.name, "unmarkable": error.message}]
        return records + [{"pair": pair.number, "row": row, "exact": False, "wrong": False, "stage": None} for row in rows]
    spent = 1000 * (time.process_time() - began)
    records = [{"pair": pair.number, "picture": pair.spec.name, "key": pair.key, "embed_ms": round(spent, 1), **quality(picture, marked)}]
    for row in rows:
        changed = attacked(setting, pair, row, picture, marked)
        records.append({"pair": pair.number, "row": row, **read(changed, key, pair.payload)})
    return records


def attacked(setting: Setting, pair: Pair, row: str, picture: Pixels, marked: Pixels) -> Pixels:
    """The marked picture after one row's attack."""
    if row in attacks.ATTACKS:
        return attacks.ATTACKS[row](marked, pair.spec.seed + pair.number)
    if row in attacks.COLLUSION:
        return attacks.collude(marked, _residuals(setting, pair.key, row.endswith("originals")))
    from benchmarks.watermark import regenerate

    return regenerate.CHANGES[row](marked, pair.spec.seed + pair.number)


def read(picture: Pixels, key: WatermarkKey, payload: Payload) -> Record:
    """Fast first, then deep only where fast finds nothing; milliseconds of CPU. `wrong`: a payload was reported and is not the one."""
    began = time.process_time()
    found = detect(picture, key)
    fast = 1000 * (time.process_time() - began)
    deep, stage = None, "fast"
    if found.verdict != "detected":
        began = time.process_time()
        found = detect(picture, key, deep=True)
        deep, stage = 1000 * (time.process_time() - began), "deep"
    return {**judged(found, payload, stage), "fast_ms": round(fast, 1), "deep_ms": None if deep is None else round(deep, 1)}


def judged(found: Detection, payload: Payload, stage: str) -> Record:
    hit = found.verdict == "detected"
    exact = hit and found.payload == payload
    return {
        "exact": exact,
        "wrong": hit and not exact,
        "stage": stage if hit else None,
        "verdict": found.verdict,
        "p": found.p_value,
        "geometry": {name: value for name, value in found.geometry.items() if isinstance(value, int | float | bool)},
    }


def quality(picture: Pixels, marked: Pixels) -> Record:
    """PSNR in dB (of all samples, and of the flat parts alone: 7×7 neighbourhoods that span 4 levels or less) and SSIM."""
    from scipy import ndimage
    from skimage.metrics import structural_similarity

    error = ((picture.astype(np.float32) - marked) ** 2).mean(axis=2)
    plane = picture.astype(np.float32).mean(axis=2)
    flat = ndimage.maximum_filter(plane, 7) - ndimage.minimum_filter(plane, 7) <= 4
    return {
        "psnr": _decibels(error),
        "flat_psnr": _decibels(error[flat]) if flat.mean() > 0.02 else None,
        "ssim": round(float(structural_similarity(picture, marked, channel_axis=2)), 4),
    }


def _decibels(error: NDArray[np.float32]) -> float:
    mean = float(error.mean())
    return round(10 * np.log10(255**2 / mean), 2) if mean > 0 else 99.0


@functools.cache
def _residuals(setting: Setting, key: int, originals: bool) -> NDArray[np.float32]:
    """What the colluders have: residuals of other pictures that the same key marked, (10, size, size, 3)."""
    specs = images.specs(setting.split, setting.size, ("photo",))
    rng = np.random.default_rng([key, 0xA11])
    found = []
    for number in rng.permutation(len(specs))[: attacks.COLLUDERS]:
        picture = images.load(specs[number])
        marked = mark(picture, Payload(int(rng.integers(1 << 42)), issuer=key), keys()[key], setting.psnr, int(rng.integers(1 << 30)))
        found.append(marked.astype(np.float32) - picture if originals else signal.residual(marked))
    return np.stack(found)
