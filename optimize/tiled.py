"""How far a picture decoded in tiles is off the one decoded at once: measured when the bundle is built, and kept in it.

A tile's normalisation and attention know the tile alone, so the error depends on the decoder and not on the seams. Knows no memory.
"""

from __future__ import annotations

import math

import numpy as np

from platemark.optimize.pictures import shaded
from platemark.runtime.codec import TILES, Codec
from platemark.runtime.manifest import Manifest, TiledDecode

PICTURES = 2
_SEED = 21


def measure_tiles(manifest: Manifest, codec: Codec) -> TiledDecode:
    """The worst of some pictures half as wide again as a tile. Raises `BundleError` and `EngineError`."""
    side = TILES.tile * 3 // 2 * manifest.vae_scale_factor
    squares, largest = 0.0, 0.0
    for picture in shaded(side, PICTURES, _SEED):
        latents = codec.encode(picture)
        error = codec.decode(latents, "a test picture", tiled=True) - codec.decode(latents, "a test picture")
        squares, largest = max(squares, float(np.square(error).mean())), max(largest, float(np.abs(error).max()))
    decibels = round(-10 * math.log10(max(squares, 1e-12)), 1)
    return TiledDecode(tile=TILES.tile, height=side, width=side, psnr=decibels, max_abs_error=float(f"{largest:.3g}"))
