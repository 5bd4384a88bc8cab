"""Marks a picture file: pixels in, watermark, the same kind of file out. The alpha channel, an ICC profile and EXIF are kept.

Registers nothing and signs nothing: the content id is the caller's, and other metadata, C2PA credentials among it, do not come along. A
transparent picture is marked as it looks on white, which is how it is read. Gray stays gray; 16-bit samples become 8-bit, and the result
says so; CMYK and other colours that need a profile to become RGB are refused.
"""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageOps

from platemark.errors import ImageError, InputError, ProvenanceUnavailable
from platemark.imaging import decode, probe, read_bytes
from platemark.provenance.files import write_atomically
from platemark.provenance.keyring import HeldKey, held_keys
from platemark.provenance.watermark.detect import detect
from platemark.provenance.watermark.embed import Marked, embed
from platemark.provenance.watermark.payload import Payload

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}  # suffix → format
QUALITY = 95
_GRAY, _ALPHA = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"), ("LA", "La", "PA", "RGBA", "RGBa")
_COLOUR = ("RGB", "P", "RGBX", "RGBA", "RGBa", "PA")
_EXIF_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 258


@dataclass(frozen=True)
class MarkedFile:
    """What was done. `psnr` in dB of the pixels as they look on white; `size` is (height, width); `notes` say what was converted."""

    file: str
    content_id: int
    issuer: int
    key_id: str
    payload: str
    layout: str
    psnr: float
    strength: float
    size: tuple[int, int]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "size": list(self.size), "notes": list(self.notes)}


@dataclass(frozen=True)
class _Opened:
    """`pixels` uint8 RGB (H, W, 3); `alpha` uint8 (H, W) or None; `gray`: red, green and blue are equal and go out as one."""

    pixels: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None
    gray: bool
    icc: bytes | None
    exif: bytes | None
    notes: tuple[str, ...]


def marking_key(home: Path) -> HeldKey:
    """The key that marks on this machine. Raises `ProvenanceUnavailable` where there is none."""
    key = next((key for key in held_keys(home) if key.purpose == "mark"), None)
    if key is None:
        raise ProvenanceUnavailable("there is no watermark key that may mark here", "run `platemark keys init`")
    return key


def mark_file(
    source: str | Path, target: str | Path, key: HeldKey, content_id: int, *, issuer: int | None = None, strength: float | None = None
) -> MarkedFile:
    """Marks `source` into `target` (PNG, JPEG at quality 95 or WebP at 95, by its suffix), whole or not at all.

    `issuer` is the key's own unless given; `strength` as in `embed`. Raises `InputError` (paths, numbers, a picture that cannot be used,
    `target` being `source`) or `ProvenanceUnavailable` (the picture cannot hold a mark that reads back from the file).
    """
    file_format = _target_format(Path(source), Path(target))
    payload = Payload(content_id, issuer=key.issuer if issuer is None else issuer)
    opened = _open(read_bytes(source))
    if opened.alpha is not None and file_format == "jpeg":
        raise InputError("the picture is transparent and JPEG cannot be", "write a .png or .webp file")
    marked = embed(_on_white(opened.pixels, opened.alpha), payload, key.watermark, strength=strength)
    data = _encode(_moved(opened, marked), opened, file_format)
    found = detect(decode(data).array, key.watermark)
    if found.verdict != "detected" or found.payload != payload:
        raise ProvenanceUnavailable("the mark cannot be read back from the file", "use a larger, less transparent picture, or PNG")
    write_atomically(target, data)
    size = (opened.pixels.shape[0], opened.pixels.shape[1])
    return MarkedFile(
        str(target), content_id, payload.issuer, key.key_id, payload.hex, marked.layout, marked.psnr, marked.strength, size, opened.notes
    )


def _target_format(source: Path, target: Path) -> str:
    file_format = FORMATS.get(target.suffix.lower())
    if file_format is None:
        raise InputError(f"cannot write {str(target)[-120:]!r}: unknown suffix", f"use {', '.join(FORMATS)}")
    try:
        same = target.exists() and source.samefile(target)
    except (OSError, ValueError):
        same = False  # reading or writing says it better
    if same:
        raise InputError("the output is the input", "name another file: the unmarked picture would be lost")
    return file_format


