"""What a UNet trained for inpainting reads beside its latents: the mask, and the latents of the picture without what is painted anew.

In the order of Stable Diffusion's inpainting checkpoints: latents, mask (1 where it is painted anew), masked picture. Without a picture,
or without a mask, everything is painted anew. Knows nothing about prompts or samplers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from platemark.runtime.codec import Codec, to_sample
from platemark.runtime.sizes import RenderSize
from platemark.runtime.start import Canvas

Float = NDArray[np.float32]


def covered_channels(codec: Codec, canvas: Canvas | None, size: RenderSize, cell: int) -> Float:
    """(1, 1 + C, h, w): mask and masked latents. `cell`: pixels of a latent cell, a side. Errors as of `Codec.encode_sample`."""
    if canvas is None or canvas.cells is None or canvas.covered is None:
        mask = np.ones((1, 1, size.height // cell, size.width // cell), np.float32)
        return np.concatenate([mask, codec.encode_sample(np.zeros((1, 3, size.height, size.width), np.float32))], axis=1)
    sample = to_sample(canvas.rendered)
    sample[..., canvas.covered] = 0.0
    mask = canvas.cells[np.newaxis, np.newaxis].astype(np.float32)
    return np.concatenate([mask, codec.encode_sample(sample)], axis=1)
