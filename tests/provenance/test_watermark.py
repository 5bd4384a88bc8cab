"""The watermark in pictures: written within its bounds, read after JPEG, absent where it is absent."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from platemark.errors import InputError, ProvenanceUnavailable
from platemark.provenance.watermark.calibration import TAILS
from platemark.provenance.watermark.channel import psnr
from platemark.provenance.watermark.detect import FALSE_POSITIVES, INCONCLUSIVE, Detection, detect
from platemark.provenance.watermark.embed import Marked, embed
from platemark.provenance.watermark.key import WatermarkKey
from platemark.provenance.watermark.payload import Payload

Picture = NDArray[np.uint8]
KEY, OTHER = (WatermarkKey.from_secret(bytes([n]) * 32) for n in (1, 2))
PAYLOAD = Payload(content_id=123_456_789_012, issuer=9_876, flags=5)


def _shapes(seed: int) -> Picture:
    """Emoji-like: a few flat shapes with outlines on white, drawn at 128."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (128, 128), "white")
    pen = ImageDraw.Draw(image)
    for _ in range(5):
        x, y = (int(v) for v in rng.integers(15, 70, 2))
        box = (x, y, x + int(rng.integers(15, 45)), y + int(rng.integers(15, 45)))
        fill, line = (tuple(int(v) for v in rng.integers(0, 256, 3)) for _ in range(2))
        [pen.ellipse, pen.rectangle][int(rng.integers(2))](box, fill=fill, outline=line, width=2)
    return np.asarray(image)


def _gradient() -> Picture:
    y, x = np.mgrid[:128, :128] / 127
    return np.round(255 * np.stack([x, y, 1 - x * y], -1)).astype(np.uint8)


def _texture() -> Picture:
    noise = np.random.default_rng(3).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(noise).resize((128, 128), Image.Resampling.BICUBIC))


SOURCES: dict[str, Callable[[], Picture]] = {
    "shapes 1": lambda: _shapes(1),
    "shapes 2": lambda: _shapes(2),
    "gradient": _gradient,
    "texture": _texture,
    "white": lambda: np.full((128, 128, 3), 255, np.uint8),
    "black": lambda: np.zeros((128, 128, 3), np.uint8),
    "gray": lambda: np.full((128, 128, 3), 119, np.uint8),
}


def _sized(picture: Picture, width: int, height: int) -> Picture:
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def _jpeg(picture: Picture, quality: int) -> Picture:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def _mark(picture: Picture, payload: Payload = PAYLOAD, seed: int = 0) -> Marked:
    return embed(picture, payload, KEY, rng=np.random.default_rng(seed))


@pytest.fixture(scope="module")
def marked() -> dict[str, tuple[Picture, Marked]]:
    """Every source at 512×512, with its mark."""
    originals = {name: _sized(make(), 512, 512) for name, make in SOURCES.items()}
    return {name: (picture, _mark(picture)) for name, picture in originals.items()}


@pytest.mark.parametrize("name", SOURCES)
def test_a_512_picture_reads_after_png_and_jpeg_75(marked: dict[str, tuple[Picture, Marked]], name: str) -> None:
    original, mark = marked[name]
    assert 41 <= psnr(original, mark.image) <= 48.5
    assert mark.psnr == pytest.approx(psnr(original, mark.image), abs=0.01)
    assert mark.layout == "full"
    assert mark.margin >= 0.6  # after JPEG 50: on pure white only half of every wave fits
    for picture in (mark.image, _jpeg(mark.image, 90), _jpeg(mark.image, 75)):
        found = detect(picture, KEY)
        assert (found.verdict, found.payload, found.layout, found.key_id) == ("detected", PAYLOAD, "full", KEY.key_id)
        assert found.p_value < 1e-6
        assert found.symbol_error_rate is not None
        assert found.symbol_error_rate < 0.35


