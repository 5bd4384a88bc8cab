"""The VAE's two engines as pictures in and out: latents as the denoise loop has them, pictures as float32 in [0, 1].

One picture at a time, so that it does not depend on its neighbours and memory does not grow with them. Knows nothing about prompts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from platemark.runtime.engine import Engine
from platemark.runtime.manifest import Manifest
from platemark.runtime.render import check_finite, to_array
from platemark.runtime.tiles import Tiling

Float = NDArray[np.float32]
TILES = Tiling(tile=64, margin=6, feather=8)  # cells: 512 pixels a tile, what decoders are trained at


class Codec:
    """`engine(component)` gives the engine of `vae_encoder` or `vae_decoder`; the encoder's is asked for only where a picture comes in."""

    def __init__(self, manifest: Manifest, engine: Callable[[str], Engine]) -> None:
        self._cell = manifest.vae_scale_factor
        mean, std = (np.array(values or fallback, np.float32).reshape(1, -1, 1, 1) for values, fallback in (
            (manifest.latents_mean, [0.0]), (manifest.latents_std, [1.0])))  # fmt: skip
        self._scale, self._shift = np.float32(manifest.scaling_factor) / std, np.float32(manifest.shift_factor) + mean
        self._engine = engine

    def decode(self, latents: Float, what: str, *, tiled: bool = False) -> Float:
        """A picture (H, W, 3) from latents (1, C, h, w), all at once or in `TILES`, which needs the memory of one of them only.

        Raises `RenderError`, naming `what`, for values that are not finite.
        """
        check_finite(latents, f"the latents of {what}")
        decoder, cells = self._engine("vae_decoder"), latents / self._scale + self._shift
        decoded = self._in_tiles(decoder, cells) if tiled else decoder.run({"latent_sample": cells})["sample"][0]
        check_finite(decoded, f"the picture of {what}")
        return to_array(decoded)

    def _in_tiles(self, decoder: Engine, cells: Float) -> Float:
        def compute(rows: slice, columns: slice) -> Float:
            part: Float = decoder.run({"latent_sample": np.ascontiguousarray(cells[:, :, rows, columns])})["sample"][0]
            return part

        return TILES.whole(compute, (cells.shape[2], cells.shape[3]), 3, self._cell)

    def encode(self, picture: NDArray[np.uint8]) -> Float:
        """Latents (1, C, h, w) of a picture (H, W, 3): the mean of the encoder's distribution.

        Raises `BundleError` where the bundle has no encoder, `RenderError` for values that are not finite.
        """
        return self.encode_sample(to_sample(picture))

    def encode_sample(self, sample: Float) -> Float:
        """As `encode`, of a picture as the encoder takes it: (1, 3, H, W) in [-1, 1]."""
        mean = self._engine("vae_encoder").run({"sample": sample})["latent_mean"]
        latents: Float = (mean - self._shift) * self._scale
        check_finite(latents, "the latents of the input picture")
        return latents


def to_sample(picture: NDArray[np.uint8]) -> Float:
    """A picture (H, W, 3) as the encoder takes it: (1, 3, H, W) in [-1, 1]."""
    sample: Float = np.ascontiguousarray(picture.transpose(2, 0, 1)[np.newaxis], np.float32) / np.float32(127.5) - np.float32(1.0)
    return sample
