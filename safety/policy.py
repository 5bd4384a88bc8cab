"""The policy file: what is checked, how strictly, and what happens then. Strict TOML: a key that is not known is refused.

    version = 1
    id = "studio"
    fail = "closed"                     # a check that cannot run refuses the request; there is no other value
    prompt_checks = true
    image_checks = true
    [provenance]
    require_watermark = true            # false: a picture that cannot hold a mark may go out signed only, and its record says so
    [regenerate]
    max = 2                             # renders anew, with another seed, before the picture counts as blocked
    [categories.weapon.prompt]
    enabled = true
    action = "block"                    # allow (only noted), flag, block
    base_lexicon = true                 # also use the built-in terms of the category of this name, where there are any
    terms = ["dagger"]                  # words or phrases, any case; plurals and common disguises match too
    exceptions = ["dagger fern"]        # phrases inside which a term means nothing
    [categories.weapon.image]
    enabled = true
    action = "block"                    # allow, flag, blur, regenerate, block
    threshold = 0.5                     # in (0, 1]: probability that the picture shows one of the concepts
    concepts = ["dagger"]

Knows nothing about how a prompt or a picture is checked.
"""

from __future__ import annotations

import hashlib
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from platemark.errors import PolicyError
from platemark.safety.decision import Action
from platemark.safety.lexicon import base_lexicon
from platemark.safety.normalize import plain

DEFAULT = "standard"
MAX_BYTES = 1 << 20
_REMEDY = "correct the policy file; platemark.safety.policy shows every key"

Phrase = Annotated[str, Field(min_length=1, max_length=200)]
Phrases = Annotated[tuple[Phrase, ...], Field(strict=False)]
FileAction = Annotated[Action, Field(strict=False)]  # a plain string in the file
CategoryName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PromptRule(_Strict):
    """How prompts are checked for one category."""

    enabled: bool
    action: FileAction
    base_lexicon: bool = True
    terms: Phrases = ()
    exceptions: Phrases = ()

    @model_validator(mode="after")
    def _words(self) -> PromptRule:
        if self.action in (Action.BLUR, Action.REGENERATE):
            raise ValueError(f"a prompt cannot be answered with '{self.action.value}': use allow, flag or block")
        blank = [phrase for phrase in self.terms + self.exceptions if not plain(phrase)]
        if blank:
            raise ValueError(f"{blank[0]!r} holds no letter or digit to look for")
        return self


class ImageRule(_Strict):
    """How pictures are checked for one category. `threshold`: probability mass on `concepts`, in (0, 1]."""

    enabled: bool
    action: FileAction
    threshold: float = Field(gt=0, le=1, allow_inf_nan=False)
    concepts: Phrases = ()

    @model_validator(mode="after")
    def _concepts(self) -> ImageRule:
        if self.enabled and not self.concepts:
            raise ValueError("an enabled image check needs concepts")
        if any(not concept.strip() for concept in self.concepts):
            raise ValueError("a concept is blank")
        return self


class Category(_Strict):
    prompt: PromptRule | None = None
    image: ImageRule | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> Category:
        if self.prompt is None and self.image is None:
            raise ValueError("the category is empty: give it `prompt` or `image`")
        return self


class ProvenanceRules(_Strict):
    require_watermark: bool


class RegenerateRule(_Strict):
    """`max`: how many times a picture is rendered anew before it counts as blocked."""

    max: int = Field(ge=0, le=10)


class PolicyFile(_Strict):
    """What a policy file holds."""

    version: int = Field(ge=1, le=1)
    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    fail: Literal["closed"]
    prompt_checks: bool
    image_checks: bool
    provenance: ProvenanceRules
    regenerate: RegenerateRule
    categories: dict[CategoryName, Category] = Field(min_length=1)

    @model_validator(mode="after")
    def _checks_have_work(self) -> PolicyFile:
        for name, category in self.categories.items():
            rule = category.prompt
            if rule and rule.enabled and not rule.terms and not (rule.base_lexicon and name in base_lexicon().categories):
                raise ValueError(f"categories.{name}.prompt is enabled but has no terms, and there is no built-in lexicon for '{name}'")
        if self.prompt_checks and not self.prompt_rules:
            raise ValueError("prompt_checks is on, but no category has an enabled prompt check")
        if self.image_checks and not self.image_rules:
            raise ValueError("image_checks is on, but no category has an enabled image check")
        return self

    @property
    def prompt_rules(self) -> dict[str, PromptRule]:
        """The enabled prompt checks by category, whether or not `prompt_checks` is on."""
        return {name: c.prompt for name, c in self.categories.items() if c.prompt and c.prompt.enabled}

    @property
    def image_rules(self) -> dict[str, ImageRule]:
        """The enabled image checks by category, whether or not `image_checks` is on."""
        return {name: c.image for name, c in self.categories.items() if c.image and c.image.enabled}


class Policy(PolicyFile):
    """A policy in force. `sha256`: of the file's bytes, hex."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


def presets() -> tuple[str, ...]:
    """Names of the policies that come with Platemark."""
    return tuple(
        sorted(f.name.removesuffix(".toml") for f in files("platemark.safety").joinpath("presets").iterdir() if f.name.endswith(".toml"))
    )


def load_policy(source: str | Path | None = None) -> Policy:
    """Reads a policy: a preset by name, a TOML file, or (None) the preset `standard`.

    A string that names a preset means the preset, even where a file of that name lies in the working folder. Raises `PolicyError`,
    which names the file and the key.
    """
    name = DEFAULT if source is None else str(source)
    if not isinstance(source, Path) and name in presets():
        return parse_policy(files("platemark.safety").joinpath("presets", f"{name}.toml").read_bytes(), f"{name}.toml")
    path = Path(name)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else "not a usable path"
        raise PolicyError(
            f"cannot read the policy {path.name!r}: {cause}", f"give a TOML file, or one of {', '.join(presets())}"
        ) from error
    return parse_policy(data, path.name)


def parse_policy(data: bytes, file: str) -> Policy:
    """The policy in `data` (TOML, UTF-8). Raises `PolicyError` naming `file` and the key."""
    if len(data) > MAX_BYTES:
        raise PolicyError(f"{file} is larger than {MAX_BYTES >> 20} MiB", _REMEDY)
    try:
        content = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise PolicyError(f"{file} is not valid TOML: {_one_line(error)}", _REMEDY) from error
    try:
        checked = PolicyFile.model_validate(content)
    except ValidationError as error:
        raise PolicyError(f"{file}: {_first(error)}", _REMEDY) from error
    return Policy(**dict(checked), sha256=hashlib.sha256(data).hexdigest())


def _first(error: ValidationError) -> str:
    """The first complaint as `key: what is wrong`, an unknown key before all others."""
    found: list[Any] = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in found[0]["loc"]) or "policy"
    if found[0]["type"] == "extra_forbidden":
        return f"unknown key '{key}'"
    return f"{key}: {_one_line(found[0]['msg'].removeprefix('Value error, '))}"


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
