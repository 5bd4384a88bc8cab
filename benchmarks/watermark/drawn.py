"""Drawn pictures: flat art (emoji, text, charts, drawn wallpapers, the embedded model's pictures), gradients and noise.

Everything follows from the name and the generator that the caller seeds from it.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from platemark.runtime.pipeline import Pipeline

Pixels = NDArray[np.uint8]
FLAT = ("emoji", "model", "text", "emoji", "chart", "model", "sheet", "wallpaper")  # the kinds of flat art, in turn
FONTS = Path("/usr/share/fonts/truetype")
_EMOJI = FONTS / "noto" / "NotoColorEmoji.ttf"
_STRIKE = 109  # the only size of bitmaps in that font
_WALLPAPERS = {
    "tune": (
        "backgrounds/city.png", "backgrounds/calla.png", "wallpapers/Kay/contents/images/5120x2880.png",
        "wallpapers/PastelHills/contents/images/3200x2000.jpg", "wallpapers/Flow/contents/images/5120x2880.jpg",
    ),
    "report": (
        "backgrounds/desert.png", "backgrounds/rollpaper.png", "wallpapers/Patak/contents/images/5120x2880.png",
        "wallpapers/Volna/contents/images/5120x2880.jpg", "wallpapers/IceCold/contents/images/5120x2880.png",
    ),
}  # fmt: skip
_WORDS = (
    "plate", "mark", "print", "ink", "paper", "press", "proof", "sheet", "edge", "image", "noise", "river", "stone", "letter", "number",
    "table", "season", "harbour", "quiet", "yellow", "seven", "window", "garden", "between", "under", "light", "market", "morning", "paper",
    "bridge", "winter",
)  # fmt: skip


def draw(kind: str, name: str, size: int, rng: np.random.Generator) -> Pixels:
    """uint8 RGB (size, size, 3) for a spec's kind (`flat`, `gradient`, `noise`) and name."""
    if kind == "gradient":
        return _gradient(size, rng)
    if kind == "noise":
        return _noise(size, rng)
    _, split, what, number = name.split("/")
    match what:
        case "emoji":
            return _emoji(split, int(number), size)
        case "model":
            return _model(split, int(number), size)
        case "sheet":
            return _sheet(split, size, rng)
        case "text":
            return _text(size, rng)
        case "chart":
            return _chart(size, rng)
    return _wallpaper(split, int(number), size, rng)


@functools.cache
def glyphs(split: str) -> tuple[str, ...]:
    """The emoji of one half: every second one of those that the embedded model knows."""
    from training.glyphs import choose

    return tuple(glyph.char for glyph in choose()[split == "report" :: 2])


