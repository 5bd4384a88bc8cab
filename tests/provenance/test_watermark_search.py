"""The deep search: turned, cut, stretched and framed pictures; several keys; what averaging an issuer's pictures leaves."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from platemark.errors import InputError
from platemark.provenance.watermark import geometries, scan
from platemark.provenance.watermark.detect import detect
from platemark.provenance.watermark.embed import embed
from platemark.provenance.watermark.key import WatermarkKey
from platemark.provenance.watermark.layout import COARSE, SYMBOLS, carriers, lattice
from platemark.provenance.watermark.payload import Payload
from platemark.provenance.watermark.report import geometry_of
from platemark.provenance.watermark.search import open_search

Picture = NDArray[np.uint8]
KEYS = [WatermarkKey.from_secret(bytes([n]) * 32) for n in range(4)]
PAYLOAD = Payload(content_id=42_000_000_001, issuer=321)


def scene(seed: int, width: int = 512, height: int = 512) -> Picture:
    """Smooth colour, blobs and grain: as busy as a photograph."""
    rng = np.random.default_rng(seed)
    layers = [rng.normal(0, sigma, (side, side, 3)) for side, sigma in ((5, 60.0), (24, 25.0), (140, 10.0))]
    image = 128 + sum(np.stack([_enlarge(layer[..., c], width, height) for c in range(3)], axis=-1) for layer in layers)
    return np.clip(image, 0, 255).astype(np.uint8)


def _enlarge(layer: NDArray[np.float64], width: int, height: int) -> NDArray[np.float32]:
    return np.asarray(Image.fromarray(layer.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def marked() -> Picture:
    return embed(scene(1), PAYLOAD, KEYS[0], min_psnr=42, max_psnr=42, rng=np.random.default_rng(0)).image


def turned(picture: Picture) -> Picture:
    return np.asarray(Image.fromarray(picture).rotate(33, Image.Resampling.BICUBIC, expand=True, fillcolor=(255,) * 3))


def cut_and_enlarged(picture: Picture) -> Picture:
    return np.asarray(Image.fromarray(picture[100:420, 60:430]).resize((500, 432), Image.Resampling.BICUBIC))


def widened(picture: Picture) -> Picture:
    return np.asarray(Image.fromarray(picture).resize((573, 512), Image.Resampling.BICUBIC))


def framed(picture: Picture) -> Picture:
    page = np.full((700, 760, 3), 255, np.uint8)
    page[90 : 90 + 400, 200 : 200 + 400] = np.asarray(Image.fromarray(picture).resize((400, 400), Image.Resampling.BICUBIC))
    return page


def skewed(picture: Picture) -> Picture:
    return np.asarray(
        Image.fromarray(picture).transform(
            (512, 512), Image.Transform.AFFINE, (1.03, 0.045, -20, -0.035, 0.98, 14), Image.Resampling.BICUBIC
        )
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (turned, {"rotation": 33, "flip": False, "aspect": 1}),
        (lambda p: turned(p[:, ::-1]), {"rotation": 33, "flip": True, "aspect": 1}),
        (cut_and_enlarged, {"scale": 1.35 * 512 / math.sqrt(500 * 432), "rotation": 0, "flip": False}),
        (widened, {"aspect": 573 / 512, "rotation": 0}),
        (framed, {"scale": 400 / math.sqrt(700 * 760), "rotation": 0, "aspect": 1}),
        (skewed, {"flip": False}),
    ],
    ids=["turned", "mirrored and turned", "cut and enlarged", "widened", "on a page", "skewed"],
)
def test_the_deep_search_finds_what_the_fast_one_does_not(
    marked: Picture, change: Callable[[Picture], Picture], expected: dict[str, float | bool]
) -> None:
    picture = np.ascontiguousarray(change(marked))
    assert detect(picture, KEYS[0]).verdict == "not-detected"
    found = detect(picture, KEYS[0], deep=True)
    assert (found.verdict, found.payload, found.search) == ("detected", PAYLOAD, "deep")
    assert found.p_value < 1e-6
    assert found.hypotheses <= found.planned
    for name, value in expected.items():
        tolerance = {"rotation": 0.3, "scale": 0.006, "aspect": 0.008}.get(name, 0)
        distance = (found.geometry[name] - value + 180) % 360 - 180 if name == "rotation" else found.geometry[name] - value
        assert abs(distance) <= tolerance, name


def test_an_unmarked_picture_and_another_key_have_nothing_in_the_whole_search(marked: Picture) -> None:
    for picture, key in ((scene(2), KEYS[0]), (marked, KEYS[1]), (turned(marked), KEYS[2])):
        found = detect(picture, key, deep=True)
        assert (found.verdict, found.payload, found.symbol_error_rate) == ("not-detected", None, None)
        assert found.hypotheses == found.planned
        assert found.p_value > 1e-4


def test_of_several_keys_the_right_one_is_named(marked: Picture) -> None:
    assert detect(marked, KEYS).key_id == KEYS[0].key_id
    found = detect(turned(marked), KEYS[::-1], deep=True)
    assert (found.key_id, found.payload) == (KEYS[0].key_id, PAYLOAD)
    assert detect(marked, KEYS[1:]).verdict == "not-detected"
    with pytest.raises(InputError, match="no watermark key"):
        detect(marked, [])


def test_averaging_an_issuers_marks_does_not_take_them_off() -> None:
    originals = [scene(n) for n in range(10, 16)]
    marks = [embed(one, Payload(n, issuer=7), KEYS[0], min_psnr=42, max_psnr=42) for n, one in enumerate(originals)]
    residual = np.stack([mark.image.astype(np.float32) - one for mark, one in zip(marks, originals, strict=True)])
    mean = residual.mean(axis=0)
    mean *= residual.std() / mean.std()
    for number in (0, 3):
        attacked = np.clip(np.rint(marks[number].image - mean), 0, 255).astype(np.uint8)
        assert detect(attacked, KEYS[0]).payload == Payload(number, issuer=7)


def test_a_fixed_strength_is_kept() -> None:
    weak, strong = (embed(scene(3), PAYLOAD, KEYS[0], strength=level, rng=np.random.default_rng(1)) for level in (0.8, 1.6))
    assert (weak.strength, strong.strength) == (0.8, 1.6)
    assert weak.psnr == pytest.approx(strong.psnr + 6.02, abs=0.8)  # rounding adds to the weak one
    with pytest.raises(InputError, match="strength"):
        embed(scene(3), PAYLOAD, KEYS[0], strength=9)


def test_the_lattice_is_public_and_its_pilots_symmetric() -> None:
    net = lattice()
    assert net.data.size == 3 * SYMBOLS
    assert sorted(np.concatenate([net.coarse, net.fine, net.data]).tolist()) == list(range(len(net.points)))
    assert not (net.points[net.coarse] % COARSE).any()
    points = {tuple(point) for point in net.points[net.coarse].tolist()}
    both = points | {(-y, -x) for y, x in points}
    assert len(scan.ORIENTATIONS) == 8
    for orientation in scan.ORIENTATIONS:
        assert {tuple(orientation @ point) for point in np.array(sorted(both))} == both
    keyed = carriers(KEYS[0])
    assert (np.bincount(keyed.symbol, minlength=SYMBOLS) == 3).all()
    assert np.abs((keyed.phase * carriers(KEYS[1]).phase.conj()).mean()) < 0.1


def test_the_scan_covers_scale_and_angle_without_gaps() -> None:
    own = np.eye(2)
    similar = geometries.stages(own, 512)[-1]
    rng = np.random.default_rng(0)
    for _ in range(50):
        scale, angle = math.exp(rng.uniform(math.log(0.31), math.log(3.2))), rng.uniform(0, math.pi / 2)
        wanted = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) / scale
        near = np.abs(similar.matrices - wanted).max(axis=(1, 2)).min() * scale
        assert near <= 0.75 * similar.step * max(1, scale)


def test_a_geometry_is_named_as_people_say_it() -> None:
    angle = math.radians(20)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])  # counter-clockwise, rows first
    made = turn.T @ np.diag([1.0, 1.1]) * 1.3
    named = geometry_of(np.linalg.inv(made), np.eye(2), np.array([130.0, -3.0]))
    assert named["flip"] is False
    assert named["shift"] == [2, 125]
    assert named["rotation"] == pytest.approx(20, abs=0.01)
    assert named["aspect"] == pytest.approx(1.1, abs=1e-3)
    assert named["scale"] == pytest.approx(1.3 * math.sqrt(1.1), abs=1e-3)


def test_one_search_serves_several_keys() -> None:
    search = open_search(scene(4))
    first = [found.places[0].score for found in search.stages(KEYS[0], deep=True)]
    assert first != [found.places[0].score for found in search.stages(KEYS[1], deep=True)]
    assert first == [found.places[0].score for found in search.stages(KEYS[0], deep=True)]
    assert search.planned("deep") > search.planned("fast") > 0
