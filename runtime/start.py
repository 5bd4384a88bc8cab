"""Where a picture starts from: noise, a mixture of two noises, or an input picture with some of it kept.

Image to image as in SDEdit (Meng et al. 2021): the input's latents with the noise of a later step. Inpainting with any UNet as in RePaint
(Lugmayr et al. 2022, equation 8), without its resampling: after each step what lies outside the mask is put back at that step's noise.
Knows nothing about prompts or networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from platemark.runtime.resize import fit
from platemark.runtime.schedulers import Stepper
from platemark.runtime.sizes import RenderSize

Float = NDArray[np.float32]
Picture = NDArray[np.uint8]
PAINT = 128  # a mask's level from which on a pixel is painted anew


@dataclass(frozen=True)
class Canvas:
    """An input picture at the sizes of a request. `delivered`: uint8 (height, width, 3); `rendered`: as the networks take it, (H, W, 3).

    `paint`: where the picture is made anew, bool (height, width); None: everywhere. `covered`: the same as it is rendered, (H, W);
    `cells`: over latent cells (h, w), true where any pixel of the cell is.
    """

    delivered: Picture
    rendered: Picture
    paint: NDArray[np.bool_] | None
    covered: NDArray[np.bool_] | None
    cells: NDArray[np.bool_] | None

    @classmethod
    def of(cls, image: Picture, mask: Picture | None, target: tuple[int, int], size: RenderSize, cell: int) -> Canvas:
        """`image` (H, W, 3), with `mask` (H, W) at its side, for a picture of `target` (height, width). `cell`: pixels of a latent cell."""
        delivered = fit(image, *target)
        rendered = _placed(delivered, size)
        if mask is None:
            return cls(delivered, rendered, None, None, None)
        paint = fit(np.repeat(mask[..., np.newaxis], 3, axis=2), *target)[..., 0] >= PAINT
        wide = _placed(np.repeat(paint[..., np.newaxis], 3, axis=2).astype(np.uint8) * 255, size)[..., 0] > 0
        rows, columns = wide.shape[0] // cell, wide.shape[1] // cell
        cells: NDArray[np.bool_] = np.asarray(wide.reshape(rows, cell, columns, cell).any(axis=(1, 3)))
        return cls(delivered, rendered, paint, wide, cells)

    def composed(self, picture: Picture) -> Picture:
        """`picture` (height, width, 3) where it was to be made anew, the input bit for bit elsewhere."""
        return picture if self.paint is None else np.where(self.paint[..., np.newaxis], picture, self.delivered)


def condition(picture: Picture, target: tuple[int, int], size: RenderSize) -> Float:
    """A ControlNet's picture as it takes it, (1, 3, H, W) in [0, 1]: fitted as an input picture is."""
    placed = _placed(fit(picture, *target), size)
    values: Float = np.ascontiguousarray(placed.transpose(2, 0, 1)[np.newaxis], np.float32) / np.float32(255.0)
    return values


def _placed(picture: Picture, size: RenderSize) -> Picture:
    """The picture at the rendered size, where `RenderSize.deliver` takes it from: resampled, or in the middle with its edges drawn out."""
    rows, columns = picture.shape[:2]
    if size.resampled:
        return fit(picture, size.height, size.width)
    top, left = (size.height - rows) // 2, (size.width - columns) // 2
    return np.pad(picture, ((top, size.height - rows - top), (left, size.width - columns - left), (0, 0)), mode="edge")


@dataclass(frozen=True)
class Origin:
    """An input picture, and its latents (1, C, h, w)."""

    canvas: Canvas
    latents: Float


@dataclass(frozen=True)
class Kept:
    """Puts back, after each evaluation, the latents outside the mask. `original`: (1, C, h, w); `cells`: (h, w)."""

    stepper: Stepper
    original: Float
    noise: Float
    cells: NDArray[np.bool_]

    @cached_property
    def _room(self) -> Float:
        return np.empty_like(self.original)

    @cached_property
    def _kept(self) -> NDArray[np.bool_]:
        return ~self.cells

    def __call__(self, i: int, latents: Float) -> None:
        np.copyto(latents, self.stepper.add_noise(self.original, self.noise, i + 1, self._room), where=self._kept)


def first_evaluation(stepper: Stepper, steps: int, strength: float) -> int:
    """The evaluation that an image-to-image run begins with: the last `strength` of its steps are taken, and one at least."""
    taken = max(1, min(steps, int(steps * strength)))
    return stepper.evaluation(steps - taken)


def mixed(noise: Float, other: Float, share: float) -> Float:
    """Spherical interpolation of two standard normal arrays, which stays standard normal in size: 0 is `noise`, 1 is `other`."""
    cosine = float(np.vdot(noise, other) / np.sqrt(float(np.vdot(noise, noise)) * float(np.vdot(other, other))))
    angle = float(np.arccos(np.clip(cosine, -1.0, 1.0)))
    if np.sin(angle) < 1e-6:
        return noise if share < 0.5 else other
    weights = np.sin((1 - share) * angle) / np.sin(angle), np.sin(share * angle) / np.sin(angle)
    result: Float = np.float32(weights[0]) * noise + np.float32(weights[1]) * other
    return result
