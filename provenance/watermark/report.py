"""A geometry as people say it: scale, rotation, mirroring, aspect and skew out of a matrix."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from platemark.provenance.watermark.layout import PERIOD


def geometry_of(matrix: NDArray[np.float64], own: NDArray[np.float64], shift: NDArray[np.float64]) -> dict[str, Any]:
    """From A (canonical pixels from working pixels) and that of an unchanged picture: `scale` of the tile against a picture marked at this
    size, `rotation` (degrees counter-clockwise, 0 to 360) after an eventual `flip` left to right, `aspect` (width over height against
    the original's), `skew` (shear), `shift` of the tile from the centre (rows, columns; canonical pixels)."""
    made = np.linalg.inv(matrix @ np.linalg.inv(own))  # from the original to the picture
    flip = bool(np.linalg.det(made) < 0)
    if flip:
        made = made @ np.diag([1.0, -1.0])
    angle = math.atan2(made[1, 0] - made[0, 1], made[0, 0] + made[1, 1])
    cosine, sine = math.cos(angle), math.sin(angle)
    stretch = np.array([[cosine, sine], [-sine, cosine]]) @ made  # polar decomposition: symmetric
    return {
        "scale": round(math.sqrt(abs(float(np.linalg.det(made)))), 4),
        "rotation": round(math.degrees(angle) % 360, 2) % 360,
        "flip": flip,
        "aspect": round(float(stretch[1, 1] / stretch[0, 0]), 4),
        "skew": round(float(stretch[0, 1] * 2 / (stretch[0, 0] + stretch[1, 1])), 4),
        "shift": [round(float(part) % PERIOD, 2) for part in shift],
    }
