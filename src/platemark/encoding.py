"""Encodes pictures: the writing half of `platemark.imaging`, which is the door. Knows nothing of what texts or XMP packets mean."""

from __future__ import annotations

import io
import struct
from functools import cache
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

from platemark.errors import ImageError, InputError

WRITABLE = ("png", "jpeg", "webp", "avif", "tiff", "gif")
_USER_COMMENT, _EXIF_IFD = 0x9286, 0x8769
_TIFF_XMP = 700
_GIF_XMP = b"\x21\xff\x0bXMP DataXMP"
_GIF_XMP_END = b"\x01" + bytes(range(255, -1, -1)) + b"\0"


def encode(
    array: NDArray[np.uint8],
    file_format: str = "png",
    *,
    quality: int = 95,
    lossless: bool = False,
    xmp: bytes | None = None,
    icc: bytes | None = None,
    text: dict[str, str] | None = None,
) -> bytes:
    """Encodes uint8 RGB (height, width, 3) as one of `WRITABLE`; the samples count as sRGB where no `icc` profile says otherwise.

    `quality` (1 to 100) and `lossless` (WebP, and AVIF as 4:4:4 at quality 100) concern the lossy formats; JPEG and AVIF keep full colour
    resolution (4:4:4). GIF is quantized to 256 colours and holds no profile. `xmp` is embedded before the pixels; `text` becomes PNG text
    chunks, and in JPEG, WebP and AVIF the entry `parameters` becomes the EXIF user comment, where web UIs look for it.
    Raises `ImageError` for an array of another kind and `InputError` for another format.
    """
    if file_format not in WRITABLE:
        raise InputError(f"cannot write the format {file_format[:20]!r}", f"use {', '.join(WRITABLE)}")
    profile = icc or (srgb_profile() if file_format not in ("png", "gif") else None)
    options: dict[str, Any] = {"icc_profile": profile} if profile else {}
    comment = (text or {}).get("parameters")
    if file_format == "png":
        options["pnginfo"] = _png_info(xmp, text or {}, srgb=icc is None)
    elif file_format == "tiff":
        options |= {"tiffinfo": _tiff_tags(xmp), "compression": "tiff_adobe_deflate"}
    elif file_format != "gif":
        options |= {"quality": 100 if lossless else quality, **_exif(comment)} | ({"xmp": xmp} if xmp else {})
    special: dict[str, dict[str, Any]] = {
        "jpeg": {"subsampling": 0},
        "webp": {"lossless": lossless},
        "avif": {"subsampling": "4:4:4"},
    }
    options |= special.get(file_format, {})
    out = io.BytesIO()
    try:
        to_pil(array).save(out, format=file_format, **options)
    except (OSError, ValueError, struct.error) as error:
        raise ImageError(f"the picture does not fit the {file_format.upper()} format", "use png, or a smaller size") from error
    return _gif_with_xmp(out.getvalue(), xmp) if file_format == "gif" and xmp else out.getvalue()


@cache
def srgb_profile() -> bytes:
    """An ICC profile of sRGB (about 600 bytes), the same bytes on every day."""
    from PIL import ImageCms

    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = bytes.fromhex("07d000010001000000000000")  # the date of making: 2000-01-01
    return bytes(profile)


def to_pil(array: NDArray[np.uint8]) -> Image:
    """A Pillow picture of uint8 RGB (height, width, 3). Raises `ImageError` for an array of another kind."""
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ImageError(f"a picture must be uint8 (height, width, 3), not {array.dtype} {array.shape}", "convert it first")
    return PIL.Image.fromarray(np.ascontiguousarray(array))


def _png_info(xmp: bytes | None, texts: dict[str, str], *, srgb: bool) -> PngInfo:
    info = PngInfo()
    if srgb:
        info.add(b"sRGB", b"\0")  # rendering intent: perceptual
    if xmp:
        info.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8"))
    for key, value in texts.items():
        if _latin1(value):
            info.add_text(key, value)
        else:
            info.add_itxt(key, value)
    return info


def _latin1(text: str) -> bool:
    return all(ord(char) < 256 for char in text)


def _exif(comment: str | None) -> dict[str, Any]:
    """An EXIF block with a user comment in the coding that web UIs use (UTF-16, big-endian)."""
    if not comment:
        return {}
    exif = PIL.Image.Exif()
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = b"UNICODE\0" + comment.encode("utf-16-be", "replace")
    return {"exif": exif.tobytes()}


def _tiff_tags(xmp: bytes | None) -> Any:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    tags = ImageFileDirectory_v2()
    if xmp:
        tags[_TIFF_XMP] = xmp
        tags.tagtype[_TIFF_XMP] = 1  # BYTE
    return tags


def _gif_with_xmp(data: bytes, xmp: bytes) -> bytes:
    """An XMP application extension before the first frame (XMP specification, part 3): the packet is no chain of sub-blocks, so a trailer
    of 258 bytes lets readers that see it as one find its end."""
    start = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)  # behind the header and the global palette
    return data[:start] + _GIF_XMP + xmp + _GIF_XMP_END + data[start:]


def gif_xmp(data: bytes) -> bytes | None:
    """The XMP packet of a GIF file, or None."""
    start = data.find(_GIF_XMP)
    end = data.find(_GIF_XMP_END, start) if start >= 0 else -1
    return data[start + len(_GIF_XMP) : end] if end >= 0 else None
