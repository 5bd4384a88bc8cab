"""Lays a copy's pixels back into the frame that was marked, as the watermark's geometry says, so that its looks can be compared.

A perceptual hash sees neither size nor aspect ratio, but every turn and crop. Mirroring, quarter turns and slight turns are undone here.
The watermark's scale is that of the tile against the frame's area: 1 where the whole frame is there, however it was resized, and more in
every crop. Crops, wide free turns and sheared pictures cannot be compared: what they lost is not known. Knows nothing of the registry.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from platemark.provenance.watermark.detect import Detection

SAME_SCALE = 0.02
SAME_ASPECT = 0.02
SAME_TURN = 1.0  # degrees
WIDEST_TURN = 5.0  # degrees from a quarter turn: undone, copies of nine pictures lay within 78 of 256 bits, other pictures near 128
_WIDEST_SHEAR = 0.02
_BARELY = 0.1  # degrees that are not worth undoing

Pixels = NDArray[np.uint8]


def laid_back(image: Pixels, found: Detection, marked_size: tuple[int, int] | None) -> Pixels | None:
    """The picture, uint8 (H, W, 3), as it lay when it was marked; None where it cannot be compared with the one that was.

    `marked_size`: (height, width) of the registered picture, where it is known. The `pixel` layout survives no resize and tells nothing of
    crops, so there the size must be the same.
    """
    if found.layout == "pixel":
        return image if marked_size is not None and tuple(marked_size) == image.shape[:2] else None
    quarters, rest = _turned(found)
    geometry = found.geometry
    if abs(geometry["scale"] - 1) > SAME_SCALE or abs(rest) > WIDEST_TURN or abs(geometry["skew"]) > _WIDEST_SHEAR:
        return None
    upright = np.rot90(image, -quarters)
    if abs(rest) > _BARELY:
        upright = np.asarray(Image.fromarray(np.ascontiguousarray(upright)).rotate(-rest, Image.Resampling.BICUBIC))
    return np.ascontiguousarray(upright[:, ::-1] if geometry["flip"] else upright)


def moved(found: Detection) -> str | None:
    """What was done to the frame of a picture with the `full` layout, in words; None where nothing but a resize was."""
    if found.layout != "full":
        return None
    geometry, said = found.geometry, []
    quarters, rest = _turned(found)
    if abs(geometry["scale"] - 1) > SAME_SCALE:
        said.append(f"cut or padded (scale {geometry['scale']:.3g})")
    if quarters % 4 or abs(rest) > SAME_TURN:
        said.append(f"turned by {geometry['rotation']:.0f}° counter-clockwise")
    if abs(geometry["aspect"] - 1) > SAME_ASPECT:
        said.append(f"stretched (aspect {geometry['aspect']:.3g})")
    if geometry["flip"]:
        said.append("mirrored")
    return ", ".join(said) or None


def _turned(found: Detection) -> tuple[int, float]:
    """The rotation as counter-clockwise quarter turns and the rest, in degrees within 45 of zero."""
    rotation = float(found.geometry["rotation"])
    quarters = round(rotation / 90)
    return quarters, rotation - 90 * quarters
