"""Model families as data: a TOML card each, read by the build and by the runtime. Knows no networks, and no files of a bundle."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Literal

from pydantic import BaseModel, ConfigDict

from platemark.errors import BundleError


class TextPart(BaseModel):
    """One text encoder: its component, its tokenizer's folder, and its class in transformers.

    `hidden`: which of its states the UNet attends to, the last (normalised) or those before the last layer. `pooled`: whether the UNet
    reads its embedding of the whole text too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    component: str
    tokenizer: str
    network: str
    hidden: Literal["last", "penultimate"]
    pooled: bool = False


class Family(BaseModel):
    """What the checkpoints of one family have in common. Where there are several text encoders, their states lie side by side.

    `pipelines`: diffusers' classes that their `model_index.json` names. `addition_embed_types`: of their UNets ("": none); `text_time`
    reads a pooled text and six sizes. `latent_statistics`: whether a VAE's `latents_mean` and `latents_std` count. `scheduler`: what the
    reference pipeline sets on any scheduler that it is given, `inpainting_scheduler` the same for UNets that read a mask. `references`:
    diffusers' pipelines that a build compares with, by what a request does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    pipelines: tuple[str, ...]
    addition_embed_types: tuple[str, ...]
    latent_statistics: bool = False
    default_steps: int
    default_guidance: float
    texts: tuple[TextPart, ...]
    scheduler: Mapping[str, bool | int] = {}
    inpainting_scheduler: Mapping[str, bool | int] = {}
    references: Mapping[Literal["plain", "img2img", "inpainting", "controlled"], str]

    @property
    def reads_sizes(self) -> bool:
        """Whether the UNet is told the picture's size and cut, and the pooled text."""
        return "text_time" in self.addition_embed_types

    def forced(self, inpainting: bool) -> dict[str, bool | int]:
        """The scheduler fields that the reference pipeline sets, whatever the checkpoint says."""
        return dict(self.inpainting_scheduler if inpainting else self.scheduler)


@cache
def names() -> tuple[str, ...]:
    """The families that there are cards of."""
    folder = files("platemark.runtime").joinpath("families")
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")))


@cache
def load_family(name: str) -> Family:
    """The card of a family. Raises `BundleError` for a name that there is none of."""
    if name not in names():
        raise BundleError(f"this Platemark knows no model family {name[:40]!r}, only {', '.join(names())}", "update Platemark")
    text = files("platemark.runtime").joinpath("families", f"{name}.toml").read_text(encoding="utf-8")
    return Family.model_validate({**tomllib.loads(text), "name": name})
