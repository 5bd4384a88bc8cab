"""What a picture under way looks like: its latents through a linear map to colours that the build fitted. One pixel a latent cell.

No network is asked, so a preview costs next to nothing, and shows no more than the latents' own few pixels. Knows nothing about policies.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from platemark.runtime.manifest import LatentColours

Latents = NDArray[np.float32]
Preview = NDArray[np.uint8]
_FAR = np.float32(1e4)  # no picture's latents are; a broken one shall not end a request by its preview


class ColourMap:
    """Latents, scaled as the denoise loop has them, to RGB."""

    def __init__(self, colours: LatentColours) -> None:
        self._weights = np.asarray(colours.weights, np.float32) * np.float32(255.0)
        self._bias = np.asarray(colours.bias, np.float32) * np.float32(255.0)

    def __call__(self, latents: Latents) -> Preview:
        """uint8 (h, w, 3) of latents (1, C, h, w)."""
        finite = np.clip(np.nan_to_num(latents[0]), -_FAR, _FAR)
        levels = np.tensordot(finite, self._weights, axes=(0, 0)) + self._bias
        shown: Preview = np.clip(levels, 0.0, 255.0).astype(np.uint8)
        return shown
