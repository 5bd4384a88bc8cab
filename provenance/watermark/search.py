"""The search for the layout `full`: stages of geometries, scanned, refined and settled, until the caller has read enough.

`direct` costs next to nothing: the picture's own size in eight orientations, and cuts at unchanged scale from originals of usual sizes.
The deep stages cover small affine changes, other aspect ratios, and every angle at 0.3 to 3.3 times the scale. What does not depend on the
key is computed once for all keys. Knows nothing of payloads.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from platemark.provenance.watermark import geometries, refine, scan, spectrum
from platemark.provenance.watermark.calibration import SearchName
from platemark.provenance.watermark.geometries import Stage
from platemark.provenance.watermark.key import WatermarkKey
from platemark.provenance.watermark.layout import PERIOD, carriers, lattice, turns
from platemark.provenance.watermark.reading import Reading, read_carriers
from platemark.provenance.watermark.refine import Places
from platemark.provenance.watermark.samples import Samples, sample
from platemark.provenance.watermark.spectrum import Field

_DIRECT_KEPT = 3
_SETTLED = 4  # places of a stage that the caller sees
_SAME = 0.004, 2.0  # entries of geometries and canonical pixels of shift under which two places are one


@dataclass(frozen=True)
class Place:
    """Where a tile may lie. `matrix` (2, 2): canonical from working pixels; `shift` (2,): canonical pixels; `score`: the pilots'.

    `nominal`: the geometry to report; that of the hypothesis where it is one of a short list, as the climb moves it by some hundredths of a
    degree even where nothing was turned.
    """

    matrix: NDArray[np.float64]
    shift: NDArray[np.float64]
    score: float
    nominal: NDArray[np.float64]

    @classmethod
    def nowhere(cls) -> Place:
        return cls(np.eye(2), np.zeros(2), 0.0, np.eye(2))


@dataclass(frozen=True)
class Found:
    """The best places of a stage, all different, the best first. `hypotheses`: geometries times orientations that the stage tried."""

    stage: str
    places: tuple[Place, ...]
    hypotheses: int


class Search:
    """One picture's search; `field` as `spectrum.prepare` gives it."""

    def __init__(self, field: Field) -> None:
        self.field = field

    def planned(self, name: SearchName) -> int:
        """Hypotheses of the whole search."""
        stages = [self._direct[0], *(self._stages if name == "deep" else ())]
        return len(scan.ORIENTATIONS) * sum(len(stage.matrices) for stage in stages)

    def stages(self, key: WatermarkKey, *, deep: bool) -> Iterator[Found]:
        """The fast search, then where asked the stages of the deep one, as far as the caller goes."""
        yield self.direct(key)
        if deep:
            yield from self.deep(key)

    def read(self, key: WatermarkKey, place: Place) -> Reading:
        """What the data carriers say at one place."""
        return read_carriers(self.received(key, place.matrix, place.shift), key)

    @functools.cached_property
    def samples(self) -> Samples:
        return sample(self.field)

    @functools.cached_property
    def _direct(self) -> tuple[Stage, NDArray[np.complex64]]:
        working = np.sqrt(self.field.values.size / (self.field.height * self.field.width))
        stage = geometries.direct(self.samples.own, working)
        return stage, self.samples.near(stage.matrices, lattice().points[lattice().coarse])

    @functools.cached_property
    def _stages(self) -> list[Stage]:
        return geometries.stages(self.samples.own, self.samples.extent)

    @functools.cached_property
    def _sampled(self) -> dict[str, NDArray[np.complex64]]:
        return {}

    def direct(self, key: WatermarkKey) -> Found:
        """The fast search."""
        stage, values = self._direct
        table = scan.pilots(key, low=False)
        places = _places(stage, scan.scan(values, table)).best(_DIRECT_KEPT)
        exact = refine.settle(self.samples, key, refine.polish(self.samples, key, places, stage.step))
        return Found(stage.name, _distinct(exact, places.matrices), 8 * len(stage.matrices))

    def deep(self, key: WatermarkKey) -> Iterator[Found]:
        """The stages of the deep search, one after the other, as far as the caller asks."""
        table = scan.pilots(key, low=True)
        for stage in self._stages:
            if stage.name not in self._sampled:
                self._sampled[stage.name] = self.samples.near(stage.matrices, table.points)
            places = _places(stage, scan.scan(self._sampled[stage.name], table))
            places = refine.settle(self.samples, key, refine.climb(self.samples, key, places, stage.step))
            yield Found(stage.name, _distinct(places, places.matrices), 8 * len(stage.matrices))

    def received(self, key: WatermarkKey, matrix: NDArray[np.float64], shift: NDArray[np.float64]) -> NDArray[np.complex64]:
        """All carriers (1816,) at one place: real and positive for +1."""
        points = lattice().points
        return np.asarray(self.samples.exact(matrix[None], points)[0] * (carriers(key).phase * turns(points, shift)).conj())


def open_search(image: NDArray[np.uint8]) -> Search:
    """For a picture, uint8 (H, W, 3)."""
    return Search(spectrum.prepare(image))


def _distinct(places: Places, nominal: NDArray[np.float64]) -> tuple[Place, ...]:
    """Best first, without those that are the same as a better one."""
    kept: list[Place] = []
    for n in np.argsort(-places.scores):
        one = Place(places.matrices[n], places.shifts[n], float(places.scores[n]), nominal[n])
        if not any(_same(one, other) for other in kept):
            kept.append(one)
        if len(kept) == _SETTLED:
            break
    return tuple(kept)


def _same(one: Place, other: Place) -> bool:
    apart = np.abs((one.shift - other.shift + PERIOD / 2) % PERIOD - PERIOD / 2)
    return bool(np.abs(one.matrix - other.matrix).max() < _SAME[0] and apart.max() < _SAME[1])


def _places(stage: Stage, hits: scan.Hits) -> Places:
    orientation = np.stack(scan.ORIENTATIONS)[hits.orientation]
    return Places(orientation @ stage.matrices.astype(np.float64), hits.shift, hits.score.astype(np.float64))
