"""The door for image bytes: every kind of picture comes in upright and RGB, everything else is refused in one way."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from platemark.errors import DamagedImageError, ImageError, InputError, PlatemarkError
from platemark.imaging import decode, encode, hash_distance, perceptual_hash, probe, to_pil

FORMATS = ("png", "jpeg", "webp", "avif", "tiff", "gif")


def gradient(height: int = 64, width: int = 96) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=-1).astype(np.uint8)


def saved(image: Image.Image, file_format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("file_format", FORMATS)
def test_every_format_comes_in(file_format: str) -> None:
    source = gradient()
    decoded = decode(saved(Image.fromarray(source), file_format))
    assert decoded.format == file_format
    assert decoded.array.shape == source.shape
    assert decoded.array.dtype == np.uint8
    assert decoded.size == (64, 96)
    assert np.abs(decoded.array.astype(int) - source).mean() < 12


@pytest.mark.parametrize("file_format", ["bmp", "ppm", "ico", "tga", "pcx"])
def test_other_formats_are_refused(file_format: str) -> None:
    with pytest.raises(ImageError, match="known format"):
        decode(saved(Image.fromarray(gradient()), file_format))


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (10_000, 10_000), (60_000, 60_000)])
def test_too_many_pixels_are_refused_before_decoding(width: int, height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    for door in (decode, probe):
        with pytest.raises(ImageError, match="megapixels"):
            door(png_header(width, height))


def test_the_bound_can_be_set() -> None:
    data = saved(Image.fromarray(gradient(64, 96)), "png")
    assert decode(data, max_pixels=64 * 96).size == (64, 96)
    with pytest.raises(ImageError):
        decode(data, max_pixels=64 * 96 - 1)


@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
def test_truncated_files_are_refused(file_format: str, part: float) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), file_format)
    with pytest.raises(DamagedImageError) as caught:
        decode(data[: int(len(data) * part)])
    assert caught.value.as_dict() == {
        "code": "damaged_image",
        "message": f"the {file_format.upper()} picture is damaged or cut short",
        "remedy": "get an undamaged copy",
    }


@pytest.mark.parametrize("data", [b"", b"not a picture\n" * 50, b"\x89PNG\r\n\x1a\n", b"%PDF-1.7"])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        decode(data)


def test_paths(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(saved(Image.fromarray(gradient()), "png"))
    assert np.array_equal(decode(path).array, gradient())
    assert np.array_equal(decode(str(path)).array, gradient())
    for bad in (tmp_path / "none.png", tmp_path, "nul\0byte"):
        with pytest.raises(InputError, match="cannot read"):
            decode(bad)


def test_palette_gray_alpha_and_cmyk() -> None:
    base = Image.fromarray(gradient())
    gray = base.convert("L")
    assert np.array_equal(decode(saved(gray, "png")).array, np.repeat(np.asarray(gray)[..., None], 3, axis=2))
    palette = base.convert("P", palette=Image.Palette.ADAPTIVE)
    assert np.array_equal(decode(saved(palette, "png")).array, np.asarray(palette.convert("RGB")))
    cmyk = decode(saved(base.convert("CMYK"), "tiff")).array
    assert np.abs(cmyk.astype(int) - gradient()).max() <= 2
    clear = np.dstack([gradient(), np.zeros((64, 96), np.uint8)])
    clear[:, 48:, 3] = 255
    decoded = decode(saved(Image.fromarray(clear), "png")).array
    assert (decoded[:, :48] == 255).all()
    assert np.array_equal(decoded[:, 48:], gradient()[:, 48:])


def test_half_transparency_lies_on_white() -> None:
    half = np.zeros((4, 4, 4), np.uint8)
    half[..., 3] = 128
    assert set(np.unique(decode(saved(Image.fromarray(half), "png")).array)) == {127}


def test_sixteen_bit_and_float() -> None:
    deep = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    decoded = decode(saved(Image.fromarray(deep), "png")).array
    assert np.array_equal(decoded[..., 0], (deep >> 8).astype(np.uint8))
    real = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    real[0, 0] = np.nan
    decoded = decode(saved(Image.fromarray(real), "tiff")).array
    assert (decoded[0, 0, 0], decoded[-1, -1, 0]) == (0, 255)


def test_exif_rotation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate 90 clockwise to show
    decoded = decode(saved(Image.fromarray(gradient()), "png", exif=exif))
    assert decoded.size == (96, 64)
    assert np.array_equal(decoded.array, np.rot90(gradient(), -1))


def test_texts_are_found_and_bounded() -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", "a cat\nSteps: 20")
    info.add_text("workflow", "x" * 100_000)
    decoded = decode(saved(Image.fromarray(gradient()), "png", pnginfo=info))
    assert decoded.text["parameters"] == "a cat\nSteps: 20"
    assert len(decoded.text["workflow"]) == 64 * 1024
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "ein Häschen".encode("utf-16-be")
    assert decode(saved(Image.fromarray(gradient()), "jpeg", exif=exif)).text == {"exif:UserComment": "ein Häschen"}


@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp"])
def test_encode_round_trip_with_xmp_and_profile(file_format: str) -> None:
    data = encode(gradient(), file_format, lossless=True, xmp=b"<x/>", icc=b"profile" * 20)
    decoded = decode(data)
    assert decoded.format == file_format
    assert decoded.xmp == b"<x/>"
    assert decoded.icc == b"profile" * 20
    exact = file_format != "jpeg"
    assert np.array_equal(decoded.array, gradient()) == exact
    assert np.abs(decoded.array.astype(int) - gradient()).mean() < 2


def test_encode_refuses_other_formats_and_arrays() -> None:
    with pytest.raises(InputError):
        encode(gradient(), "bmp")
    for bad in (gradient().astype(np.float32), gradient()[..., 0], gradient()[:0]):
        with pytest.raises(ImageError):
            to_pil(bad)
    with pytest.raises(ImageError, match="WEBP"):
        encode(np.zeros((1, 20_000, 3), np.uint8), "webp")


def test_perceptual_hash_tells_copies_from_others() -> None:
    rng = np.random.default_rng(2)
    blocks = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(32, axis=0).repeat(32, axis=1)
    other = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(32, axis=0).repeat(32, axis=1)
    copy = decode(encode(blocks, "jpeg", quality=60)).array
    mine = perceptual_hash(blocks)
    assert len(mine) == 64
    assert hash_distance(mine, perceptual_hash(copy)) <= 31
    assert hash_distance(mine, perceptual_hash(other)) > 80
    assert hash_distance("0" * 64, "f" * 64) == 256


SEEDS = [saved(Image.fromarray(gradient(32, 32)), f) for f in FORMATS if f != "tiff"] + [
    saved(Image.fromarray(gradient(32, 32)).convert("P"), "png")
]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=4)), max_size=6),
    st.integers(0, 4000) | st.none(),
)
def test_damaged_files_raise_only_our_errors(seed: bytes, edits: list[tuple[int, bytes]], cut: int | None) -> None:
    data = bytearray(seed)
    for place, new in edits:
        at = place % len(data)
        data[at : at + len(new)] = new
    with contextlib.suppress(PlatemarkError):
        assert decode(bytes(data[:cut]), max_pixels=1 << 20).array.dtype == np.uint8
