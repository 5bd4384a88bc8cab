"""PNG chunks: taken apart and put together again without a changed byte."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from platemark.errors import DamagedImageError
from platemark.provenance import png


def picture(texts: dict[str, str] | None = None, *, noise: bool = True, icc: bytes | None = None) -> bytes:
    """A PNG; Pillow splits noise into several IDAT chunks of 64 KiB."""
    size = (300, 200, 3)
    array = np.random.default_rng(3).integers(0, 256, size, dtype=np.uint8) if noise else np.zeros(size, np.uint8)
    info, out = PngInfo(), io.BytesIO()
    for key, value in (texts or {}).items():
        info.add_itxt(key, value)
    Image.fromarray(array).save(out, "PNG", pnginfo=info, icc_profile=icc)
    return out.getvalue()


def rechunked(data: bytes, size: int) -> bytes:
    """Only the critical chunks, with the pixel data cut in pieces of another size: what metadata strippers leave."""
    found = png.chunks(data)
    pixels = b"".join(chunk.data for chunk in found if chunk.kind == b"IDAT")
    kept = [found[0], *(png.Chunk(b"IDAT", pixels[at : at + size]) for at in range(0, len(pixels), size)), found[-1]]
    return png.SIGNATURE + b"".join(chunk.pack() for chunk in kept)


def test_credentials_go_in_behind_the_header_and_out_again() -> None:
    data = picture({"XML:com.adobe.xmp": "<x/>"})
    signed = png.with_credentials(data, b"store")
    assert [chunk.kind for chunk in png.chunks(signed)][:2] == [b"IHDR", b"caBX"]
    assert png.has_credentials(signed)
    assert not png.has_credentials(data)
    assert png.without_credentials(signed) == data
    assert png.with_credentials(signed, b"store") == signed
    assert png.with_credentials(png.with_credentials(data, b"other"), b"store") == signed


@pytest.mark.parametrize("size", [1000, 65536, 10**9])
def test_a_skeleton_brings_everything_back(size: int) -> None:
    whole = png.with_credentials(picture({"XML:com.adobe.xmp": "<x/>", "parameters": "Steps: 20"}, icc=b"profile" * 100), b"store" * 50)
    bones = png.skeleton(whole)
    assert bones is not None
    assert len(bones) < 1000
    assert png.rebuild(bones, rechunked(whole, size), b"store" * 50) == whole
    assert png.rebuild(bones, rechunked(whole, size), b"store") is None
    assert png.rebuild(bones, picture(noise=False), b"store" * 50) is None
    assert png.rebuild(b"junk", whole, b"store" * 50) is None
    assert png.rebuild(bones[:5] + zlib.compress(b"\0\0"), whole, b"store" * 50) is None
    assert png.rebuild(bones[:-20] + b"x" * 20, whole, b"store" * 50) is None


def test_what_has_no_skeleton() -> None:
    data = picture()
    assert png.skeleton(data) is not None
    assert png.skeleton(data[:-1]) is None
    assert png.skeleton(b"\xff\xd8\xff" + data) is None
    assert png.skeleton(picture({"big": "".join(chr(32 + (7 * k * k + k) % 90) for k in range(1_200_000))})) is None


def test_a_skeleton_cannot_be_a_bomb() -> None:
    bones = b"PMSK1" + zlib.compress(b"\x40\0\0\0tEXt" + b"\0" * 300_000_000)
    assert len(bones) < 400_000
    assert png.rebuild(bones, picture(), b"store") is None


def damaged(data: bytes) -> dict[str, bytes]:
    return {
        "signature": b"x" + data[1:],
        "cut": data[:-5],
        "no end": data[:-12],
        "tail": data + b"behind",
        "checksum": data[:-20] + bytes([data[-20] ^ 1]) + data[-19:],
        "length": data[:33] + b"\xff\xff\xff\xff" + data[37:],
        "no header": png.SIGNATURE + data[33:],
        "two headers": data[:33] + data[8:],
        "empty": b"",
    }


@pytest.mark.parametrize("kind", sorted(damaged(picture())))
def test_damage_is_named(kind: str) -> None:
    with pytest.raises(DamagedImageError, match="cannot be taken apart"):
        png.chunks(damaged(picture())[kind])


@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_make_it_fail_otherwise(data: bytes, signed: bool) -> None:
    with pytest.raises(DamagedImageError, match="cannot be taken apart"):
        png.chunks(png.SIGNATURE + data if signed else data)


@given(st.binary(max_size=300))
def test_no_skeleton_makes_rebuilding_fail(data: bytes) -> None:
    whole = picture(noise=False)
    for bones in (b"PMSK1" + data, b"PMSK1" + zlib.compress(data), data):
        assert png.rebuild(bones, whole, b"store") != whole
