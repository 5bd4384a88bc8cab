"""Chooses the picture-like emoji and draws them: the data of the embedded model.

Source: Noto Color Emoji (Debian package `fonts-noto-color-emoji`; images Apache-2.0, font OFL-1.1); names: the CLDR short
names that the `emoji` package carries. Knows nothing about captions, models or training.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import emoji
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, features

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
NATIVE_SIZE = 109  # the only strike in the font's CBDT table
SIDE = 128
ALIKE = 0.055  # RMS distance, in units of full scale, of the 8×8 colour layout below which two glyphs count as one picture

# Code points that are not pictures of a thing: signs, arrows, buttons, clock faces, zodiac, hands, people, hearts, shapes.
_EXCLUDED_RANGES = (
    (0x00A9, 0x2199), (0x21A9, 0x21AA), (0x23CF, 0x23CF), (0x23E9, 0x23EF), (0x23F8, 0x25FE), (0x2611, 0x2611),
    (0x261D, 0x261D), (0x2622, 0x265E), (0x2660, 0x267F), (0x2695, 0x2695), (0x269B, 0x26A0), (0x26A7, 0x26AB),
    (0x26CE, 0x26CE), (0x26D4, 0x26D4), (0x26F7, 0x26F7), (0x26F9, 0x26F9), (0x2705, 0x2705), (0x270A, 0x270D),
    (0x2714, 0x2721), (0x2733, 0x2734), (0x2747, 0x27BF), (0x2934, 0x2B1C), (0x2B55, 0x3299), (0x1F170, 0x1F251),
    (0x1F3A6, 0x1F3A6), (0x1F3C3, 0x1F3C4), (0x1F3C7, 0x1F3C7), (0x1F3CA, 0x1F3CC), (0x1F3E7, 0x1F3E7), (0x1F3F3, 0x1F3F4),
    (0x1F3C1, 0x1F3C1), (0x1F38C, 0x1F38C), (0x1F442, 0x1F450), (0x1F463, 0x1F478), (0x1F47C, 0x1F47C), (0x1F481, 0x1F483),
    (0x1F485, 0x1F487), (0x1F48B, 0x1F48B), (0x1F48F, 0x1F48F), (0x1F491, 0x1F491), (0x1F493, 0x1F49F), (0x1F4A0, 0x1F4A0),
    (0x1F4A2, 0x1F4A2), (0x1F4A4, 0x1F4A4), (0x1F4A8, 0x1F4A8), (0x1F4AA, 0x1F4AF), (0x1F4B1, 0x1F4B2), (0x1F4F2, 0x1F4F6),
    (0x1F500, 0x1F506),
    (0x1F515, 0x1F515), (0x1F517, 0x1F524), (0x1F52F, 0x1F567), (0x1F574, 0x1F575), (0x1F57A, 0x1F57A),
    (0x1F590, 0x1F596), (0x1F5A4, 0x1F5A4), (0x1F5E3, 0x1F5EF), (0x1F645, 0x1F647), (0x1F64B, 0x1F64F), (0x1F6A3, 0x1F6A3),
    (0x1F6A9, 0x1F6A9), (0x1F6AB, 0x1F6AB), (0x1F6AD, 0x1F6B1), (0x1F6B3, 0x1F6BC), (0x1F6BE, 0x1F6BE), (0x1F6C0, 0x1F6C0),
    (0x1F6C2, 0x1F6C5), (0x1F6CC, 0x1F6CC), (0x1F6D0, 0x1F6D1), (0x1F6DC, 0x1F6DC), (0x1F7E0, 0x1F90F), (0x1F918, 0x1F91F),
    (0x1F926, 0x1F926), (0x1F930, 0x1F939), (0x1F93C, 0x1F93E), (0x1F977, 0x1F977), (0x1F9B5, 0x1F9B6), (0x1F9B8, 0x1F9B9),
    (0x1F9BB, 0x1F9BB), (0x1F9CD, 0x1F9CF), (0x1F9D1, 0x1F9DF), (0x1F9E1, 0x1F9E1), (0x1FA75, 0x1FA77), (0x1FAC2, 0x1FAC5),
    (0x1FAF0, 0x1FAFA), (0x1F1E6, 0x1F1FF),
)  # fmt: skip
_EXCLUDED_NAMES = re.compile(r"\b(button|symbol|sign|arrow curving|o.clock|-thirty|flag|medal|banknote|envelope|mailbox|tray)\b|^person\b")
_KEPT_NAMES = frozenset({"sports medal", "dollar banknote", "envelope", "flag in hole"})
# Names that would make the list ambiguous: drawn almost alike, or a word that means something else first.
_NEAR_DUPLICATES = frozenset({
    "hourglass not done", "timer clock", "snowman without snow", "umbrella on ground", "last quarter moon face",
    "globe showing americas", "globe showing asia australia", "waxing gibbous moon", "waning gibbous moon", "waning crescent moon",
    "first quarter moon", "last quarter moon", "page with curl", "tear off calendar", "speaker low volume", "speaker medium volume",
    "magnifying glass tilted right", "unlocked", "locked with pen", "locked with key", "oncoming automobile", "oncoming taxi",
    "oncoming police car", "tram car", "railway car", "open file folder", "notebook", "green book", "blue book", "orange book",
    "linked paperclips", "motor boat", "dvd", "mobile phone off", "chart increasing with yen", "front facing baby chick",
    "cloud with lightning", "bookmark tabs", "card index dividers", "hammer and wrench", "mate",
})  # fmt: skip


@dataclass(frozen=True)
class Glyph:
    """One picture of the data set: its character, its plain name, and the package's aliases for it."""

    char: str
    name: str
    aliases: tuple[str, ...]


