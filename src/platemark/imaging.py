"""The one door for image bytes: bounded decoding, encoding, perceptual hash.

Decodes PNG, JPEG, WebP, AVIF, TIFF and GIF (first frame) to 8-bit RGB. The header is read first and the pixel count bounded before any
pixel is decoded. Colour management is not done: an ICC profile is handed on as it is, CMYK is converted without one.
Knows nothing of what the pixels, texts or XMP packets mean.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageOps
from PIL.Image import Image

from platemark.encoding import WRITABLE, encode, gif_xmp, srgb_profile, to_pil
from platemark.errors import DamagedImageError, ImageError, InputError
from platemark.pdq import pdq

__all__ = [
    "MAX_BYTES", "MAX_PIXELS", "MAX_TEXT", "WRITABLE", "Decoded", "Header", "decode", "encode", "hash_distance", "perceptual_hash", "probe",
    "read_bytes", "rgb_profile", "sniff", "srgb_profile", "to_pil",
]  # fmt: skip

MAX_PIXELS = 64 * 2**20
MAX_BYTES = 512 * 2**20
MAX_TEXT = 64 * 1024  # characters kept of one text chunk
_READABLE = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "GIF")
_SUBTYPES = {"MPO": "JPEG"}  # a JPEG with further frames behind it
_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "png",
    b"\xff\xd8\xff": "jpeg",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",
    b"MM\0+": "tiff",
}
_USER_COMMENT, _EXIF_IFD = 0x9286, 0x8769
_REFUSED = "use a PNG, JPEG, WebP, AVIF, TIFF or GIF picture"
_DAMAGED = "get an undamaged copy"
# What Pillow's plugins raise on damaged files; Warning: where the process turns warnings into errors.
_CLASHES = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, ZeroDivisionError,
    NotImplementedError, MemoryError, RuntimeError, struct.error, zlib.error, Warning,
)  # fmt: skip

_opening = threading.Lock()


@dataclass(frozen=True)
class Header:
    """What a file says of itself before decoding. `size` is (height, width) in pixels, before any EXIF rotation."""

    format: str  # "png", "jpeg", "webp", "avif", "tiff", "gif"
    mode: str  # Pillow's name of the pixel format in the file
    size: tuple[int, int]

    @property
    def mime(self) -> str:
        return f"image/{self.format}"


@dataclass(frozen=True)
class Decoded:
    """A decoded picture: `array` is uint8 RGB (height, width, 3), upright, alpha laid on white.

    `size` is (height, width) of the array. `xmp` is the raw packet; `text` holds PNG text chunks by keyword and an EXIF user comment as
    `exif:UserComment`, each cut at 64 Ki characters. All of them are untrusted input.
    """

    array: NDArray[np.uint8]
    format: str
    mode: str
    icc: bytes | None
    size: tuple[int, int]
    xmp: bytes | None = None
    text: dict[str, str] = field(default_factory=dict)


def read_bytes(source: bytes | str | Path, *, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a file (or `source` itself). Raises `InputError` where it cannot be read, `ImageError` where it is over `max_bytes`."""
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
    else:
        try:
            with Path(source).open("rb") as handle:
                data = handle.read(max_bytes + 1)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not a usable path"
            raise InputError(f"cannot read {_name(source)}: {reason}", "check the path and its permissions") from error
    if len(data) > max_bytes:
        raise ImageError(f"the file is larger than {max_bytes // 2**20} MiB", "use a smaller file")
    return data


def sniff(data: bytes) -> str | None:
    """The format that the first bytes announce (`png`, `jpeg`, `webp`, `avif`, `tiff`, `gif`), or None. Says nothing of the rest."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis"):
        return "avif"
    return next((name for start, name in _SIGNATURES.items() if data.startswith(start)), None)


def probe(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Header:
    """Reads the header only.

    Raises `ImageError` (not a picture of a known format, more than `max_pixels`) or its subclass `DamagedImageError`.
    """
    with _open(data, max_pixels) as image:
        return _header(image)


def rgb_profile(data: bytes) -> bytes | None:
    """The ICC profile in a picture's header where it is one for RGB, or None. Decodes no pixel. Raises `ImageError`."""
    with _open(data, MAX_PIXELS) as image:
        icc = _bytes(image.info.get("icc_profile"))
    return icc if icc is not None and icc[16:20] == b"RGB " else None


