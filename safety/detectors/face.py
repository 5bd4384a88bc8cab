"""The face gate: CenterFace (Xu et al. 2019, MIT) finds faces, and knows nothing of whose they are, of age, or of photo against drawing.

It was trained on photographs (WIDER FACE). A face counts from about 32 pixels a side on as the network sees it: of pictures up to 640
pixels that is a fifteenth of the longer side. Up to 1024 pixels smaller ones are found where the look at the whole hints at them, which
it does for most from a twentieth on; larger pictures are looked at in tiles too. `training/convert_centerface.py` made the file.
"""

from __future__ import annotations

import time
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from platemark.runtime.engine import Array
from platemark.safety.closed import fail_closed, require
from platemark.safety.detectors.boxes import Boxes, Window, around, distinct, tiles, whole
from platemark.safety.detectors.pictures import Picture, planes, require_picture, resized, side_by_side
from platemark.safety.detectors.weights import Weights
from platemark.safety.signals import Face, Observation, Signal

SHA256 = "a9dc45d65b858f5606b66a5898a00d94e3fdc154e4332efb07728013925a05ee"
THRESHOLD = 0.5  # from which score on a face is one; policies set their own
FLOOR = 0.2  # below it a box is not reported at all
STRIDE, MULTIPLE = 4, 32  # pixels a cell of the maps; what the network's sides must be multiples of
_WHOLE, _GROW = 480, 2.0  # longer side of the look at the whole picture; how much a small picture may grow
_WIDE = 544  # the same for pictures from `_SMALL` to `_MEDIUM`, where a face is small in the whole
_COARSE = (224, 160)  # of further looks, for faces that fill the picture: at 480 they score lower than at half and a third of it
_SMALL = 640  # pictures with no longer side get by with these looks
_MEDIUM = 1024  # those up to here are looked at closely where a look at the whole hints at a face; larger ones in tiles, all over
_HINT, _SURE = 0.03, 0.6  # a hint is a score from here on; faces from here on, the most that a policy may ask for, need no closer look
_CLOSE, _MOST = 224, 5  # side of a closer look in the picture's own pixels, and how many there are at most
_TILE, _OVERLAP, _AREA, _LONGEST = 640, 96, 1248**2, 4992
_SAME, _INSIDE = 0.3, 0.7
_GREY = 127
_CANDIDATES = 2000  # best cells that are looked into: a bound on time, far above what a crowd needs
_MAPS = {"heatmap": 1, "scale": 2, "offset": 2}
_LANES = 2  # looks at a time
Found = tuple[Boxes, NDArray[np.float64]]


