"""Style presets: TOML files that put words around a prompt and set what suits them. Knows nothing about models.

    prefix = "watercolor painting of "
    suffix = ", soft washes, paper texture"
    negative_prompt = "photo, 3d render"
    guidance_scale = 6.0            # also num_inference_steps and scheduler; what the request itself sets comes first

A style is a built-in name, or a file of one's own. The joined texts are the request's prompts, so the gate checks them like any other.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from platemark.errors import InputError

MAX_TEXT = 1000  # characters
_MAX_BYTES = 64 << 10


class Style(BaseModel):
    """One preset. `name` is that of the built-in, or the file's without its suffix."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    prefix: str = Field(default="", max_length=MAX_TEXT)
    suffix: str = Field(default="", max_length=MAX_TEXT)
    negative_prompt: str = Field(default="", max_length=MAX_TEXT)
    guidance_scale: float | None = Field(default=None, ge=0, le=50)
    num_inference_steps: int | None = Field(default=None, ge=1, le=1000)
    scheduler: str | None = None

    def prompt(self, text: str) -> str:
        """The prompt with the style's words around it."""
        return f"{self.prefix}{text}{self.suffix}"

    def negative(self, text: str) -> str:
        """The negative prompt followed by the style's own."""
        return ", ".join(part for part in (text.strip(), self.negative_prompt) if part)

    def settings(self) -> dict[str, Any]:
        """What the style sets besides words."""
        chosen = {name: getattr(self, name) for name in ("guidance_scale", "num_inference_steps", "scheduler")}
        return {name: value for name, value in chosen.items() if value is not None}


@cache
def names() -> tuple[str, ...]:
    """The built-in styles."""
    folder = files("platemark.runtime").joinpath("styles")
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")))


def load_style(style: str | Path) -> Style:
    """A built-in style by name, or the one in a TOML file. Raises `InputError`."""
    if isinstance(style, str) and style in names():
        return _parse(files("platemark.runtime").joinpath("styles", f"{style}.toml").read_bytes(), style)
    path = Path(style)
    if path.suffix.lower() != ".toml":
        raise InputError(f"unknown style {str(style)[:40]!r}", f"use {', '.join(names())}, or a .toml file of your own")
    try:
        with path.open("rb") as handle:
            data = handle.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"the style file {path.name[-60:]!r} cannot be read: {error.strerror}", "name a TOML file") from error
    if len(data) > _MAX_BYTES:
        raise InputError(f"the style file {path.name[-60:]!r} is too long", f"a style has at most {_MAX_BYTES} bytes")
    return _parse(data, path.stem)


def _parse(data: bytes, name: str) -> Style:
    remedy = "a style sets prefix, suffix, negative_prompt, guidance_scale, num_inference_steps and scheduler"
    try:
        fields = tomllib.loads(data.decode("utf-8"))
        if "name" in fields:
            raise InputError(f"the style {name[:40]!r} sets a name, which is its file's", remedy)
        return Style.model_validate({**fields, "name": name})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"the style {name[:40]!r}: {where}: {first['msg']}", remedy) from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise InputError(f"the style {name[:40]!r} is no TOML: {' '.join(str(error).split())[:100]}", remedy) from error