def plain(name: str) -> str:
    """CLDR name → the form prompts use: lower case, hyphens and underscores as spaces, typewriter apostrophe."""
    text = name.strip(":").replace("_", " ").replace("-", " ").replace("’", "'").lower()
    return re.sub(r"\s+", " ", text).strip()


def _has_colour(font: ImageFont.FreeTypeFont, char: str) -> bool:
    _, _, right, bottom = font.getbbox(char)
    canvas = Image.new("RGB", (max(1, int(right)), max(1, int(bottom))), "white")
    ImageDraw.Draw(canvas).text((0, 0), char, font=font, embedded_color=True)
    return bool((np.asarray(canvas) < 250).mean() > 0.02)


def choose() -> list[Glyph]:
    """The glyphs of the data set, in code point order (deterministic for a given font and `emoji` version).

    A glyph drawn almost like an earlier one (`ALIKE`; nearly all are yellow faces) is left out: its name could not be told
    from the other's at the resolution at which the model is evaluated.
    """
    kept: list[Glyph] = []
    layouts: list[NDArray[np.float32]] = []
    for glyph in _candidates():
        layout = layout8(np.asarray(draw(glyph))[None])[0]
        if all(np.sqrt(np.mean((layout - other) ** 2)) >= ALIKE for other in layouts):
            kept.append(glyph)
            layouts.append(layout)
    return kept


def layout8(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """8×8 average-pooled colour: uint8 (N, S, S, 3) → float32 (N, 192) in [0, 1]. S must be a multiple of 8."""
    n, side = images.shape[0], images.shape[1] // 8
    blocks = images.reshape(n, 8, side, 8, side, 3).astype(np.float32)
    return np.asarray(blocks.mean(axis=(2, 4)).reshape(n, -1) / 255.0, dtype=np.float32)


def _candidates() -> list[Glyph]:
    font = ImageFont.truetype(FONT, NATIVE_SIZE)
    glyphs = []
    for char, data in sorted(emoji.EMOJI_DATA.items()):
        bare = char.replace("\ufe0f", "")
        if len(bare) != 1 or data["status"] != emoji.STATUS["fully_qualified"]:
            continue
        name, raw = plain(data["en"]), data["en"].strip(":").replace("_", " ")
        if any(low <= ord(bare) <= high for low, high in _EXCLUDED_RANGES) or name in _NEAR_DUPLICATES:
            continue
        if _EXCLUDED_NAMES.search(raw) and name not in _KEPT_NAMES:
            continue
        if not _has_colour(font, bare):  # newer than the font: it would draw the empty box
            continue
        aliases = tuple(sorted({plain(alias) for alias in data.get("alias", ())} - {name}))
        glyphs.append(Glyph(bare, name, aliases))
    return glyphs


def draw(glyph: Glyph) -> Image.Image:
    """The glyph at its native size on white, cut to 128×128 (the strike is 136×128; its 4-pixel side margins are empty)."""
    if not features.check("freetype2"):
        raise RuntimeError("Pillow was built without FreeType")
    font = ImageFont.truetype(FONT, NATIVE_SIZE)
    left, top, right, bottom = font.getbbox(glyph.char)
    canvas = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(canvas)
    pen.text(((SIDE - (right - left)) // 2 - left, (SIDE - (bottom - top)) // 2 - top), glyph.char, font=font, embedded_color=True)
    return canvas


def images(glyphs: list[Glyph]) -> NDArray[np.uint8]:
    """All glyphs, drawn: uint8 array (N, 128, 128, 3)."""
    return np.stack([np.asarray(draw(glyph)) for glyph in glyphs])
