"""One request, whole and in range: what the pipeline renders. Knows the bundle's defaults, and nothing about how they are used."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platemark.errors import InputError
from platemark.runtime.bundle import Manifest
from platemark.runtime.noise import SEEDS, draw_seed
from platemark.runtime.schedulers import NAMES
from platemark.runtime.style import load_style

MAX_PROMPT = 10_000  # characters
MIN_SIZE, MAX_SIZE = 64, 4096  # pixels
MAX_GUIDANCE = 50.0
MAX_STEPS = 1000
MAX_IMAGES = 64
MAX_PIXELS = 2**27  # delivered by one request: 384 MiB as uint8 RGB, which a caller that marks and encodes them holds three times


@dataclass(frozen=True)
class GenerationRequest:
    """Names as diffusers names them. `height` and `width` are those of the delivered image, in pixels.

    Image k of the `n` uses seed + k (modulo 2^64). `scheduler` is one of `schedulers.NAMES`; None: the checkpoint's own. `style` is the
    name of the style whose words the prompts hold already.
    A `guidance_scale` of 1 or less renders without classifier-free guidance. Raises `InputError` where a value is out of range.
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

    def __post_init__(self) -> None:
        check_prompt_text(self.prompt)
        _check_text("negative prompt", self.negative_prompt)
        for name, low, high in (
            ("num_inference_steps", 1, MAX_STEPS),
            ("height", MIN_SIZE, MAX_SIZE),
            ("width", MIN_SIZE, MAX_SIZE),
            ("seed", 0, SEEDS - 1),
            ("n", 1, MAX_IMAGES),
        ):
            # Frozen, yet a numpy integer has to become an int: it would overflow, and JSON could not hold it.
            object.__setattr__(self, name, _whole(name, getattr(self, name), low, high))
        _check_pixels(self.n, self.height, self.width)
        object.__setattr__(self, "guidance_scale", _guidance(self.guidance_scale))
        if self.scheduler is not None and self.scheduler not in NAMES:
            raise InputError(f"unknown scheduler {str(self.scheduler)[:40]!r}", f"choose one of {', '.join(NAMES)}")

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

        `settings`: `num_inference_steps`, `guidance_scale`, `height`, `width`, `scheduler`; None counts as not given. `style` is as
        `style.load_style` takes it. Raises `InputError`.
        """
        check_prompt_text(prompt)  # before a style's words would hide that there is none
        worn = None if style is None else load_style(style)
        unknown = sorted(set(settings) - {"num_inference_steps", "guidance_scale", "height", "width", "scheduler"})
        if unknown:
            raise InputError(f"unknown setting {unknown[0]!r}", "see GenerationRequest for the names")
        given = {name: value for name, value in settings.items() if value is not None}
        height, width = manifest.output_size
        defaults = {"num_inference_steps": manifest.default_steps, "guidance_scale": manifest.default_guidance}
        chosen: dict[str, Any] = {**defaults, "height": height, "width": width, "scheduler": manifest.default_scheduler}
        chosen |= ({} if worn is None else worn.settings()) | given
        drawn = draw_seed() if seed is None or _is_minus_one(seed) else seed
        texts: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative_prompt or ""}
        if worn is not None:
            texts = {"prompt": worn.prompt(prompt), "negative_prompt": worn.negative(negative_prompt or ""), "style": worn.name}
        return cls(**texts, seed=drawn, n=n, **chosen)

    def settings(self) -> dict[str, str]:
        """What decided the picture besides prompt and seed, as text; without the prompts."""
        return {
            "num_inference_steps": str(self.num_inference_steps),
            "guidance_scale": f"{self.guidance_scale:g}",
            "height": str(self.height),
            "width": str(self.width),
            "scheduler": self.scheduler or "checkpoint",
            **({} if self.style is None else {"style": self.style}),
        }


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


def _guidance(value: Any) -> float:
    remedy = f"give a number from 0 to {MAX_GUIDANCE:g}"
    if isinstance(value, bool):
        raise InputError("guidance_scale is not a number", remedy)
    try:
        scale = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError("guidance_scale is not a number", remedy) from error
    if not 0.0 <= scale <= MAX_GUIDANCE:
        raise InputError("guidance_scale is out of range or not a number", remedy)
    return scale


def _is_minus_one(seed: Any) -> bool:
    return not isinstance(seed, (bool, float, str)) and bool(seed == -1)