def decode(source: bytes | str | Path, *, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decodes a picture from bytes or a path.

    16-bit samples keep their high byte; floats in [0, 1] are scaled to 255; palettes, gray, CMYK, LAB are converted to RGB; alpha is laid
    on white; EXIF rotation is applied; of an animation the first frame counts.
    Raises `ImageError` (not a picture, over `max_pixels`), its subclass `DamagedImageError` (damaged, truncated) or `InputError`
    (unreadable path).
    """
    data = read_bytes(source)
    with _open(data, max_pixels) as image:
        header = _header(image)
        try:
            image.load()
            array = _rgb(ImageOps.exif_transpose(image))
            icc, xmp, text = image.info.get("icc_profile"), image.info.get("xmp"), _texts(image)
            if header.format == "gif":
                xmp = gif_xmp(data)
        except (PIL.Image.DecompressionBombError, *_CLASHES) as error:
            raise _damaged(header.format) from error
    if array.ndim != 3 or 0 in array.shape:
        raise _damaged(header.format)
    size = (array.shape[0], array.shape[1])
    return Decoded(array, header.format, header.mode, _bytes(icc), size, _bytes(xmp), text)


def perceptual_hash(array: NDArray[np.uint8]) -> str:
    """The PDQ hash (256 bits, 64 hex digits) of uint8 RGB (height, width, 3); all zeros under 5 pixels a side.

    Copies of one picture mostly lie within 31 bits of each other, unrelated pictures near 128 (PDQ's own documentation).
    """
    bits, _quality = pdq(array)
    return np.packbits(bits).tobytes().hex()


def hash_distance(one: str, other: str) -> int:
    """How many of the 256 bits of two perceptual hashes differ."""
    return (int(one, 16) ^ int(other, 16)).bit_count()


def _open(data: bytes, max_pixels: int) -> Image:
    if not data:
        raise ImageError("the file is empty", _REFUSED)
    try:
        # Pillow warns of big pictures from inside open(); this door refuses by its own bound. The lock keeps the filter swap in one thread.
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = PIL.Image.open(io.BytesIO(data), formats=_READABLE)
    except PIL.Image.DecompressionBombError as error:
        raise _too_big(max_pixels) from error
    except _CLASHES as error:  # PIL.UnidentifiedImageError is an OSError
        if name := sniff(data):
            raise _damaged(name) from error
        raise ImageError("the file is not a picture of a known format", _REFUSED) from error
    if image.width * image.height > max_pixels:
        image.close()
        raise _too_big(max_pixels, image.width, image.height)
    return image


def _damaged(name: str) -> DamagedImageError:
    return DamagedImageError(f"the {name.upper()} picture is damaged or cut short", _DAMAGED)


def _too_big(max_pixels: int, width: int = 0, height: int = 0) -> ImageError:
    size = f" ({width}x{height})" if width else ""
    return ImageError(f"the picture has more than {max_pixels // 2**20} megapixels{size}", "scale it down first")


def _header(image: Image) -> Header:
    name = image.format or ""
    return Header(_SUBTYPES.get(name, name).lower(), image.mode, (image.height, image.width))


def _rgb(image: Image) -> NDArray[np.uint8]:
    """Any Pillow mode → uint8 RGB."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return np.repeat(_gray8(np.asarray(image), image.mode)[..., None], 3, axis=2)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return _on_white(image.convert("RGBA") if image.mode != "La" else image.convert("LA").convert("RGBA"))
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _gray8(values: NDArray[Any], mode: str) -> NDArray[np.uint8]:
    """16-bit, 32-bit or float gray → uint8. Integers count as 16-bit samples; floats as [0, 1] where none is above 1, else as 8-bit."""
    if mode == "F":
        with np.errstate(invalid="ignore"):  # signalling NaNs
            finite = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=255.0, neginf=0.0)
        scaled = finite * 255 if finite.size and finite.max() <= 1 else finite
        return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return (np.clip(values.astype(np.int64), 0, 65535) >> 8).astype(np.uint8)


def _on_white(image: Image) -> NDArray[np.uint8]:
    rgba = np.asarray(image, dtype=np.uint16)
    alpha = rgba[..., 3:]
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _texts(image: Image) -> dict[str, str]:
    """PNG text chunks and the EXIF user comment, as found; never a reason to refuse a picture that decodes."""
    chunks = getattr(image, "text", {}) if image.format == "PNG" else {}
    found = {str(key)[:80]: str(value)[:MAX_TEXT] for key, value in chunks.items()}
    try:
        comment = image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    except _CLASHES:
        comment = None
    if isinstance(comment, bytes) and len(comment) > 8:
        coding = "utf-16-be" if comment.startswith(b"UNICODE") else "utf-8"
        found["exif:UserComment"] = comment[8:].decode(coding, "replace")[:MAX_TEXT]
    return found


def _bytes(value: Any) -> bytes | None:
    if isinstance(value, str):
        return value.encode("utf-8", "replace")
    return bytes(value) if isinstance(value, bytes | bytearray) and value else None


def _name(source: str | Path) -> str:
    return repr(str(source)[-120:])
