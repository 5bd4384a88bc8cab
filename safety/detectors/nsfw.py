"""The built-in classifier of sexual pictures: the MobileNetV2 that nsfwjs 4.4.0 (MIT) calls "mid", about 93 % right by its makers' count.

It was trained on photographs and drawings from the web, knows the five classes below and nothing of violence, age or consent; of
generated pictures its makers say nothing. `training/convert_nsfwjs.py` made the file. The smaller network of that package (about 90 %)
takes seven times as many harmless pictures (petals, wood, sand) for skin: see docs/picture-checks.md.
"""

from __future__ import annotations

import time
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from platemark.safety.closed import fail_closed, require
from platemark.safety.detectors.pictures import planes, require_picture, resized
from platemark.safety.detectors.weights import Weights
from platemark.safety.signals import Observation, Signal

SHA256 = "d8df7e6c3a1aae3308fc9246933a5142f400895e5f58efb86f9b022410192556"
CLASSES = ("drawing", "hentai", "neutral", "porn", "sexy")
SIDE = 224
# What each class adds to the score of `sexual`: explicit photographs and drawings all of it; revealing but not explicit pictures half,
# so that even a certain one ends at 0.5, below what policies block and inside their low band.
WEIGHTS = {"hentai": 1.0, "porn": 1.0, "sexy": 0.5}
_FACTORS = np.array([WEIGHTS.get(name, 0.0) for name in CLASSES])


class NsfwDetector:
    """Category `sexual`: P(porn) + P(hentai) + P(sexy) / 2. Safe to share between threads."""

    name = "nsfw"
    model_sha256 = SHA256
    categories = ("sexual",)

    def __init__(self, threads: int | None = None, path: Path | None = None) -> None:
        """`threads` for one operator; None: one, since the gate runs its detectors side by side. `path`: another copy of the same file."""
        own = Path(str(files("platemark.safety").joinpath("models", "nsfw_mobilenet_v2_mid.onnx")))
        self._weights = Weights(path or own, SHA256, threads or 1)

    def prepare(self) -> None:
        """Checks and compiles the weights now. Raises `SafetyUnavailable`."""
        with fail_closed(self.name):
            self._weights.engine()

    def observe(self, image: NDArray[np.uint8]) -> Observation:
        """One signal, whatever its score; its evidence is the class that weighs most. Raises `SafetyUnavailable`."""
        began = time.perf_counter()
        mass = np.array(list(self.probabilities(image).values()))
        shares = mass * _FACTORS
        signal = Signal("sexual", "nsfw_class", float(min(1.0, shares.sum())), CLASSES[int(shares.argmax())])
        return Observation(self.name, self.model_sha256, (signal,), (time.perf_counter() - began) * 1000)

    def probabilities(self, image: NDArray[np.uint8]) -> dict[str, float]:
        """The five classes of one uint8 RGB picture (H, W, 3), squeezed into a square as nsfwjs does: the mean over it and its mirror.

        It shrinks antialiased, as an eye sees it, where nsfwjs skips pixels. Raises `SafetyUnavailable`.
        """
        with fail_closed(self.name):
            require_picture(image)
            seen = pixel_values(image)
            # One after the other: a batch of two takes longer and holds more memory.
            mean = np.concatenate([self._rows(one) for one in (seen, np.ascontiguousarray(seen[..., ::-1]))]).mean(axis=0)
        return {name: float(value) for name, value in zip(CLASSES, mean, strict=True)}

    def _rows(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        rows = self._weights.run({"pixel_values": pixels})["probabilities"]
        require(rows.shape == (len(pixels), len(CLASSES)), f"the classifier gave {rows.shape}")
        require(bool(np.isfinite(rows).all()), "the classifier gave a score that is not finite")
        require(bool((rows >= 0).all() and (np.abs(rows.sum(axis=1) - 1) < 1e-3).all()), "the classifier gave no probabilities")
        return rows


def pixel_values(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the network looks at: float32 (1, 3, 224, 224), RGB in [0, 1]."""
    return planes(resized(image, SIDE, SIDE, Image.Resampling.BILINEAR).astype(np.float32) / np.float32(255))
