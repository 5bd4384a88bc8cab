"""How the files beside this script were made: by the real package invisible-watermark 0.2.0 (MIT), as each writer calls it.

pip install --no-deps invisible-watermark==0.2.0 && pip install PyWavelets opencv-python-headless numpy pillow; python make_marks.py
The package imports torch for another method than the one used here; an empty module stands in for it.
"""

import io
import sys
import types
from pathlib import Path

sys.modules["torch"] = types.ModuleType("torch")

import numpy as np  # noqa: E402
from imwatermark import WatermarkEncoder  # noqa: E402
from PIL import Image  # noqa: E402

SDXL = [int(bit) for bit in bin(0b101100111110110010010000011110111011000110011110)[2:]]
FLUX = [int(bit) for bit in bin(0b001010101111111010000111100111001111010100101110)[2:]]


def picture(height: int = 272, width: int = 300) -> np.ndarray:
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    out = np.stack([80 + 90 * x / width, 170 - 90 * y / height, np.full((height, width), 110.0)], axis=-1)
    for _ in range(25):
        cy, cx, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(8, 30)
        out += np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * radius**2))[..., None] * rng.uniform(-90, 90, 3)
    return np.clip(out, 0, 255).astype(np.uint8)


def by_script(rgb: np.ndarray, text: bytes) -> np.ndarray:
    """The Stable Diffusion 1 and 2 scripts: 8-bit BGR."""
    encoder = WatermarkEncoder()
    encoder.set_watermark("bytes", text)
    return encoder.encode(np.ascontiguousarray(rgb[..., ::-1]), "dwtDct")[..., ::-1]


def by_pipeline(rgb: np.ndarray, bits: list[int], *, swapped: bool = False) -> np.ndarray:
    """The SDXL and FLUX pipelines: float pixels; older diffusers releases gave RGB where BGR is meant."""
    encoder = WatermarkEncoder()
    encoder.set_watermark("bits", bits)
    pixels = rgb.astype(np.float32)
    marked = encoder.encode(pixels, "dwtDct") if swapped else encoder.encode(np.ascontiguousarray(pixels[..., ::-1]), "dwtDct")[..., ::-1]
    return np.clip(np.rint(marked), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    plain = picture()
    made = {
        "plain": plain,
        "sd1": by_script(plain, b"StableDiffusionV1"),
        "sd2": by_script(plain, b"SDV2"),
        "sdxl": by_pipeline(plain, SDXL),
        "sdxl-swapped": by_pipeline(plain, SDXL, swapped=True),
        "flux": by_pipeline(plain, FLUX),
    }
    for name, array in made.items():
        out = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(array)).save(out, "WEBP", lossless=True, quality=100, method=6)
        (Path(__file__).parent / f"{name}.webp").write_bytes(out.getvalue())
