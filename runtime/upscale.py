"""Finished pictures made larger by a whole factor: Lanczos, or a super-resolution network in tiles. Knows no prompts and no policies.

A network enlarges by its own factor, as often as it takes to reach the one that is asked for; Lanczos goes back from there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from platemark.errors import InputError
from platemark.runtime.engine import Engine
from platemark.runtime.manifest import UpscalerCard
from platemark.runtime.render import check_finite
from platemark.runtime.tiles import Tiling

COMPONENT = "upscaler"
MAX_FACTOR = 8
MAX_PIXELS = 2**26  # of the result: what `imaging` reads
_MAX_ON_THE_WAY = 2**27  # pixels; a network may make more of a picture than is asked for: 384 MiB as uint8 RGB
_TILE = 256  # cells a side, where a network takes any size: its layers hold tens of numbers for each pixel of the result
_FEATHER = 8
Picture = NDArray[np.uint8]
Enlarge = Callable[[Picture], Picture]


def lanczos(picture: Picture, height: int, width: int) -> Picture:
    """`picture` (H, W, 3) as (height, width, 3), by Lanczos (a = 3, Pillow's)."""
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def upscale(picture: Picture, factor: int, network: Network | None = None) -> Picture:
    """`picture` (H, W, 3) as (factor · H, factor · W, 3).

    Raises `InputError` where that is too large, `EngineError`, and `RenderError` where the network gives values that are not finite.
    """
    height, width = factor * picture.shape[0], factor * picture.shape[1]
    check_size(picture.shape[0], picture.shape[1], factor, None if network is None else network.card)
    while network is not None and picture.shape[0] < height:
        picture = network(picture)
    return lanczos(picture, height, width)


def check_size(height: int, width: int, factor: int, card: UpscalerCard | None) -> None:
    """Raises `InputError` where a picture of that size would become too large on its way."""
    reached = factor
    if card is not None:
        reached = card.factor
        while reached < factor:
            reached *= card.factor
    if height * width * factor**2 > MAX_PIXELS or height * width * reached**2 > _MAX_ON_THE_WAY:
        raise InputError(
            f"a picture of {height} x {width} enlarged {reached} times is larger than can be made or read",
            "ask for a smaller factor or a smaller picture",
        )


def how(factor: int, card: UpscalerCard | None) -> str:
    """What the record says of the enlargement: `2 lanczos`, `2 real-esrgan`."""
    return f"{factor} {'lanczos' if card is None else card.name}"


class Network:
    """A super-resolution network behind its card. Safe to share between threads, as its engine is."""

    def __init__(self, engine: Engine, card: UpscalerCard) -> None:
        self.card, self._engine = card, engine
        self._input, self._output = engine.inputs[0], engine.outputs[0].name

    def __call__(self, picture: Picture) -> Picture:
        """`picture` enlarged by the card's factor. Memory grows with the result's bytes and with a row of tiles, not with its layers."""
        height, width = picture.shape[:2]
        card = self.card
        framed = self._framed(picture)
        out = np.empty((card.factor * height, card.factor * width, 3), np.uint8)
        tiling = tiling_for(card)
        for first, rows in tiling.bands(lambda r, c: self._tile(framed[r, c]), (framed.shape[0], framed.shape[1]), 3, card.factor):
            kept = rows[:, : max(0, len(out) - first), : out.shape[1]]
            out[first : first + kept.shape[1]] = np.round(kept.transpose(1, 2, 0) * np.float32(255.0)).astype(np.uint8)
        return out

    def _framed(self, picture: Picture) -> Picture:
        """With its last row and column repeated up to a size that the network takes."""
        sides = [self._side(length) - length for length in picture.shape[:2]]
        return picture if not any(sides) else np.pad(picture, ((0, sides[0]), (0, sides[1]), (0, 0)), "edge")

    def _side(self, length: int) -> int:
        card = self.card
        return max(length, card.tile) if card.tile is not None else -(-max(length, card.smallest) // card.multiple) * card.multiple

    def _tile(self, pixels: Picture) -> NDArray[np.float32]:
        """One tile (h, w, 3) through the network: (3, factor · h, factor · w) in [0, 1]."""
        high = np.float32(self.card.value_range)
        sample = np.ascontiguousarray(pixels.transpose(2, 0, 1)[np.newaxis], np.float32) / np.float32(255.0) * high
        made = self._engine.run({self._input.name: sample.astype(self._input.dtype)})[self._output][0].astype(np.float32)
        check_finite(made, "the enlarged picture")
        unit: NDArray[np.float32] = np.clip(made / high, 0.0, 1.0)
        return unit


def tiling_for(card: UpscalerCard) -> Tiling:
    """Tiles whose margin covers the network's reach; as much of it as a network of one fixed size leaves room for."""
    if card.tile is not None:
        feather = min(_FEATHER, max(1, card.tile // 16))
        return Tiling(card.tile, max(0, min(card.reach, ((card.tile - 2) // 3 - feather) // 2)), feather)
    tile = max(_TILE, 3 * (2 * card.reach + _FEATHER) + 2)
    return Tiling(-(-tile // card.multiple) * card.multiple, card.reach, _FEATHER)
