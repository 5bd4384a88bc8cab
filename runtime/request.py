"""One request, whole and in range: what the pipeline renders. Knows the bundle's defaults, and nothing about how they are used."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from platemark.errors import InputError
from platemark.runtime.manifest import Manifest
from platemark.runtime.noise import SEEDS, draw_seed
from platemark.runtime.schedulers import NAMES
from platemark.runtime.schedulers.base import NO_SIGNAL
from platemark.runtime.start import PAINT
from platemark.runtime.style import load_style
from platemark.runtime.upscale import MAX_FACTOR

MAX_PROMPT = 10_000  # characters
MIN_SIZE, MAX_SIZE = 64, 4096  # pixels
MAX_GUIDANCE = 50.0
MAX_STEPS = 1000
MAX_IMAGES = 64
MAX_CONTROL = 2.0
DEFAULT_STRENGTH = 0.8
MAX_PIXELS = 2**27  # delivered by one request: 384 MiB as uint8 RGB, which a caller that marks and encodes them holds three times


@dataclass(frozen=True)
class GenerationRequest:
    """Names as diffusers names them. `height` and `width` are those of the delivered image, in pixels.

    Image k of the `n` uses seed + k (modulo 2^64). `scheduler` is one of `schedulers.NAMES`; None: the checkpoint's own. `style` is the
    name of the style whose words the prompts hold already. A `guidance_scale` of 1 or less renders without classifier-free guidance.

    `image` (uint8 RGB, (H, W, 3)) makes it image to image: fitted to the size by a centred cut, and changed the more the higher `strength`
    is (0 to 1: the share of the steps that are taken; None: 0.8, and 1 with a mask). `mask_image` (uint8, (H, W) of the image) makes it
    inpainting: what is 128 or more is painted anew, the rest is kept. `variation_strength` (0 to 1) moves each picture's noise towards
    that of `variation_seed`. `guidance_interval`: the noise levels σ (low, high] at which there is guidance (noise over signal; None:
    all); elsewhere a step costs half. `eta` (0 to 1): how much noise the steps of DDIM or TCD draw; None: 0, and TCD's 0.3.
    `upscale`: how many times as large as `height` and `width` the finished picture is delivered.
    `control_image` (uint8 RGB) is what the bundle's ControlNet sees, fitted like `image`, and `control_scale` how strongly it steers (0 to
    2; 1 as trained). Raises `InputError` where a value is out of range or goes with nothing.
    """

    prompt: str
    negative_prompt: str
    num_inference_steps: int
    guidance_scale: float
    height: int
    width: int
    seed: int
    n: int = 1
    scheduler: str | None = None
    style: str | None = None
    image: NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)
    mask_image: NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)
    strength: float | None = None
    variation_seed: int | None = None
    variation_strength: float = 0.0
    guidance_interval: tuple[float, float] | None = None
    eta: float | None = None
    upscale: int = 1
    control_image: NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)
    control_scale: float | None = None

    def __post_init__(self) -> None:
        check_prompt_text(self.prompt)
        _check_text("negative prompt", self.negative_prompt)
        for name, low, high in (
            ("num_inference_steps", 1, MAX_STEPS),
            ("height", MIN_SIZE, MAX_SIZE),
            ("width", MIN_SIZE, MAX_SIZE),
            ("seed", 0, SEEDS - 1),
            ("n", 1, MAX_IMAGES),
            ("upscale", 1, MAX_FACTOR),
        ):
            # Frozen, yet a numpy integer has to become an int: it would overflow, and JSON could not hold it.
            object.__setattr__(self, name, _whole(name, getattr(self, name), low, high))
        _check_pixels(self.n, self.height * self.upscale, self.width * self.upscale)
        object.__setattr__(self, "guidance_scale", _number("guidance_scale", self.guidance_scale, MAX_GUIDANCE))
        if self.scheduler is not None and self.scheduler not in NAMES:
            raise InputError(f"unknown scheduler {str(self.scheduler)[:40]!r}", f"choose one of {', '.join(NAMES)}")
        check_input_picture(self.image, self.mask_image)
        check_input_picture(self.control_image, None)
        object.__setattr__(self, "control_scale", self._control_scale())
        object.__setattr__(self, "variation_strength", _number("variation_strength", self.variation_strength, 1.0))
        object.__setattr__(self, "strength", self._strength())
        if self.eta is not None:
            object.__setattr__(self, "eta", _number("eta", self.eta, 1.0))
        object.__setattr__(self, "guidance_interval", _interval(self.guidance_interval))
        if self.variation_seed is not None:
            object.__setattr__(self, "variation_seed", _whole("variation_seed", self.variation_seed, 0, SEEDS - 1))
        elif self.variation_strength > 0:
            raise InputError("a variation needs a second seed", "give variation_seed, or leave variation_strength out")

    def _strength(self) -> float | None:
        if self.image is None:
            if self.strength is not None:
                raise InputError("a strength without an image", "give the image that is to be changed, or leave strength out")
            return None
        if self.strength is None:
            return DEFAULT_STRENGTH if self.mask_image is None else 1.0
        return _number("strength", self.strength, 1.0)

    def _control_scale(self) -> float | None:
        if self.control_image is None:
            if self.control_scale is not None:
                raise InputError("a control scale without a control image", "give the picture that controls, or leave control_scale out")
            return None
        return 1.0 if self.control_scale is None else _number("control_scale", self.control_scale, MAX_CONTROL)

    @property
    def operation(self) -> Literal["text2img", "img2img", "inpaint", "upscale"]:
        """`text2img`, `img2img` or `inpaint`; `upscale` for an `UpscaleRequest`."""
        return "text2img" if self.image is None else "img2img" if self.mask_image is None else "inpaint"

    @property
    def brought(self) -> tuple[NDArray[np.uint8], ...]:
        """The pictures that the request brings: what it starts from, and what controls it."""
        return tuple(picture for picture in (self.image, self.control_image) if picture is not None)

    @classmethod
    def make(
        cls,
        manifest: Manifest,
        *,
        prompt: str,
        negative_prompt: str | None = None,
        seed: int | None = None,
        n: int = 1,
        style: str | Path | None = None,
        **settings: Any,
    ) -> GenerationRequest:
        """A request with the bundle's defaults where neither a setting nor the style says otherwise; a seed of None or -1 is drawn.

        `settings`: `num_inference_steps`, `guidance_scale`, `guidance_interval`, `height`, `width`, `scheduler`, `image`, `mask_image`,
        `strength`, `variation_seed`, `variation_strength`, `eta`, `upscale`, `control_image`, `control_scale`; None counts as not given.
        Without a size the input picture gives its own, else the one that controls. `style` is as `style.load_style` takes it. Raises
        `InputError`.
        """
        check_prompt_text(prompt)  # before a style's words would hide that there is none
        worn = None if style is None else load_style(style)
        unknown = sorted(set(settings) - {known.name for known in fields(cls)})
        if unknown:
            raise InputError(f"unknown setting {unknown[0]!r}", "see GenerationRequest for the names")
        given = {name: value for name, value in settings.items() if value is not None}
        height, width = manifest.output_size
        for name, mask in (("control_image", None), ("image", given.get("mask_image"))):
            if given.get(name) is not None:
                check_input_picture(given[name], mask)
                height, width = given[name].shape[:2]
        defaults = {"num_inference_steps": manifest.default_steps, "guidance_scale": manifest.default_guidance}
        chosen: dict[str, Any] = {**defaults, "height": height, "width": width, "scheduler": manifest.default_scheduler}
        chosen |= ({} if worn is None else worn.settings()) | given
        drawn = draw_seed() if seed is None or _is_minus_one(seed) else seed
        texts: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative_prompt or ""}
        if worn is not None:
            texts = {"prompt": worn.prompt(prompt), "negative_prompt": worn.negative(negative_prompt or ""), "style": worn.name}
        request = cls(**texts, seed=drawn, n=n, **chosen)
        check_fits(manifest, request)
        return request

    def settings(self) -> dict[str, str]:
        """What decided the picture besides prompt and seed, as text; without the prompts."""
        return {
            "num_inference_steps": str(self.num_inference_steps),
            "guidance_scale": f"{self.guidance_scale:g}",
            "height": str(self.height),
            "width": str(self.width),
            "scheduler": self.scheduler or "checkpoint",
            **({} if self.style is None else {"style": self.style}),
            **({} if self.strength is None else {"strength": f"{self.strength:g}"}),
            **({} if self.eta is None else {"eta": f"{self.eta:g}"}),
            **({} if self.guidance_interval is None else {"guidance_interval": "{:g}:{:g}".format(*self.guidance_interval)}),
            **({} if self.upscale == 1 else {"upscale": str(self.upscale)}),
            **({} if self.control_scale is None else {"control_scale": f"{self.control_scale:g}"}),
            **({"variation": f"{self.variation_seed}:{self.variation_strength:g}"} if self.variation_strength else {}),
        }


@dataclass(frozen=True)
class UpscaleRequest(GenerationRequest):
    """A picture that is to be enlarged and nothing else: `image`, and `upscale` times as large. There are no words and no seed.

    Make one by `of`. Raises `InputError` where the picture is too small or too large.
    """

    @classmethod
    def of(cls, image: NDArray[np.uint8], factor: int) -> UpscaleRequest:
        """`image`: uint8 RGB (H, W, 3)."""
        check_input_picture(image, None)
        height, width = image.shape[:2]
        return cls("", "", 0, 0.0, height, width, 0, image=image, upscale=factor)

    def __post_init__(self) -> None:
        object.__setattr__(self, "upscale", _whole("upscale", self.upscale, 2, MAX_FACTOR))

    @property
    def operation(self) -> Literal["text2img", "img2img", "inpaint", "upscale"]:
        """`upscale`."""
        return "upscale"

    def settings(self) -> dict[str, str]:
        """What decided the picture."""
        return {"upscale": str(self.upscale)}


def check_fits(manifest: Manifest, request: GenerationRequest) -> None:
    """Raises `InputError` where the request asks for what the bundle has no network for."""
    if request.control_image is not None and "controlnet" not in manifest.components:
        raise InputError("this bundle has no ControlNet", "leave the control image out, or build with --controlnet FOLDER")


def check_prompt_text(prompt: Any) -> None:
    """Raises `InputError` unless `prompt` is text of 1 to `MAX_PROMPT` characters, not all blank, and valid Unicode."""
    _check_text("prompt", prompt)
    if not prompt.strip():
        raise InputError("the prompt is empty", "say what the picture should show")


def _check_text(what: str, text: Any) -> None:
    if not isinstance(text, str):
        raise InputError(f"the {what} is not text", "give a string")
    if len(text) > MAX_PROMPT:
        raise InputError(f"the {what} has {len(text)} characters", f"shorten it to {MAX_PROMPT} or fewer")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"the {what} holds half of a surrogate pair", "give valid Unicode text") from error


def _whole(name: str, value: Any, low: int, high: int) -> int:
    remedy = f"give a whole number from {low} to {high}"
    if isinstance(value, bool):
        raise InputError(f"{name} is not a whole number", remedy)
    try:
        number = operator.index(value)
    except TypeError as error:
        raise InputError(f"{name} is not a whole number", remedy) from error
    if not low <= number <= high:
        raise InputError(f"{name} is out of range", remedy)
    return number


def _check_pixels(n: int, height: int, width: int) -> None:
    if n * height * width > MAX_PIXELS:
        message = f"n pictures of height x width ({n} of {height} x {width}) are more than {MAX_PIXELS} pixels"
        raise InputError(message, "ask for fewer pictures or a smaller size")


def check_input_picture(image: Any, mask: Any) -> None:
    """Raises `InputError` unless `image` is None or a uint8 RGB array of usable size, and `mask` None or a uint8 (H, W) beside it."""
    if image is None:
        if mask is not None:
            raise InputError("a mask without an image", "give the image that the mask belongs to")
        return
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError("the image is not a uint8 array (H, W, 3)", "open it with platemark.imaging.decode, which gives RGB")
    if not all(MIN_SIZE <= side <= MAX_SIZE for side in image.shape[:2]):
        raise InputError("the image is too small or too large", f"give sides of {MIN_SIZE} to {MAX_SIZE} pixels")
    if mask is None:
        return
    if not isinstance(mask, np.ndarray) or mask.dtype != np.uint8 or mask.shape != image.shape[:2]:
        raise InputError("the mask is not a uint8 array (H, W) of the image's size", "make the mask as large as the image, in gray")
    if not (mask >= PAINT).any():
        raise InputError("the mask leaves nothing to paint", "make what is to be painted white, or invert the mask")


def _number(name: str, value: Any, high: float) -> float:
    remedy = f"give a number from 0 to {high:g}"
    if isinstance(value, bool):
        raise InputError(f"{name} is not a number", remedy)
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name} is not a number", remedy) from error
    if not 0.0 <= number <= high:
        raise InputError(f"{name} is out of range or not a number", remedy)
    return number


def _interval(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    remedy = f"give two noise levels, low before high, from 0 to {NO_SIGNAL:g}"
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise InputError("guidance_interval is not a pair of numbers", remedy)
    low, high = (_number("guidance_interval", one, NO_SIGNAL) for one in value)
    if not low < high:
        raise InputError("guidance_interval holds no noise level", remedy)
    return low, high


def _is_minus_one(seed: Any) -> bool:
    return not isinstance(seed, (bool, float, str)) and bool(seed == -1)
