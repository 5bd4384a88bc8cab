"""Where a face detector looks, and which of its boxes are the same face. Plain geometry: knows no network and no picture.

Boxes are float64 (N, 4): left, top, right, bottom.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float64]


@dataclass(frozen=True)
class Window:
    """A part of the picture, in its own pixels, and the factor by which it is scaled before the network sees it."""

    top: int
    left: int
    height: int
    width: int
    scale: float


def whole(height: int, width: int, side: int, most: float) -> Window:
    """The whole picture with its longer side at `side`; a small one grows, but not over `most` times."""
    return Window(0, 0, height, width, min(most, side / max(height, width)))


def tiles(height: int, width: int, side: int, overlap: int, area: int, longest: int) -> list[Window]:
    """Tiles of at most `side` scaled pixels that share `overlap` of them; the picture shrinks to at most `area` and `longest` first."""
    scale = min(1.0, math.sqrt(area / (height * width)), longest / max(height, width))
    rows, columns = (_spans(count, scale, side, overlap) for count in (height, width))
    return [Window(top, left, bottom - top, right - left, scale) for top, bottom in rows for left, right in columns]


def around(points: Boxes, height: int, width: int, side: int, most: int) -> list[Window]:
    """Unscaled windows of at most `side` pixels, at most `most`, around points (N, 2: across, down) in the order of their weight.

    Each is centred on the first point that no earlier one holds with a quarter of a window around it, and is pushed inside the picture.
    """
    found: list[Window] = []
    wide, tall = min(side, width), min(side, height)
    while len(points) and len(found) < most:
        across, down = points[0]
        left, top = (round(min(max(at - own / 2, 0), full - own)) for at, own, full in ((across, wide, width), (down, tall, height)))
        found.append(Window(top, left, tall, wide, 1.0))
        near = (np.abs(points - (left + wide / 2, top + tall / 2)) <= (wide / 4, tall / 4)).all(axis=1)
        near[0] = True  # one at the picture's edge is not near the middle of its own window
        points = points[~near]
    return found


def _spans(count: int, scale: float, side: int, overlap: int) -> list[tuple[int, int]]:
    """Equal spans over `count` pixels, from the first to the last."""
    scaled = count * scale
    number = max(1, math.ceil((scaled - overlap) / (side - overlap)))
    length = min(count, math.ceil((scaled + (number - 1) * overlap) / number / scale))
    starts = [round(i * (count - length) / max(1, number - 1)) for i in range(number)]
    return [(start, start + length) for start in starts]


def distinct(boxes: Boxes, scores: NDArray[np.float64], overlap: float, inside: float) -> list[int]:
    """The places of the boxes to keep, best first: each loses to a better one that it overlaps (IoU) or mostly lies in, or holds."""
    order = list(np.argsort(-scores, kind="stable"))
    kept: list[int] = []
    while order:
        best = int(order.pop(0))
        kept.append(best)
        if order:
            rest = np.array(order)
            union, smaller = _shared(boxes[best], boxes[rest])
            order = list(rest[(union < overlap) & (smaller < inside)])
    return kept


def _shared(one: Boxes, others: Boxes) -> tuple[Boxes, Boxes]:
    """Intersection over union, and over the smaller of the two areas."""
    edges = np.minimum(one[2:], others[:, 2:]) - np.maximum(one[:2], others[:, :2])
    common = np.prod(np.clip(edges, 0, None), axis=1)
    area, areas = np.prod(one[2:] - one[:2]), np.prod(others[:, 2:] - others[:, :2], axis=1)
    tiny = np.finfo(np.float64).tiny
    return common / np.maximum(area + areas - common, tiny), common / np.maximum(np.minimum(area, areas), tiny)
