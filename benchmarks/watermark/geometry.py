"""Changes that move pixels: resizing, cropping, rotating, warping, covering."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from PIL import Image

from benchmarks.watermark.signal import Pixels

Canvas = Literal["keep", "expand", "inscribed"]
_FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.BOX)


def flip(picture: Pixels) -> Pixels:
    return picture[:, ::-1]


def flip_vertical(picture: Pixels) -> Pixels:
    return picture[::-1]


def quarter_turns(picture: Pixels, turns: int) -> Pixels:
    return np.rot90(picture, turns)


def scaled(picture: Pixels, rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Resized with one of four usual filters (box only where it gets smaller)."""
    smaller = height < picture.shape[0]
    chosen = _FILTERS[int(rng.integers(len(_FILTERS) if smaller else len(_FILTERS) - 1))]
    return np.asarray(Image.fromarray(picture).resize((max(width, 1), max(height, 1)), chosen))


def resize(picture: Pixels, rng: np.random.Generator, factor: float) -> Pixels:
    height, width = picture.shape[:2]
    return scaled(picture, rng, round(height * factor), round(width * factor))


def resize_any(picture: Pixels, rng: np.random.Generator, low: float, high: float) -> Pixels:
    """By a factor drawn evenly in its logarithm."""
    return resize(picture, rng, low * (high / low) ** rng.uniform())


def resize_and_back(picture: Pixels, rng: np.random.Generator, factor: float) -> Pixels:
    return scaled(resize(picture, rng, factor), rng, picture.shape[0], picture.shape[1])


def crop(picture: Pixels, rng: np.random.Generator, area: float) -> Pixels:
    """A random window of that share of the area, its shape up to 5:4 or 4:5 of the picture's."""
    height, width = picture.shape[:2]
    shape = 1.25 ** rng.uniform(-1, 1)
    rows = min(height, max(math.ceil(height * area), round(height * math.sqrt(area * shape))))
    columns = min(width, round(area * height * width / rows))
    top, left = int(rng.integers(0, height - rows + 1)), int(rng.integers(0, width - columns + 1))
    return picture[top : top + rows, left : left + columns]


def crop_and_resize(picture: Pixels, rng: np.random.Generator, area: float, low: float, high: float) -> Pixels:
    return resize_any(np.ascontiguousarray(crop(picture, rng, area)), rng, low, high)


def occlude(picture: Pixels, rng: np.random.Generator, area: float) -> Pixels:
    """A random rectangle of one colour over that share of the area."""
    out = picture.copy()
    height, width = picture.shape[:2]
    rows = round(height * math.sqrt(area) * 1.5 ** rng.uniform(-1, 1))
    columns = round(area * height * width / rows)
    top, left = int(rng.integers(0, height - rows + 1)), int(rng.integers(0, width - columns + 1))
    out[top : top + rows, left : left + columns] = rng.integers(0, 256, 3)
    return out


def rotate(picture: Pixels, rng: np.random.Generator, degrees: float | None, canvas: Canvas) -> Pixels:
    """By `degrees` either way, or by any angle (None). `keep` cuts the corners, `expand` grows a canvas of one colour, `inscribed` cuts the
    largest upright rectangle without corners, as photo editors do."""
    angle = rng.uniform(0, 360) if degrees is None else degrees * rng.choice([-1, 1])
    fill = tuple(rng.choice([0, 255], 1).repeat(3).tolist())
    height, width = picture.shape[:2]
    turned = Image.fromarray(picture).rotate(angle, Image.Resampling.BICUBIC, expand=canvas != "keep", fillcolor=fill)
    if canvas != "inscribed":
        return np.asarray(turned)
    rows, columns = _inscribed(height, width, math.radians(angle))
    left, top = (turned.width - columns) // 2, (turned.height - rows) // 2
    return np.asarray(turned.crop((left, top, left + columns, top + rows)))


def _inscribed(height: int, width: int, angle: float) -> tuple[int, int]:
    """Rows and columns of the largest upright rectangle inside a turned one."""
    sine, cosine = abs(math.sin(angle)), abs(math.cos(angle))
    long, short = max(height, width), min(height, width)
    if short <= 2 * sine * cosine * long or abs(sine - cosine) < 1e-9:
        half = 0.5 * short
        wide, high = (half / sine, half / cosine) if width >= height else (half / cosine, half / sine)
    else:
        spread = cosine * cosine - sine * sine
        wide, high = (width * cosine - height * sine) / spread, (height * cosine - width * sine) / spread
    return max(8, int(high) - 2), max(8, int(wide) - 2)


def aspect(picture: Pixels, rng: np.random.Generator, factor: float) -> Pixels:
    """The width changed by a factor, the height kept."""
    return scaled(picture, rng, picture.shape[0], round(picture.shape[1] * factor))


def perspective(picture: Pixels, rng: np.random.Generator, amount: float, fill: int = 0) -> Pixels:
    """Every corner moved by up to `amount` of the side, both ways, each at least half of it."""
    height, width = picture.shape[:2]
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], dtype=float)
    moves = rng.uniform(0.5, 1, (4, 2)) * rng.choice([-1, 1], (4, 2)) * amount * np.array([width, height])
    return warp(picture, corners, corners + moves, fill)


def warp(picture: Pixels, source: np.ndarray, target: np.ndarray, fill: int) -> Pixels:
    """Moves the four points `source` (4, 2; x, y) of the picture to `target`; same canvas."""
    rows, right = [], []
    for (x, y), (u, v) in zip(target, source, strict=True):  # Pillow asks for the way back: from the new place to the old
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        right += [u, v]
    back = np.linalg.solve(np.array(rows), np.array(right))
    image = Image.fromarray(picture)
    return np.asarray(
        image.transform(image.size, Image.Transform.PERSPECTIVE, back.tolist(), Image.Resampling.BICUBIC, fillcolor=(fill,) * 3)
    )
