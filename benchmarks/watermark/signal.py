"""Changes that keep every pixel where it is: compression, photometric changes, filters, noise."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter
from scipy import ndimage

Pixels = NDArray[np.uint8]


def same(picture: Pixels) -> Pixels:
    return picture


def rounded(values: NDArray[Any]) -> Pixels:
    """Any real values → uint8."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _through(picture: Pixels, file_format: str, **options: Any) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, file_format, **options)
    with Image.open(buffer) as image:
        return np.asarray(image.convert("RGB"))


def jpeg(picture: Pixels, quality: int) -> Pixels:
    """With half colour resolution (4:2:0), as most programs write it."""
    return _through(picture, "JPEG", quality=quality, subsampling=2)


def webp(picture: Pixels, quality: int) -> Pixels:
    return _through(picture, "WEBP", quality=quality)


def avif(picture: Pixels, quality: int) -> Pixels:
    return _through(picture, "AVIF", quality=quality, speed=8)


def palette(picture: Pixels, colours: int) -> Pixels:
    """As a GIF or a small PNG has it, with dithering."""
    image = Image.fromarray(picture).quantize(colours, Image.Quantize.MEDIANCUT)
    return np.asarray(image.convert("RGB"))


def brightness(picture: Pixels, factor: float) -> Pixels:
    return np.asarray(ImageEnhance.Brightness(Image.fromarray(picture)).enhance(factor))


def contrast(picture: Pixels, factor: float) -> Pixels:
    return np.asarray(ImageEnhance.Contrast(Image.fromarray(picture)).enhance(factor))


def saturation(picture: Pixels, factor: float) -> Pixels:
    return np.asarray(ImageEnhance.Color(Image.fromarray(picture)).enhance(factor))


def gamma(picture: Pixels, exponent: float) -> Pixels:
    """Above 1 darkens."""
    table = rounded(255 * (np.arange(256) / 255) ** exponent)
    return np.asarray(table[picture])


def gray(picture: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(picture).convert("L").convert("RGB"))


def sharpen(picture: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.UnsharpMask(radius=2, percent=100, threshold=2)))


def blur(picture: Pixels, sigma: float) -> Pixels:
    """Gaussian, `sigma` in pixels."""
    return rounded(ndimage.gaussian_filter(picture.astype(np.float32), (sigma, sigma, 0)))


def median(picture: Pixels, side: int) -> Pixels:
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.MedianFilter(side)))


def noise(picture: Pixels, rng: np.random.Generator, sigma: float) -> Pixels:
    """Gaussian, independent in every sample, `sigma` in levels."""
    return rounded(picture + rng.normal(0, sigma, picture.shape))


def denoise(picture: Pixels, strength: float) -> Pixels:
    """Non-local means (Buades et al. 2005, scikit-image's fast mode), `strength` in levels; 15 leaves little of any texture."""
    from skimage.restoration import denoise_nl_means

    values = picture.astype(np.float32) / 255
    return rounded(255 * denoise_nl_means(values, 5, 6, h=strength / 255, fast_mode=True, channel_axis=2))


def noise_and_denoise(picture: Pixels, rng: np.random.Generator, sigma: float, strength: float) -> Pixels:
    return denoise(noise(picture, rng, sigma), strength)


def residual(picture: Pixels) -> NDArray[np.float32]:
    """What a blind attacker takes for the mark: the picture less its 3×3 median, float32 (height, width, 3)."""
    return picture.astype(np.float32) - ndimage.median_filter(picture, (3, 3, 1)).astype(np.float32)
