"""What happens to a marked picture: rounding and clipping when it is made, JPEG after; and the distance from the original in dB."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from platemark.provenance.watermark.spectrum import Float

JPEG_QUALITY = 50
WANTED_MARGIN = 1.35  # of the statistics that a reading needs, after JPEG of that quality
NEEDED = 14.0  # the data's statistic at which about 98 words of 100 decode
_STRIP = 512
_LARGE = 1280  # square root of the area from which a picture is judged by a smaller copy, as it will be shown
_COPY = 1024

Rows = Callable[[NDArray[np.intp]], Float]  # the change (m, W) in some rows of a picture


@dataclass(frozen=True)
class Attempt:
    """A marked picture and how it fared. `margin`: the statistics after JPEG over those that are needed; under 1 where it did not read."""

    image: NDArray[np.uint8]
    strength: float
    headroom_shift: int
    margin: float


def shifted(image: NDArray[np.uint8], change: Rows, scale: float = 1.0, headroom: int = 0) -> NDArray[np.uint8]:
    """Adds `scale` times the change to red, green and blue alike, rounded once, so that luma moves by just that and colour stays.

    With `headroom`, values are first brought that many levels within 0 and 255.
    """
    out = np.empty_like(image)
    for top in range(0, len(image), _STRIP):
        index = np.arange(top, min(top + _STRIP, len(image)))
        base = image[index[0] : index[-1] + 1].astype(np.int16)
        if headroom:
            np.clip(base, headroom, 255 - headroom, out=base)
        base += np.rint(change(index) * np.float32(scale)).astype(np.int16)[..., None]
        out[index[0] : index[-1] + 1] = np.clip(base, 0, 255, out=base)
    return out


def after_jpeg(marked: NDArray[np.uint8], quality: int = JPEG_QUALITY) -> NDArray[np.uint8]:
    """The picture after JPEG with half colour resolution, as most programs write it, read back as RGB; large ones smaller."""
    buffer, picture = io.BytesIO(), PIL.Image.fromarray(marked)
    side = math.sqrt(picture.width * picture.height)
    if side > _LARGE:
        size = round(picture.width * _COPY / side), round(picture.height * _COPY / side)
        picture = picture.resize(size, PIL.Image.Resampling.BOX)
    picture.save(buffer, "JPEG", quality=quality)
    del picture
    with PIL.Image.open(buffer) as opened:
        return np.asarray(opened.convert("RGB"))


def psnr(image: NDArray[np.uint8], marked: NDArray[np.uint8]) -> float:
    """dB over all samples of two uint8 pictures; infinite where they are equal."""
    total = 0.0
    for top in range(0, len(image), _STRIP):
        difference = (image[top : top + _STRIP].astype(np.int16) - marked[top : top + _STRIP]).astype(np.float32)
        total += float(np.vdot(difference, difference))
    return 10 * math.log10(255.0**2 * image.size / total) if total else math.inf
