"""The map of the mark: it shows what was replaced, stays quiet where nothing was, and says where it cannot tell."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from platemark.provenance.watermark.embed import embed
from platemark.provenance.watermark.evidence import Evidence
from platemark.provenance.watermark.key import WatermarkKey
from platemark.provenance.watermark.map import PresenceMap, presence_map
from platemark.provenance.watermark.payload import Payload
from platemark.provenance.watermark.segment import regions, segment

Pixels = NDArray[np.uint8]
KEY = WatermarkKey.from_secret(b"map" + bytes(29))
PAYLOAD = Payload(4242, issuer=7)


def textured(size: int, seed: int, grain: float = 5) -> Pixels:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 215, (size // 16, size // 16, 3)).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))
    return np.clip(smooth + rng.normal(0, grain, smooth.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def marked() -> Pixels:
    return embed(textured(512, 1), PAYLOAD, KEY, rng=np.random.default_rng(1)).image


def ellipse(size: int, share: float, *, at: tuple[float, float] = (0.55, 0.45)) -> NDArray[np.bool_]:
    y, x = np.mgrid[:size, :size] / size
    return np.asarray((y - at[0]) ** 2 + (x - at[1]) ** 2 <= share / np.pi)


def jpeg(picture: Pixels) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=75)
    with Image.open(buffer) as opened:
        return np.asarray(opened.convert("RGB"))


def resized(picture: Pixels) -> Pixels:
    side = round(0.75 * len(picture))
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))


def mapped(picture: Pixels, *, deep: bool = False) -> PresenceMap:
    found = presence_map(picture, KEY, deep=deep)
    assert found is not None
    assert found.detection.payload == PAYLOAD
    return found


def overlap(found: PresenceMap, truth: NDArray[np.bool_]) -> float:
    """Intersection over union."""
    mask = found.mask()
    where = np.asarray(Image.fromarray(truth).resize(mask.shape[::-1], Image.Resampling.NEAREST))
    return float((mask & where).sum() / (mask | where).sum())


@pytest.mark.parametrize("change", [lambda picture: picture, jpeg, resized])
@pytest.mark.parametrize("share", [0.15, 0.3])
def test_a_pasted_part_is_found(marked: Pixels, change: object, share: float) -> None:
    assert callable(change)
    truth = ellipse(512, share)
    edited = np.where(truth[..., None], textured(512, 2), marked)
    found = mapped(change(edited))
    assert overlap(found, truth) >= 0.75
    assert found.regions[0].share == pytest.approx(share, abs=0.05)


def test_a_small_pasted_part_is_found(marked: Pixels) -> None:
    truth = ellipse(512, 0.05)
    assert overlap(mapped(np.where(truth[..., None], textured(512, 2), marked)), truth) >= 0.6


def test_a_part_of_another_marked_picture_is_found(marked: Pixels) -> None:
    other = embed(textured(512, 3), Payload(1, issuer=7), KEY, rng=np.random.default_rng(2)).image
    truth = ellipse(512, 0.2)
    assert overlap(mapped(np.where(truth[..., None], other, marked)), truth) >= 0.75


def test_what_was_filled_smoothly_is_found(marked: Pixels) -> None:
    truth = ellipse(512, 0.15)
    assert overlap(mapped(np.where(truth[..., None], np.uint8(128), marked)), truth) >= 0.75


@pytest.mark.parametrize("change", [lambda picture: picture, jpeg, resized])
def test_an_unedited_picture_has_no_edited_part(marked: Pixels, change: object) -> None:
    assert callable(change)
    found = mapped(change(marked))
    assert found.absent.mean() <= 0.01
    assert found.unknown.mean() <= 0.2


def test_a_turned_and_cut_picture_is_mapped_where_it_now_is(marked: Pixels) -> None:
    truth = ellipse(512, 0.2)
    edited = np.where(truth[..., None], textured(512, 2), marked)

    def turned(picture: Image.Image, resample: Image.Resampling) -> NDArray[np.generic]:
        return np.asarray(picture.rotate(5, resample))[60:-60, 50:-50]

    picture = np.ascontiguousarray(turned(Image.fromarray(edited), Image.Resampling.BICUBIC), dtype=np.uint8)
    where = turned(Image.fromarray(truth.astype(np.uint8)), Image.Resampling.NEAREST) > 0
    assert overlap(mapped(picture, deep=True), where) >= 0.75


def test_flat_parts_that_jpeg_took_the_mark_from_are_not_called_edited() -> None:
    picture = textured(512, 4)
    picture[:, 300:] = 190
    marked = embed(picture, PAYLOAD, KEY, rng=np.random.default_rng(3)).image
    found = mapped(jpeg(jpeg(marked)))
    assert found.absent.mean() <= 0.02


def test_a_small_picture_is_mapped_by_its_blocks() -> None:
    marked = embed(textured(192, 5), PAYLOAD, KEY, rng=np.random.default_rng(4)).image
    truth = ellipse(192, 0.2)
    found = mapped(np.where(truth[..., None], textured(192, 6), marked))
    assert found.detection.layout == "pixel"
    assert overlap(found, truth) >= 0.6
    assert mapped(marked).absent.mean() <= 0.02


def test_no_mark_no_map(marked: Pixels) -> None:
    assert presence_map(textured(512, 1), KEY) is None
    assert presence_map(marked, WatermarkKey.from_secret(b"other" + bytes(27))) is None


def test_the_data_say_what_the_map_says(marked: Pixels) -> None:
    truth = ellipse(512, 0.2)
    found = mapped(np.where(truth[..., None], textured(512, 2), marked))
    data = found.as_dict()
    assert data["grid"] == [32, 32] == [len(data["cells"]), len(data["cells"][0])]
    assert data["block"] == [16.0, 16.0]
    assert "".join(data["cells"]).count("#") == found.absent.sum() == round(data["absent"] * 1024)
    left, top, right, bottom = data["regions"][0]["box"]
    boxed = found.mask().copy()
    boxed[top:bottom, left:right] = False
    assert not boxed.any()
    assert not (found.absent & found.unknown).any()
    assert 0 <= found.confidence.min() <= found.confidence.max() <= 1
    assert found.confidence[found.absent].mean() > 0.8


def test_the_overlay_is_red_where_the_mark_is_absent(marked: Pixels) -> None:
    truth = ellipse(512, 0.2)
    edited = np.where(truth[..., None], textured(512, 2), marked)
    found = mapped(edited)
    shown = found.overlay(edited).astype(int)
    assert shown.shape == edited.shape
    assert (shown[found.mask()][:, 0] > shown[found.mask()][:, 1] + 20).all()
    plain = shown[~found.mask() & ~np.kron(found.unknown, np.ones((16, 16), dtype=bool))]
    assert (plain[:, 0] == plain[:, 2]).all()


def evidence(heard: NDArray[np.float32], expected: NDArray[np.float32]) -> Evidence:
    one = np.ones_like(heard)
    edges = np.arange(heard.shape[0] + 1), np.arange(heard.shape[1] + 1)
    return Evidence(heard, expected, one, 10 * one, one, edges)


def test_cells_that_cannot_tell_are_unknown_unless_their_neighbours_tell() -> None:
    rng = np.random.default_rng(0)
    expected = np.full((24, 24), 4, dtype=np.float32)
    expected[:, 16:] = 0.1
    heard = (expected + rng.normal(size=expected.shape)).astype(np.float32)
    parts = segment(evidence(heard, expected))
    assert parts.unknown[:, 18:].all()
    assert not parts.unknown[:, :15].any()
    assert not parts.absent.any()


def test_noise_alone_makes_no_region() -> None:
    rng = np.random.default_rng(1)
    expected = np.full((32, 32), 3, dtype=np.float32)
    for _ in range(10):
        parts = segment(evidence((expected + rng.normal(size=expected.shape)).astype(np.float32), expected))
        assert not parts.absent.any()


def test_regions_are_numbered_by_their_sides() -> None:
    inside = np.array([[1, 1, 0, 1], [0, 0, 1, 0], [1, 0, 1, 1]], dtype=bool)
    label = regions(inside)
    assert (label > 0).tolist() == inside.tolist()
    assert sorted(np.bincount(label[inside])[1:].tolist()) == [1, 1, 2, 3]
    assert regions(np.ones((3, 3), dtype=bool)).tolist() == [[1] * 3] * 3
    assert not regions(np.zeros((3, 3), dtype=bool)).any()