def _open(data: bytes) -> _Opened:
    """Decodes with alpha. Raises `ImageError`; what `decode` refuses is refused in the same words."""
    header, checked = probe(data), decode(data)
    with PIL.Image.open(io.BytesIO(data)) as raw:
        _require_usable(raw)
        notes = _notes(data, raw, header.format)
        image = ImageOps.exif_transpose(raw)
        alpha = _alpha(image)
        pixels = checked.array if alpha is None else np.asarray(image.convert("RGBA"))[..., :3]
        exif = _exif(image)
    gray = raw.mode in _GRAY
    return _Opened(np.ascontiguousarray(pixels), alpha, gray, _profile(checked.icc, gray), exif, notes)


def _require_usable(image: PIL.Image.Image) -> None:
    if image.mode not in (*_GRAY, *_COLOUR):
        raise ImageError(
            f"the picture is {image.mode}, which needs a colour profile to become RGB", "convert it to 8-bit RGB with an image editor first"
        )
    if getattr(image, "n_frames", 1) > 1:
        raise ImageError("the picture is an animation or has several pages", "mark a single picture")


def _notes(data: bytes, image: PIL.Image.Image, file_format: str) -> tuple[str, ...]:
    deep = file_format == "png" and data[24] == 16
    if file_format == "tiff":
        bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))
        deep = max(bits if isinstance(bits, tuple) else (bits,)) > 8
    found = ("16-bit samples became 8-bit",) if deep else ()
    return (*found, "the palette became RGB") if image.mode in ("P", "PA") else found


def _alpha(image: PIL.Image.Image) -> NDArray[np.uint8] | None:
    if image.mode not in _ALPHA and "transparency" not in image.info:
        return None
    alpha = np.asarray((image if image.mode != "La" else image.convert("LA")).convert("RGBA"))[..., 3]
    return None if alpha.min() == 255 else alpha


def _exif(image: PIL.Image.Image) -> bytes | None:
    """The EXIF block without the orientation, which the pixels have taken on."""
    exif = image.getexif()
    if not len(exif):
        return None
    exif.pop(_EXIF_ORIENTATION, None)
    return exif.tobytes()


def _profile(icc: bytes | None, gray: bool) -> bytes | None:
    """The ICC profile, where it is one for the colours that go out."""
    return icc if icc is not None and icc[16:20] == (b"GRAY" if gray else b"RGB ") else None


def _on_white(pixels: NDArray[np.uint8], alpha: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """As `imaging.decode` shows it."""
    if alpha is None:
        return pixels
    share = alpha[..., None].astype(np.uint16)
    return ((pixels * share + 255 * (255 - share) + 127) // 255).astype(np.uint8)


def _moved(opened: _Opened, marked: Marked) -> NDArray[np.uint8]:
    """The change that the picture on white got, given to the pixels under the alpha; what is wholly transparent stays as it is."""
    if opened.alpha is None:
        return marked.image
    change = marked.image.astype(np.int16) - _on_white(opened.pixels, opened.alpha)
    change[opened.alpha == 0] = 0
    return np.clip(opened.pixels + change, 0, 255).astype(np.uint8)


def _encode(pixels: NDArray[np.uint8], opened: _Opened, file_format: str) -> bytes:
    gray = opened.gray and file_format != "webp"  # WebP has no gray
    planes = pixels[..., :1] if gray else pixels
    if opened.alpha is not None:
        planes = np.dstack([planes, opened.alpha])
    image = PIL.Image.fromarray(planes[..., 0] if planes.shape[2] == 1 else planes)
    kept = {"icc_profile": opened.icc, "exif": opened.exif}
    options: dict[str, Any] = {name: value for name, value in kept.items() if value}
    if opened.gray and not gray:
        options.pop("icc_profile", None)
    if file_format == "webp":
        options |= {"quality": QUALITY, "exact": True, "alpha_quality": 100}
    if file_format == "jpeg":
        options |= {"quality": QUALITY} | ({} if gray else {"subsampling": 0})
    out = io.BytesIO()
    try:
        image.save(out, format=file_format, **options)
    except (OSError, ValueError) as error:
        raise ImageError(f"the picture does not fit the {file_format.upper()} format", "use png, or a smaller size") from error
    return out.getvalue()