class FaceDetector:
    """Category `face`: the best score in the picture, and every box from `FLOOR` on. Safe to share between threads."""

    name = "face"
    model_sha256 = SHA256
    categories = ("face",)

    def __init__(self, threads: int | None = None, path: Path | None = None) -> None:
        """`threads`: looks at a time, each on one core; None: two. `path`: another copy of the same file."""
        self._weights = Weights(path or Path(str(files("platemark.safety").joinpath("models", "centerface.onnx"))), SHA256, 1)
        self._lanes = threads or _LANES

    def prepare(self) -> None:
        """Checks and compiles the weights now. Raises `SafetyUnavailable`."""
        with fail_closed(self.name):
            self._weights.engine()

    def observe(self, image: NDArray[np.uint8]) -> Observation:
        """One signal, whatever its score, and the faces, best first. Raises `SafetyUnavailable`."""
        began = time.perf_counter()
        faces = self.faces(image)
        signal = Signal("face", "face_found", faces[0].score if faces else 0.0)
        return Observation(self.name, self.model_sha256, (signal,), (time.perf_counter() - began) * 1000, faces)

    def faces(self, image: NDArray[np.uint8]) -> tuple[Face, ...]:
        """The faces of one uint8 RGB picture (H, W, 3), best first. Raises `SafetyUnavailable`."""
        with fail_closed(self.name):
            require_picture(image)
            boxes, scores = self._found(image)
            kept = distinct(boxes, scores, _SAME, _INSIDE)
        return tuple(
            Face((float(b[0]), float(b[1]), float(b[2]), float(b[3])), float(s)) for b, s in zip(boxes[kept], scores[kept], strict=True)
        )

    def _found(self, image: Picture) -> Found:
        """Boxes and scores from `FLOOR` on, of every look."""
        height, width = image.shape[:2]
        longest = max(height, width)
        windows = [
            whole(height, width, _WIDE if _SMALL < longest <= _MEDIUM else _WHOLE, _GROW),
            *(whole(height, width, side, 1.0) for side in _COARSE),
        ]
        if longest > _MEDIUM:
            windows += tiles(height, width, _TILE, _OVERLAP, _AREA, _LONGEST)
        looks = self._looks(image, windows)
        if _SMALL < longest <= _MEDIUM:
            looks += self._looks(image, around(_hints(*looks[0]), height, width, _CLOSE, _MOST))
        boxes, scores = (np.concatenate(parts) for parts in zip(*looks, strict=True))
        return boxes[scores >= FLOOR], scores[scores >= FLOOR]

    def _looks(self, image: Picture, windows: list[Window]) -> list[Found]:
        return side_by_side([partial(self._look, image, window) for window in windows], self._lanes)

    def _look(self, image: Picture, window: Window) -> Found:
        """Boxes in pixels of the picture, and scores, hints included, of one window."""
        part = image[window.top : window.top + window.height, window.left : window.left + window.width]
        height, width = (max(1, round(side * window.scale)) for side in part.shape[:2])
        seen = _padded(resized(part, height, width, Image.Resampling.BILINEAR))
        boxes, scores = _boxes(self._maps(planes(seen.astype(np.float32))))
        factors = np.array([part.shape[1] / width, part.shape[0] / height] * 2)
        placed = boxes * factors + np.array([window.left, window.top] * 2)
        limits = np.array([image.shape[1], image.shape[0]] * 2, np.float64)
        placed = np.clip(placed, 0, limits)
        real = (placed[:, 2] > placed[:, 0]) & (placed[:, 3] > placed[:, 1])
        return placed[real], scores[real]

    def _maps(self, pixels: NDArray[np.float32]) -> dict[str, Array]:
        maps = self._weights.run({"pixels": pixels})
        cells = (pixels.shape[2] // STRIDE, pixels.shape[3] // STRIDE)
        for name, channels in _MAPS.items():
            require(maps[name].shape == (1, channels, *cells), f"CenterFace gave {name} as {maps[name].shape}")
            require(bool(np.isfinite(maps[name]).all()), f"CenterFace gave {name} that is not finite")
        heat = maps["heatmap"]
        require(bool((heat >= 0).all() and (heat <= 1).all()), "CenterFace gave scores outside [0, 1]")
        return maps


def _hints(boxes: Boxes, scores: NDArray[np.float64]) -> Boxes:
    """Middles (N, 2) of the boxes of a look that may be faces, best first; those inside a face that is sure are left out."""
    middles = np.stack([boxes[:, [0, 2]].mean(axis=1), boxes[:, [1, 3]].mean(axis=1)], axis=1)
    sure = boxes[scores >= _SURE][:, None]
    inside = ((middles >= sure[..., :2]) & (middles <= sure[..., 2:])).all(axis=2).any(axis=0)
    return middles[~inside]


def _padded(image: Picture) -> Picture:
    """Grey to the right and below, up to multiples of 32."""
    height, width = (-(-side // MULTIPLE) * MULTIPLE for side in image.shape[:2])
    canvas = np.full((height, width, 3), _GREY, np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas


def _boxes(maps: dict[str, Array]) -> Found:
    """Boxes in pixels of the window and their scores, best first, from `_HINT` on.

    A cell's face has its centre at (cell + offset + 0.5) * 4 and sides exp(scale) * 4.
    """
    heat = maps["heatmap"][0, 0]
    rows, columns = np.nonzero(heat >= _HINT)
    best = np.argsort(-heat[rows, columns], kind="stable")[:_CANDIDATES]
    rows, columns = rows[best], columns[best]
    tall, wide = (np.exp(np.minimum(maps["scale"][0, axis, rows, columns].astype(np.float64), 8)) * STRIDE for axis in (0, 1))
    down, across = (maps["offset"][0, axis, rows, columns].astype(np.float64) for axis in (0, 1))
    middle, centre = (rows + down + 0.5) * STRIDE, (columns + across + 0.5) * STRIDE
    boxes = np.stack([centre - wide / 2, middle - tall / 2, centre + wide / 2, middle + tall / 2], axis=1)
    return boxes, heat[rows, columns].astype(np.float64)