@pytest.mark.parametrize("name", SOURCES)
def test_another_key_reads_nothing_and_an_unmarked_picture_has_nothing(marked: dict[str, tuple[Picture, Marked]], name: str) -> None:
    original, mark = marked[name]
    for found in (detect(mark.image, OTHER), detect(original, KEY)):
        assert (found.verdict, found.payload, found.symbol_error_rate) == ("not-detected", None, None)
        assert 1e-4 < found.p_value <= 1
        assert found.hypotheses == found.planned


def test_white_stays_white_for_the_most_part(marked: dict[str, tuple[Picture, Marked]]) -> None:
    original, mark = marked["shapes 1"]
    change = original.astype(int) - mark.image
    flat = (original == 255).all(axis=2)
    assert flat.mean() > 0.4
    assert np.abs(change[flat]).max() <= 6
    assert np.abs(change[flat]).mean() < 1
    assert mark.headroom_shift == 0


def test_the_change_beside_a_lone_edge_is_no_stronger_than_in_the_open() -> None:
    picture = np.full((512, 512, 3), 200, np.uint8)
    picture[:, 256:] = 60
    change = np.abs(picture.astype(int) - _mark(picture).image)[..., 0]
    assert change[:, 246:266].mean() < 1.15 * change[:, :200].mean()


@pytest.mark.parametrize(
    ("change", "scale", "rotation", "flip"),
    [
        (lambda p: _sized(p, 384, 384), 1.0, 0, False),
        (lambda p: _sized(p, 1024, 1024), 1.0, 0, False),
        (lambda p: p[:, ::-1], 1.0, 0, True),
        (lambda p: np.rot90(p), 1.0, 90, False),
        (lambda p: p[37:437, 81:501], 1.2492, 0, False),
    ],
    ids=["smaller", "larger", "mirrored", "turned", "cut"],
)
def test_simple_changes_of_geometry_are_found(
    marked: dict[str, tuple[Picture, Marked]], change: Callable[[Picture], Picture], scale: float, rotation: int, flip: bool
) -> None:
    found = detect(np.ascontiguousarray(change(marked["shapes 2"][1].image)), KEY)
    assert (found.verdict, found.payload) == ("detected", PAYLOAD)
    assert found.geometry["scale"] == pytest.approx(scale, abs=0.001)
    assert (found.geometry["rotation"], found.geometry["flip"]) == (rotation, flip)


def test_two_marks_of_one_payload_differ() -> None:
    for side in (512, 128):
        picture = _sized(_shapes(1), side, side)
        first, second = embed(picture, PAYLOAD, KEY), embed(picture, PAYLOAD, KEY)
        assert not np.array_equal(first.image, second.image)
        assert detect(first.image, KEY).geometry != detect(second.image, KEY).geometry
        assert np.array_equal(_mark(picture, seed=4).image, _mark(picture, seed=4).image)


@pytest.mark.parametrize("name", ["shapes 1", "gradient", "texture", "white"])
@pytest.mark.parametrize("size", [(128, 128), (200, 131)])
def test_a_small_picture_gets_the_pixel_layout(name: str, size: tuple[int, int]) -> None:
    original = _sized(SOURCES[name](), *size)
    mark = _mark(original)
    assert (mark.layout, mark.image.shape) == ("pixel", original.shape)
    assert mark.psnr >= 41
    assert 0 <= mark.headroom_shift <= 3
    for picture in (mark.image, _jpeg(mark.image, 90), _jpeg(mark.image, 75)):
        found = detect(picture, KEY)
        assert (found.verdict, found.payload, found.layout) == ("detected", PAYLOAD, "pixel")
    assert detect(mark.image, OTHER).verdict == "not-detected"
    assert detect(original, KEY).verdict == "not-detected"


@pytest.mark.parametrize("name", ["shapes 1", "gradient", "gray"])
def test_the_smallest_pictures_hold_a_mark(name: str) -> None:
    mark = _mark(_sized(SOURCES[name](), 64, 64))
    assert detect(mark.image, KEY).payload == PAYLOAD
    assert mark.psnr >= 41


