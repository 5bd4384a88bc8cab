"""The linear map from latents to colours that previews are made with: least squares over shaded discs on plain grounds, through the
VAE's encoder. (On the embedded model's own pictures that does better than discs on ramps: 19 dB against 13.)

Knows nothing about samplers; it runs the graph that the bundle ships, so it can be fitted anew on a bundle without its torch networks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from platemark.optimize.pictures import Picture, shaded
from platemark.runtime.codec import Codec
from platemark.runtime.manifest import LatentColours, Manifest

LARGEST_SIDE = 256  # pixels: a thousand cells a picture, and a large VAE's encoder takes a second for each
FITTED, HELD_OUT = 24, 4  # pictures
_SEED = 20
_DIGITS = 5  # kept of each number: the rest is the order of summation


def fit_colours(manifest: Manifest, codec: Codec) -> LatentColours:
    """The map of a bundle's VAE, and how well it does on pictures that it was not fitted to. Raises `BundleError` and `EngineError`."""
    pictures = shaded(min(LARGEST_SIDE, *manifest.native_size), FITTED + HELD_OUT, _SEED)
    pairs = [_pair(picture, codec, manifest.vae_scale_factor) for picture in pictures]
    cells, colours = (np.concatenate([pair[side] for pair in pairs[:FITTED]]) for side in (0, 1))
    solved = np.linalg.lstsq(_with_one(cells), colours, rcond=None)[0]
    rounded = [[float(f"{value:.{_DIGITS}g}") for value in row] for row in solved]
    held = [np.concatenate([pair[side] for pair in pairs[FITTED:]]) for side in (0, 1)]
    return LatentColours(weights=rounded[:-1], bias=rounded[-1], r2=round(_r2(_with_one(held[0]) @ np.array(rounded), held[1]), 3))


def _pair(picture: Picture, codec: Codec, cell: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cells as rows: (cells, C) of the picture's latents, and (cells, 3) of its mean colours in [0, 1]."""
    latents = codec.encode(picture)[0].astype(np.float64)
    rows, columns = latents.shape[1:]
    means = picture.astype(np.float64).reshape(rows, cell, columns, cell, 3).mean(axis=(1, 3)) / 255.0
    return latents.reshape(len(latents), -1).T, means.reshape(-1, 3)


def _with_one(cells: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.hstack([cells, np.ones((len(cells), 1))])


def _r2(predicted: NDArray[np.float64], actual: NDArray[np.float64]) -> float:
    """The share of the colours' variance that the map explains."""
    return float(1.0 - ((predicted - actual) ** 2).sum() / ((actual - actual.mean(axis=0)) ** 2).sum())
