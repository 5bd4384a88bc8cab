"""From what a network predicts to x₀ and ε, and the bounds that configs put on x₀. Results go into the buffer given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from platemark.runtime.schedulers.base import Latents, Scales, Scratch, weighted


@dataclass(frozen=True)
class Bounds:
    """What keeps x₀ in range: dynamic thresholding, else clipping, else nothing (None)."""

    clip_range: float | None = None
    ratio: float | None = None
    max_value: float = 1.0

    def __call__(self, original: Latents) -> None:
        """Bounds x₀ in place; each image (row) by itself."""
        if self.ratio is not None:
            threshold(original, self.ratio, self.max_value)
        elif self.clip_range is not None:
            np.clip(original, -self.clip_range, self.clip_range, out=original)


def threshold(original: Latents, ratio: float, max_value: float) -> None:
    """Dynamic thresholding (Saharia et al. 2022, "Imagen", section 2.3): x₀ within ± its `ratio` quantile s ≥ 1, over s; in place."""
    for image in original:
        s = np.float32(min(max(float(np.quantile(np.abs(image), ratio)), 1.0), max_value))
        np.clip(image, -s, s, out=image)
        image /= s


def epsilon_from(kind: str, output: Latents, latents: Latents, scales: Scales, scratch: Scratch, out: Latents) -> Latents:
    """ε of the same latents."""
    alpha, sigma = scales
    if kind == "epsilon":
        np.copyto(out, output)
        return out
    if kind == "sample":
        return noise_of(latents, output, scales, out)
    return weighted([(alpha, output), (sigma, latents)], scratch, out)


def noise_of(latents: Latents, original: Latents, scales: Scales, out: Latents) -> Latents:
    """ε = (latents − α·x₀)/σ; `out` may be `original`."""
    np.multiply(original, scales[0], out=out)
    np.subtract(latents, out, out=out)
    np.divide(out, scales[1], out=out)
    return out


def exploding_original(kind: str, output: Latents, latents: Latents, sigma: np.float32, scratch: Scratch) -> Latents:
    """x₀ of latents x₀ + σ·ε (Karras et al. 2022, table 1, with the preconditioning of the "VP" column)."""
    out = scratch("original", latents)
    if kind == "sample":
        np.copyto(out, output)
    elif kind == "epsilon":
        np.multiply(output, sigma, out=out)
        np.subtract(latents, out, out=out)
    else:
        square = sigma**2 + 1
        np.multiply(output, -sigma / np.sqrt(square), out=out)
        rest = np.divide(latents, square, out=scratch("product", latents))
        np.add(out, rest, out=out)
    return out
