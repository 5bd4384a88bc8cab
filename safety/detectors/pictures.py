"""From a picture to a network's input. Detectors see what they were trained on: anything but uint8 RGB is refused, never guessed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from platemark.safety.closed import require

Picture = NDArray[np.uint8]
T = TypeVar("T")


def require_picture(image: Any) -> None:
    """Raises `SafetyUnavailable` unless `image` is a uint8 RGB array (H, W, 3)."""
    require(isinstance(image, np.ndarray), f"a picture to check must be an array, not {type(image).__name__}")
    require(image.dtype == np.uint8, f"a picture to check must be uint8, not {image.dtype}")
    require(image.ndim == 3 and image.shape[2] == 3 and image.size > 0, f"a picture to check must be (H, W, 3), not {image.shape}")


def resized(image: Picture, height: int, width: int, kernel: Image.Resampling) -> Picture:
    """`image` (H, W, 3) at another size, antialiased where it shrinks (Pillow)."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((width, height), kernel))


def planes(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(H, W, 3) as (1, 3, H, W)."""
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None], np.float32)


def side_by_side(works: Sequence[Callable[[], T]], lanes: int) -> list[T]:
    """What each of `works` gives, in their order, run on `lanes` threads, this one among them. Raises the first error by that order.

    Not a thread pool: its threads would be waited for when the process ends, and a network that hangs must not keep it alive.
    """
    following = count()  # whoever is free takes the next one, so that a long look does not wait behind a short one
    given: dict[int, T] = {}
    failed: dict[int, BaseException] = {}

    def run() -> None:
        while (place := next(following)) < len(works):
            try:
                given[place] = works[place]()
            except BaseException as error:  # noqa: BLE001 - carried over to the asking thread and raised there, interrupts included
                failed[place] = error

    others = [threading.Thread(target=run, daemon=True) for _ in range(1, min(lanes, len(works)))]
    for one in others:
        one.start()
    run()
    for one in others:
        one.join()
    if failed:
        raise failed[min(failed)]
    return [given[place] for place in range(len(works))]