@pytest.mark.parametrize("size", [(300, 256), (1200, 700)])
def test_other_sizes_keep_their_size(size: tuple[int, int]) -> None:
    mark = _mark(_sized(_shapes(2), *size))
    assert mark.image.shape == (size[1], size[0], 3)
    assert mark.psnr >= 41
    assert detect(_jpeg(mark.image, 75), KEY).payload == PAYLOAD


def test_a_large_picture_is_marked_at_its_own_size_and_reads_when_made_small() -> None:
    mark = _mark(_sized(_shapes(2), 2304, 2048))
    assert mark.image.shape == (2048, 2304, 3)
    assert detect(mark.image, KEY).payload == PAYLOAD
    assert detect(_sized(mark.image, 576, 512), KEY).payload == PAYLOAD


def _unmarked(count: int, side: int) -> list[Detection]:
    pictures = [_sized(make(), side, side) for make in SOURCES.values()] + [_sized(_shapes(n), side, side) for n in range(3, 8)]
    pictures += [_mark(picture).image for picture in pictures[:3]]  # another key's mark is no mark
    rng = np.random.default_rng(side)
    keys = [WatermarkKey.from_secret(rng.bytes(32)) for _ in range(count)]
    return [detect(pictures[n % len(pictures)], key) for n, key in enumerate(keys)]


@pytest.mark.parametrize(("side", "count"), [(512, 90), (256, 120), (96, 120)])
def test_nothing_is_found_where_nothing_is(side: int, count: int) -> None:
    found = _unmarked(count, side)
    assert {one.verdict for one in found} == {"not-detected"}
    # A p-value is honest where it is under x in no more than a share x of the trials (here with three standard deviations of room).
    for level in (0.02, 0.1, 0.5):
        share = np.mean([one.p_value < level for one in found])
        assert share <= level + 3 * np.sqrt(level * (1 - level) / count)


def test_the_p_value_counts_the_whole_search() -> None:
    for tail in TAILS.values():
        assert tail.p_value(0, 40) == 1
        assert tail.p_value(7, 40) < tail.p_value(6, 40) < tail.p_value(6, 4000) < 1
        assert tail.p_value(9, 80) == pytest.approx(2 * tail.p_value(9, 40), rel=1e-6)
        assert tail.p_value(60, 40) > 0
    assert FALSE_POSITIVES < INCONCLUSIVE < 1


def test_pictures_that_cannot_hold_a_mark_are_refused_with_a_remedy() -> None:
    with pytest.raises(ProvenanceUnavailable, match="under 64 px") as refused:
        _mark(np.zeros((63, 400, 3), np.uint8))
    assert "larger" in refused.value.remedy
    noise = np.random.default_rng(0).integers(0, 2, (256, 256, 1), np.uint8) * np.full((1, 1, 3), 255, np.uint8)
    with pytest.raises(ProvenanceUnavailable, match="cannot hold"):
        embed(noise, PAYLOAD, KEY, min_psnr=58, max_psnr=60)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((512, 512), np.uint8),
        np.zeros((512, 512, 4), np.uint8),
        np.zeros((512, 512, 3), np.float32),
        np.zeros((8, 512, 3), np.uint8),
    ],
    ids=["gray", "rgba", "float", "flat"],
)
def test_arrays_of_another_kind_are_refused(array: NDArray[np.uint8]) -> None:
    with pytest.raises(InputError):
        embed(array, PAYLOAD, KEY)
    with pytest.raises(InputError):
        detect(array, KEY)


def test_psnr_bounds_out_of_order_are_refused() -> None:
    with pytest.raises(InputError, match="out of order"):
        embed(np.zeros((256, 256, 3), np.uint8), PAYLOAD, KEY, min_psnr=50, max_psnr=45)
