"""The perceptual hash: bit for bit that of the reference library, and stable where that library is not installed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from platemark.imaging import hash_distance, perceptual_hash
from platemark.pdq import pdq

Draw = Callable[[int, int], np.ndarray]


def photo(height: int, width: int) -> np.ndarray:
    """Noise with the spectrum of photographs (amplitude 1/f), in three correlated channels."""
    rng = np.random.default_rng(height * 7 + width)
    noise = np.fft.rfft2(rng.normal(size=(3, height, width)))
    away = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    planes = np.fft.irfft2(noise / np.maximum(away, 1 / max(height, width)), s=(height, width))
    mixed = planes + 2 * planes.mean(axis=0)
    return np.clip(128 + mixed.transpose(1, 2, 0) / mixed.std() * 45, 0, 255).astype(np.uint8)


def gradient(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=-1).astype(np.uint8)


def ramp(height: int, width: int) -> np.ndarray:
    """Nearly all coefficients vanish: their bits are the signs of rounding errors."""
    return np.tile((np.arange(width) * 255 // width).astype(np.uint8)[None, :, None], (height, 1, 3))


def emoji(height: int, width: int) -> np.ndarray:
    """A symmetric face on white."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    picture = np.full((height, width, 3), 255, np.uint8)
    picture[x**2 + y**2 < 0.8] = (255, 204, 50)
    for eye in (-0.35, 0.35):
        picture[(x - eye) ** 2 + (y + 0.2) ** 2 < 0.02] = (60, 40, 20)
    picture[(abs(x**2 + y**2 - 0.35) < 0.05) & (y > 0.2)] = (120, 60, 20)
    return picture


def flat(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 200, np.uint8)


PICTURES: list[tuple[Draw, int, int]] = [
    *((photo, *size) for size in [(64, 64), (65, 129), (128, 128), (333, 250), (512, 512), (1000, 640)]),
    *((emoji, *size) for size in [(64, 64), (72, 72), (160, 160), (512, 384)]),
    *((gradient, *size) for size in [(64, 100), (320, 384), (1000, 300)]),
    *((ramp, *size) for size in [(100, 64), (300, 1000)]),
    *((flat, *size) for size in [(64, 64), (200, 300)]),
    *((photo, *size) for size in [(1, 1), (4, 90), (5, 5), (16, 40), (63, 64)]),
]


@pytest.mark.parametrize(("draw", "height", "width"), PICTURES)
def test_every_bit_and_the_quality_are_the_references(draw: Draw, height: int, width: int) -> None:
    """Distance 0, asked of every picture: also of those whose coefficients vanish. Its own guideline would allow 10 bits."""
    reference = pytest.importorskip("pdqhash")
    picture = draw(height, width)
    bits, quality = pdq(picture)
    expected, expected_quality = reference.compute(picture)
    assert int((bits != np.asarray(expected)).sum()) == 0
    assert quality == expected_quality
    assert perceptual_hash(picture) == np.packbits(np.asarray(expected, dtype=np.uint8)).tobytes().hex()


KNOWN = {
    photo: "7b4793deb4dd7f42b2e03dc8cda6f5e605a8a14cc68daf34c72147510512686b",
    emoji: "659a58669699e9e75a69879b681e5e5881e179611659879efe8158618965a79d",
    gradient: "6f3788886f77dd0481752dfdd22235fdab24b20494f7774894d7a2acaa883652",
}


@pytest.mark.parametrize("draw", KNOWN)
def test_known_hashes(draw: Draw) -> None:
    """As computed with the reference (pdqhash 0.2.8), for where it is not installed. 10 bits: transforms of numpy may round otherwise."""
    assert hash_distance(perceptual_hash(draw(320, 384)), KNOWN[draw]) <= 10


def test_the_hash_follows_a_turn_of_the_picture() -> None:
    """Turned upside down, coefficient (u, v) gets the sign of (-1)^(u + v): half the bits change."""
    picture = photo(256, 256)
    assert 100 < hash_distance(perceptual_hash(picture), perceptual_hash(np.ascontiguousarray(picture[::-1, ::-1]))) < 156


def test_views_hash_as_their_copies() -> None:
    picture = photo(128, 200)
    for view in (picture[::-1], picture[:, ::2], picture.transpose(1, 0, 2)):
        assert perceptual_hash(view) == perceptual_hash(view.copy())


def test_quality_is_low_where_there_is_no_detail() -> None:
    assert pdq(flat(100, 100))[1] == 0
    assert pdq(ramp(100, 100))[1] < 50
    assert pdq(photo(100, 100))[1] == 100


def test_long_thin_pictures_hash() -> None:
    for size in ((5, 20_000), (20_000, 5)):
        assert perceptual_hash(photo(*size)) != "0" * 64
    assert perceptual_hash(photo(4, 20_000)) == "0" * 64