def _glyph(char: str, side: int) -> Image.Image:
    canvas = Image.new("RGBA", (136, 128), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((0, 0), char, font=ImageFont.truetype(_EMOJI, _STRIKE), embedded_color=True)
    return canvas.resize((side, side), Image.Resampling.LANCZOS)


def _emoji(split: str, number: int, size: int) -> Pixels:
    chars, sheet = glyphs(split), Image.new("RGB", (size, size), "white")
    glyph = _glyph(chars[number * 17 % len(chars)], round(0.8 * size))
    sheet.paste(glyph, (round(0.1 * size),) * 2, glyph)
    return np.asarray(sheet)


def _sheet(split: str, size: int, rng: np.random.Generator) -> Pixels:
    """Small glyphs in rows on one colour, as stickers and icons come."""
    chars, sheet, side = glyphs(split), Image.new("RGB", (size, size), _colour(rng, 160, 256)), size // 5
    for place in range(16):
        glyph = _glyph(chars[int(rng.integers(len(chars)))], side)
        sheet.paste(glyph, (round((0.1 + place % 4) * side * 1.2), round((0.1 + place // 4) * side * 1.2)), glyph)
    return np.asarray(sheet)


def _model(split: str, number: int, size: int) -> Pixels:
    """A picture of the embedded model as it leaves the pipeline, unchecked and unmarked."""
    from platemark.models import embedded
    from platemark.runtime.request import GenerationRequest

    names = (embedded() / "names.txt").read_text(encoding="utf-8").splitlines()
    prompt = names[(2 * 31 * number + (split == "report")) % len(names)]
    pipeline = _pipeline()
    request = GenerationRequest.make(pipeline.bundle.manifest, prompt=prompt, seed=number, height=size, width=size)
    return np.asarray(pipeline.generate(request).images[0], dtype=np.uint8)


def _text(size: int, rng: np.random.Generator) -> Pixels:
    paper, ink = ("white", "black") if rng.random() < 0.6 else (_colour(rng, 200, 256), _colour(rng, 0, 90))
    sheet = Image.new("RGB", (size, size), paper)
    pen, y = ImageDraw.Draw(sheet), round(0.05 * size)
    while y < 0.92 * size:
        points = int(rng.choice([0.022, 0.03, 0.05]) * size)
        font = ImageFont.truetype(_font(rng), points)
        line = " ".join(rng.choice(_WORDS, 12).tolist())
        pen.text((round(0.06 * size), y), line[: round(1.65 * size / points)], font=font, fill=ink)
        y += round(points * rng.uniform(1.3, 2.0))
    return np.asarray(sheet)


def _chart(size: int, rng: np.random.Generator) -> Pixels:
    """Bars or lines with axes, grid and labels, on white."""
    sheet = Image.new("RGB", (size, size), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.truetype(_font(rng), max(9, size // 42))
    left, right, top, bottom = (round(part * size) for part in (0.12, 0.95, 0.1, 0.88))
    for step in range(6):
        y = bottom - (bottom - top) * step // 5
        pen.line((left, y, right, y), fill=(215, 215, 215))
        pen.text((round(0.03 * size), y - size // 84), str(step * 20), font=font, fill=(60, 60, 60))
    values = rng.uniform(0.1, 1, 10)
    places = np.linspace(left, right, 11).round().astype(int)
    if rng.random() < 0.5:
        for value, x, after in zip(values, places, places[1:], strict=False):
            pen.rectangle((int(x) + 4, round(bottom - value * (bottom - top)), int(after) - 4, bottom), fill=_colour(rng, 40, 220))
    else:
        for _ in range(3):
            heights = np.clip(np.cumsum(rng.normal(0, 0.15, 10)) + 0.5, 0, 1)
            points = [(int(x), round(bottom - h * (bottom - top))) for x, h in zip(places, heights, strict=False)]
            pen.line(points, fill=_colour(rng, 0, 200), width=max(2, size // 170))
    pen.line((left, top, left, bottom, right, bottom), fill="black", width=2)
    pen.text((left, round(0.03 * size)), " ".join(rng.choice(_WORDS, 4).tolist()), font=font, fill="black")
    return np.asarray(sheet)


def _wallpaper(split: str, number: int, size: int, rng: np.random.Generator) -> Pixels:
    files = [Path("/usr/share") / name for name in _WALLPAPERS[split]]
    here = [path for path in files if path.is_file()]
    if not here:
        return _chart(size, rng)
    with Image.open(here[number % len(here)]) as opened:
        image = opened.convert("RGB")
    side = min(image.size)
    left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side)))


def _gradient(size: int, rng: np.random.Generator) -> Pixels:
    """Linear or radial between two or three colours; half of them with the fine dither that cameras and renderers leave."""
    rows, columns = np.mgrid[0:size, 0:size] / (size - 1)
    if rng.random() < 0.5:
        angle = rng.uniform(0, 2 * np.pi)
        way = (rows - 0.5) * np.sin(angle) + (columns - 0.5) * np.cos(angle)
    else:
        way = np.hypot(rows - rng.uniform(), columns - rng.uniform())
    way = (way - way.min()) / (way.max() - way.min())
    stops = rng.integers(0, 256, (3, 3))
    values = np.stack([np.interp(way, [0, 0.5, 1], stops[:, channel]) for channel in range(3)], axis=2)
    if rng.random() < 0.5:
        values += rng.normal(0, 1, values.shape)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _noise(size: int, rng: np.random.Generator) -> Pixels:
    """Uniform, Gaussian, or with a power law as photographs have it."""
    choice = int(rng.integers(3))
    if choice == 0:
        return rng.integers(0, 256, (size, size, 3)).astype(np.uint8)
    if choice == 1:
        return np.clip(rng.normal(rng.uniform(60, 200), rng.uniform(10, 50), (size, size, 3)), 0, 255).astype(np.uint8)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.rfftfreq(size), indexing="ij"))
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.normal(size=(size, size))) / frequency ** rng.uniform(0.8, 1.6)
    plane = np.fft.irfft2(spectrum, s=(size, size))
    plane = 127 + 50 * (plane - plane.mean()) / plane.std()
    return np.repeat(np.clip(plane, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def _colour(rng: np.random.Generator, low: int, high: int) -> tuple[int, int, int]:
    red, green, blue = rng.integers(low, high, 3).tolist()
    return red, green, blue


def _font(rng: np.random.Generator) -> Path:
    fonts = sorted((FONTS / "dejavu").glob("DejaVuS*.ttf"))
    return fonts[int(rng.integers(len(fonts)))]


@functools.cache
def _pipeline() -> Pipeline:
    from platemark.models import embedded
    from platemark.runtime.bundle import open_bundle
    from platemark.runtime.pipeline import Pipeline

    return Pipeline.load(open_bundle(embedded()), threads=1)
