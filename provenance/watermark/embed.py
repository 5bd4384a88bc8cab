"""Marks a picture so that its payload can be read back, and reads it back before returning. Knows nothing of files, alpha or profiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from platemark.errors import InputError, ProvenanceUnavailable
from platemark.provenance.watermark import dither, spread
from platemark.provenance.watermark.channel import Attempt, psnr
from platemark.provenance.watermark.detect import detect, require_picture
from platemark.provenance.watermark.key import WatermarkKey
from platemark.provenance.watermark.layout import PIXEL_MIN_SIDE, LayoutName, layout_for
from platemark.provenance.watermark.payload import Payload

_REMEDY = "use a larger or less busy picture, or a policy that lets pictures out signed only"


@dataclass(frozen=True)
class Marked:
    """A marked picture. `image`: uint8 like the original; `psnr`: dB of it against the original, everything counted.

    `strength`: standard deviation of the change in flat parts, in levels. `headroom_shift`: levels (0 to 3) by which pixels were moved off
    0 and 255 to make room. `margin`: the statistics of a reading after JPEG 75 over those that a reading needs (1: just readable).
    """

    image: NDArray[np.uint8]
    psnr: float
    strength: float
    headroom_shift: int
    layout: LayoutName
    margin: float


def embed(
    image: NDArray[np.uint8],
    payload: Payload,
    key: WatermarkKey,
    *,
    min_psnr: float = 41.0,
    max_psnr: float = 48.0,
    strength: float | None = None,
    rng: np.random.Generator | None = None,
) -> Marked:
    """Marks a uint8 RGB picture (H, W, 3) at its own size, no stronger than `min_psnr` and no fainter than about `max_psnr` (dB).

    `strength` (levels, 0.2 to 8: the standard deviation of the change where the picture is smooth) takes the place of the search for one:
    no upper bound of PSNR then.
    `rng` draws what differs between two marks of one payload (None: the system's random source); it is for repeatable tests alone.
    Raises `InputError` (another array, bounds out of order), `ProvenanceUnavailable` (a side under 64 px, or unreadable at `min_psnr`).
    """
    size = require_picture(image).shape[:2]
    if not 30 <= min_psnr <= max_psnr <= 60:
        raise InputError("the PSNR bounds are out of order", "use 30 <= min_psnr <= max_psnr <= 60")
    if strength is not None and not 0.2 <= strength <= 8:
        raise InputError("the watermark strength is out of range", "use 0.2 to 8 levels, or leave it out")
    if min(size) < PIXEL_MIN_SIDE:
        raise ProvenanceUnavailable(f"a picture under {PIXEL_MIN_SIDE} px a side cannot hold a watermark", _REMEDY)
    layout = layout_for(*size)
    made: Attempt | None
    if layout == "full":
        bounds = spread.Bounds(min_psnr, max_psnr, strength)
        made = spread.write(image, payload, key, bounds, rng=rng)
    else:
        made = dither.write(image, payload, key, min_psnr=min_psnr, strength=strength, rng=rng)
    if made is None or detect(made.image, key).payload != payload:
        raise ProvenanceUnavailable("this picture cannot hold a watermark that can be read back", _REMEDY)
    reached = round(psnr(image, made.image), 2)
    return Marked(made.image, reached, round(made.strength, 3), made.headroom_shift, layout, round(made.margin, 2))
