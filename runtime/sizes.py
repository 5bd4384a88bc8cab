"""At what size the networks run for a requested size, and how the picture gets there. Knows nothing about prompts or samplers.

A model that is delivered larger than it renders (`output_size` is not `native_size`) knows one size only: it renders that, and the
picture is resampled. Any other model renders the requested size itself, rounded up to what its UNet can halve, and the rest is cut off.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from platemark.errors import BundleError
from platemark.runtime.bundle import Bundle
from platemark.runtime.manifest import Manifest
from platemark.runtime.resize import fit

UNET_CONFIG = "unet/config.json"
MAX_BATCH = 8  # pictures in one network call (16 rows with guidance): more gains nothing, and memory grows with it
_USUAL_LEVELS = 4  # of a Stable Diffusion UNet: its latents are halved three times


@dataclass(frozen=True)
class RenderSize:
    """`height`, `width`: pixels that the networks render. `resampled`: whether a requested size is reached by resampling, else by a cut."""

    height: int
    width: int
    resampled: bool

    def deliver(self, picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
        """A rendered picture (H, W, 3) at the requested size."""
        if self.resampled:
            return fit(picture, height, width)
        top, left = (self.height - height) // 2, (self.width - width) // 2
        return picture[top : top + height, left : left + width]


def one_size_only(manifest: Manifest) -> bool:
    """Whether the model renders its native size and no other."""
    return manifest.native_size != manifest.output_size


def render_size(manifest: Manifest, multiple: int, height: int, width: int) -> RenderSize:
    """What is rendered for a request of that size. `multiple`: pixels that every rendered side must be a multiple of."""
    if one_size_only(manifest):
        return RenderSize(*manifest.native_size, resampled=manifest.native_size != (height, width))
    return RenderSize(-(-height // multiple) * multiple, -(-width // multiple) * multiple, resampled=False)


def batch_size(manifest: Manifest, size: RenderSize) -> int:
    """Pictures in one network call: `MAX_BATCH` at the native size, fewer of larger ones."""
    height, width = manifest.native_size
    return max(1, min(MAX_BATCH, MAX_BATCH * height * width // (size.height * size.width)))


def side_multiple(bundle: Bundle) -> int:
    """Pixels a side that the UNet can halve as often as it has levels, by its config; a Stable Diffusion UNet's where it has none.

    Raises `BundleError` where the config cannot be read.
    """
    levels = _USUAL_LEVELS
    if UNET_CONFIG in bundle.manifest.files:
        try:
            levels = len(json.loads(bundle.file(UNET_CONFIG).read_text(encoding="utf-8"))["block_out_channels"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{UNET_CONFIG} does not say block_out_channels", "rebuild the bundle from a whole checkpoint") from error
    return int(bundle.manifest.vae_scale_factor * 2 ** (levels - 1))
