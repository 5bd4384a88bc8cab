"""Open watermarks of other programs, as the real package wrote them, are found; nothing else is."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from platemark.imaging import decode, encode
from platemark.provenance.verify import verify
from platemark.provenance.wild import FALSE_POSITIVES, MESSAGES, find_wild

FILES = Path(__file__).parent / "data" / "wild"
FOUND = {
    "sd1": "Stable Diffusion 1 script (StableDiffusionV1)",
    "sd2": "Stable Diffusion 2 script (SDV2)",
    "sdxl": "Stable Diffusion XL pipeline",
    "sdxl-swapped": "Stable Diffusion XL pipeline (red and blue swapped)",
    "flux": "FLUX.1 script",
}


@pytest.mark.parametrize("name", FOUND)
def test_marks_of_the_real_writers_are_found(name: str) -> None:
    found = find_wild(decode(FILES / f"{name}.webp").array)
    assert found is not None
    assert found.name == FOUND[name]
    assert found.matching_bits >= 0.9 * found.bits
    assert found.p_value < FALSE_POSITIVES


def test_the_same_picture_without_a_mark_has_none() -> None:
    assert find_wild(decode(FILES / "plain.webp").array) is None


@pytest.mark.parametrize("name", ["sd1", "sdxl", "flux"])
def test_mild_jpeg_is_survived(name: str) -> None:
    out = io.BytesIO()
    Image.fromarray(decode(FILES / f"{name}.webp").array).save(out, "jpeg", quality=95, subsampling=0)
    found = find_wild(decode(out.getvalue()).array)
    assert found is not None
    assert found.name == FOUND[name]


def test_a_crop_or_a_resize_loses_it() -> None:
    array = decode(FILES / "sdxl.webp").array
    assert find_wild(np.ascontiguousarray(array[3:, 5:])) is None
    assert find_wild(np.asarray(Image.fromarray(array).resize((280, 260)))) is None


def test_unmarked_pictures_have_none(make_picture: Callable[..., np.ndarray]) -> None:
    rng = np.random.default_rng(4)
    assert all(find_wild(make_picture(number, 272, 300)) is None for number in range(4))
    for _ in range(40):
        assert find_wild(rng.integers(0, 256, (272, 300, 3), dtype=np.uint8)) is None
    y, x = np.mgrid[0:512, 0:512]
    for array in (
        np.full((512, 512, 3), 255), np.stack([x // 2, y // 2, x * 0], -1), np.repeat(((x // 16 + y // 16) % 2 * 255)[..., None], 3, 2),
        np.repeat((x % 32 * 8)[..., None], 3, 2),
    ):  # fmt: skip
        assert find_wild(array.astype(np.uint8)) is None  # pictures that repeat themselves


def test_small_pictures_are_not_looked_at() -> None:
    assert find_wild(decode(FILES / "sdxl.webp").array[:200]) is None
    assert find_wild(np.zeros((1, 1, 3), np.uint8)) is None


def test_the_public_messages_are_those_of_their_writers() -> None:
    bits = {message.name: message.bits for message in MESSAGES}
    assert bytes(int("".join(map(str, bits[FOUND["sd2"]][at : at + 8])), 2) for at in range(0, 32, 8)) == b"SDV2"
    assert len(bits[FOUND["sd1"]]) == 8 * len("StableDiffusionV1")
    assert len(bits[FOUND["sdxl"]]) == 48


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_the_verifier_reports_them_as_unsigned_claims(name: str, tmp_path: Path) -> None:
    report = verify(encode(decode(FILES / f"{name}.webp").array), home=tmp_path, deep=False)
    assert report.verdict == "unsigned-claims"
    (claim,) = report.layers["metadata"]["claims"]
    assert claim["source"] == "open watermark (dwtDct)"
    assert claim["name"] == FOUND[name]
    assert any("which anybody can write" in sentence for sentence in report.summary)
