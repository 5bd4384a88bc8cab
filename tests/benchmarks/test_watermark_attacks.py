"""The attacks do what their names say, the same for a seed; the pictures of the two halves come from different photographs."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("scipy")
pytest.importorskip("skimage")

from benchmarks.watermark import attacks, geometry, images, signal

Pixels = np.ndarray
SLOW = {"denoise-nlm-10", "denoise-nlm-20", "noise-25-denoise-nlm-20"}


@pytest.fixture(scope="module")
def picture() -> Pixels:
    rng = np.random.default_rng(0)
    coarse = rng.integers(40, 215, (12, 15, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((240, 192), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("name", [name for name in attacks.ATTACKS if name not in SLOW])
def test_every_attack_gives_a_picture_and_the_same_for_a_seed(name: str, picture: Pixels) -> None:
    before = picture.copy()
    attack = attacks.ATTACKS[name]
    made, again = attack(picture, 7), attack(picture, 7)
    assert made.dtype == np.uint8
    assert made.ndim == 3
    assert made.shape[2] == 3
    assert np.array_equal(made, again)
    assert np.array_equal(picture, before), "the marked picture serves the next attack"
    assert name == "none" or made.shape != picture.shape or not np.array_equal(made, picture)


def test_every_row_of_the_issues_table_has_an_attack_and_its_target() -> None:
    wanted = {
        "none": 0.995, "gray": 0.995, "flip": 0.995, "rotate-90": 0.995, "jpeg-50": 0.99, "jpeg-30": 0.97, "jpeg-20": 0.90, "webp-50": 0.97,
        "resize-50": 0.99, "resize-200": 0.99, "resize-25": 0.90, "crop-50": 0.98, "crop-25": 0.90, "crop-10": 0.60,
        "rotate-any-keep": 0.97, "rotate-any-expand": 0.97, "rotate-1": 0.97, "blur-2": 0.98, "median-3": 0.98, "noise-25": 0.95,
        "screenshot": 0.95, "page-screenshot": 0.95, "print-like": 0.95, "social": 0.95, "aspect-85": 0.90, "aspect-115": 0.90,
        "perspective-3": 0.80, "denoise-nlm-10": 0.85, "meme": 0.85,
    }  # fmt: skip
    assert {name: attacks.ATTACKS[name].target for name in wanted} == wanted
    assert attacks.COLLUSION["average-10"] == 0.90


@pytest.mark.parametrize(("name", "share"), [("crop-90", 0.9), ("crop-50", 0.5), ("crop-10", 0.1)])
def test_crops_keep_the_area_that_they_say(name: str, share: float, picture: Pixels) -> None:
    for seed in range(5):
        made = attacks.ATTACKS[name](picture, seed)
        assert made.shape[0] * made.shape[1] / (picture.shape[0] * picture.shape[1]) == pytest.approx(share, rel=0.05)


def test_sizes_after_resizing_and_changing_the_aspect(picture: Pixels) -> None:
    shape = {
        name: attacks.ATTACKS[name](picture, 1).shape[:2] for name in ("resize-25", "resize-200", "aspect-85", "rotate-90", "rotate-15")
    }
    assert shape["resize-25"] == (48, 60)
    assert shape["resize-200"] == (384, 480)
    assert shape["aspect-85"] == (192, 204)
    assert shape["rotate-90"] == (240, 192)
    assert shape["rotate-15"][0] < 192


def test_the_inscribed_rectangle_has_no_corner_of_the_canvas() -> None:
    white = np.full((200, 300, 3), 200, np.uint8)
    for angle in (1.0, 5.0, 15.0, 45.0, 77.0, 133.0):
        made = geometry.rotate(white, np.random.default_rng(0), angle, "inscribed")
        assert (made > 150).all() == True, angle  # noqa: E712 - numpy's own bool
        assert (np.abs(made.astype(int) - 200) <= 1).all(), angle


def test_a_warp_moves_the_corners_where_it_should() -> None:
    picture = np.zeros((100, 100, 3), np.uint8)
    picture[20:24, 20:24] = 255
    corners = np.array([(0, 0), (100, 0), (100, 100), (0, 100)], dtype=float)
    moved = geometry.warp(picture, corners, corners + 10, 0)
    rows, columns = np.nonzero(moved[..., 0] > 128)
    assert (rows.mean(), columns.mean()) == (pytest.approx(31.5, abs=0.5), pytest.approx(31.5, abs=0.5))


def test_compression_gets_worse_with_lower_quality(picture: Pixels) -> None:
    errors = [float(((signal.jpeg(picture, q).astype(int) - picture) ** 2).mean()) for q in (95, 50, 10)]
    assert errors == sorted(errors)
    assert len(set(errors)) == 3


def test_what_all_residuals_share_is_taken_away(picture: Pixels) -> None:
    """A fixed pattern dies of averaging; one that is different each time is hardly touched."""
    rng = np.random.default_rng(1)
    fixed = rng.normal(0, 2, (10, 192, 240, 3))
    fixed[:] = fixed[0]
    marked = np.clip(picture.astype(float) + fixed[0], 0, 255)
    left = attacks.collude(marked.astype(np.uint8), fixed.astype(np.float32)) - picture.astype(float)
    assert np.abs((left * fixed[0]).mean()) < 0.3 * (fixed[0] ** 2).mean()
    own = rng.normal(0, 2, (10, 192, 240, 3)).astype(np.float32)
    left = attacks.collude(marked.astype(np.uint8), own) - picture.astype(float)
    assert (left * fixed[0]).mean() > 0.7 * (fixed[0] ** 2).mean()


def test_strong_denoising_takes_noise_away(picture: Pixels) -> None:
    noisy = signal.noise(picture, np.random.default_rng(0), 10)[:96, :96]
    clean = picture[:96, :96].astype(int)
    assert ((signal.denoise(noisy, 20) - clean) ** 2).mean() < 0.6 * ((noisy - clean) ** 2).mean()


def test_the_halves_share_no_photograph() -> None:
    tune, report = (set(images.half(split)) for split in ("tune", "report"))
    assert tune
    assert report
    assert not tune & report
    for split, other in (("tune", report), ("report", tune)):
        used = {source for spec in images.specs(split, 512) for source in spec.sources}
        assert used
        assert not used & other


def test_names_are_unique_and_pictures_repeatable() -> None:
    specs = [spec for split in ("tune", "report") for spec in images.specs(split, 256)]
    assert len({spec.name for spec in specs}) == len({spec.seed for spec in specs}) == len(specs)
    photo = next(spec for spec in specs if spec.kind == "photo" and spec.sources[0].startswith("skimage/"))
    for spec in (photo, *(next(s for s in specs if s.name.split("/")[-2] == what) for what in ("text", "chart"))):
        made = images._make(spec)
        assert made.shape == (256, 256, 3)
        assert np.array_equal(made, images._make(spec))
        buffer = io.BytesIO()
        Image.fromarray(made).save(buffer, "PNG")


def test_the_same_order_begins_every_run() -> None:
    assert images.ordered("report", 512)[:20] == images.ordered("report", 512)[:20]
    assert sorted(s.name for s in images.ordered("tune", 512)) == sorted(s.name for s in images.specs("tune", 512))
