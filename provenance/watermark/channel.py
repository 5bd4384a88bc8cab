"""What happens to a marked picture: rounding and clipping when it is made, JPEG after; and the distance from the original in dB."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from platemark.provenance.watermark.spectrum import Float

JPEG_QUALITY = 50
WANTED_MARGIN = 1.35  # of the statistics that a reading needs, after JPEG of that quality
NEEDED = 14.0  # the data's statistic at which about 98 words of 100 decode
_STRIP = 512


@dataclass(frozen=True)
class Attempt:
    """A marked picture and how it fared. `margin`: the statistics after JPEG over those that are needed; under 1 where it did not read."""

    image: NDArray[np.uint8]
    strength: float
    headroom_shift: int
    margin: float


def shifted(image: NDArray[np.uint8], change: Float, scale: float = 1.0, headroom: int = 0) -> NDArray[np.uint8]:
    """Adds `scale` · `change` (H, W) to red, green and blue alike, rounded once, so that luma moves by just that and colour stays.

    With `headroom`, values are first brought that many levels within 0 and 255.
    """
    out = np.empty_like(image)
    for top in range(0, len(image), _STRIP):
        rows = slice(top, top + _STRIP)
        base = image[rows].astype(np.int16)
        if headroom:
            np.clip(base, headroom, 255 - headroom, out=base)
        base += np.rint(change[rows] * np.float32(scale)).astype(np.int16)[..., None]
        out[rows] = np.clip(base, 0, 255, out=base)
    return out


def after_jpeg(marked: NDArray[np.uint8], quality: int | None = None) -> NDArray[np.uint8]:
    """The picture after JPEG with half colour resolution, as most programs write it, read back as RGB."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(marked).save(buffer, "JPEG", quality=quality or JPEG_QUALITY)
    with PIL.Image.open(buffer) as picture:
        return np.asarray(picture.convert("RGB"))


def psnr(image: NDArray[np.uint8], marked: NDArray[np.uint8]) -> float:
    """dB over all samples of two uint8 pictures; infinite where they are equal."""
    total = 0.0
    for top in range(0, len(image), _STRIP):
        difference = (image[top : top + _STRIP].astype(np.int16) - marked[top : top + _STRIP]).astype(np.float32)
        total += float(np.vdot(difference, difference))
    return 10 * math.log10(255.0**2 * image.size / total) if total else math.inf
