"""What the wild does to a picture in one go: screenshots, pages, prints, social media, memes."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.watermark import geometry, signal
from benchmarks.watermark.drawn import FONTS
from benchmarks.watermark.signal import Pixels

_LINES = ("When the proof comes back from the printer", "nobody knows who pulled the first sheet", "and the plate is already wiped clean")


def screenshot(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """Shown at 60 to 130 %, through a display's colours, up to 4 % cut off each side, saved as JPEG 80."""
    shown = geometry.resize_any(picture, rng, 0.6, 1.3)
    shown = signal.gamma(shown, float(rng.uniform(0.92, 1.08)))
    height, width = shown.shape[:2]
    top, bottom, left, right = (int(rng.uniform(0, 0.04) * side) for side in (height, height, width, width))
    return signal.jpeg(np.ascontiguousarray(shown[top : height - bottom, left : width - right]), 80)


def page_screenshot(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """The picture at 60 to 110 % on a page with text about it, 1.3 to 1.6 times as wide and high; saved as JPEG 85."""
    shown = Image.fromarray(geometry.resize_any(picture, rng, 0.6, 1.1))
    width, height = (round(side * rng.uniform(1.3, 1.6)) for side in shown.size)
    page = Image.new("RGB", (width, height), (255, 255, 255) if rng.random() < 0.7 else (24, 26, 30))
    pen, font = ImageDraw.Draw(page), ImageFont.truetype(FONTS / "dejavu" / "DejaVuSans.ttf", max(10, height // 50))
    ink = "black" if page.getpixel((0, 0)) == (255, 255, 255) else (220, 220, 220)
    for y in range(8, height, max(16, height // 30)):
        pen.text((12, y), _LINES[y % 3] * 3, font=font, fill=ink)
    page.paste(shown, (int(rng.integers(0, width - shown.width + 1)), int(rng.integers(0, height - shown.height + 1))))
    return signal.jpeg(np.asarray(page), 85)


def print_like(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """Printed and photographed: white margin, gamma, blur σ 1, up to 3° and 1 % of perspective, noise σ 6, JPEG 80."""
    height, width = picture.shape[:2]
    margin = round(0.06 * max(height, width))
    sheet = np.pad(signal.gamma(picture, float(rng.uniform(0.85, 1.2))), ((margin, margin), (margin, margin), (0, 0)), constant_values=250)
    turned = Image.fromarray(sheet).rotate(float(rng.uniform(1, 3) * rng.choice([-1, 1])), Image.Resampling.BICUBIC, fillcolor=(235,) * 3)
    warped = geometry.perspective(np.asarray(turned), rng, 0.01, fill=235)
    return signal.jpeg(signal.noise(signal.blur(warped, 1.0), rng, 6), 80)


def social(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """The long side brought to 1080 or, where it is shorter, by a fifth; then JPEG twice, around 70."""
    height, width = picture.shape[:2]
    factor = min(1080 / max(height, width), float(rng.uniform(0.8, 1.0)))
    return signal.jpeg(signal.jpeg(geometry.resize(picture, rng, factor), int(rng.integers(68, 79))), int(rng.integers(64, 75)))


def meme(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """White bars with text above and below, a line over the picture, then twice resized and saved as JPEG."""
    height, width = picture.shape[:2]
    bar = round(0.13 * height)
    sheet = Image.new("RGB", (width, height + 2 * bar), "white")
    sheet.paste(Image.fromarray(picture), (0, bar))
    pen, font = ImageDraw.Draw(sheet), ImageFont.truetype(FONTS / "dejavu" / "DejaVuSans-Bold.ttf", max(12, width // 24))
    for line, y in zip(_LINES, (bar // 3, height + bar + bar // 3), strict=False):
        pen.text((width // 2, y), line, font=font, fill="black", anchor="ma")
    pen.text((width // 2, bar + round(0.8 * height)), _LINES[2], font=font, fill="white", stroke_width=2, stroke_fill="black", anchor="ma")
    once = signal.jpeg(geometry.resize_any(np.asarray(sheet), rng, 0.8, 1.0), 75)
    return signal.jpeg(geometry.resize_any(once, rng, 0.85, 1.1), 65)
