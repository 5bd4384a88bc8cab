"""What a checkpoint's maker recommends: its optional `platemark.json`. Knows nothing about networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from platemark.errors import CheckpointError
from platemark.optimize.source_files import read_json
from platemark.runtime.request import MAX_GUIDANCE, MAX_SIZE, MAX_STEPS, MIN_SIZE
from platemark.runtime.schedulers import NAMES as SAMPLERS

SETTINGS = "platemark.json"

Side = Annotated[int, Field(ge=MIN_SIZE, le=MAX_SIZE)]
Domain = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]


def _known_sampler(name: str) -> str:
    if name not in SAMPLERS:
        raise ValueError(f"one of {', '.join(SAMPLERS)}")
    return name


class Settings(BaseModel):
    """Optional `platemark.json` of a checkpoint: what its maker recommends. Sizes are (height, width) in pixels. Without steps and guidance
    those of the family are taken.

    `domain`: what the checkpoint draws, `general` unless it is a narrow set of pictures that only a CLIP of that domain can judge.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = None
    default_steps: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    default_guidance: float | None = Field(default=None, ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)
    default_scheduler: Annotated[str, AfterValidator(_known_sampler)] | None = None
    output_size: tuple[Side, Side] | None = None
    domain: Domain = "general"


def read_settings(root: Path) -> Settings:
    if not (root / SETTINGS).is_file():
        return Settings()
    try:
        return Settings.model_validate(read_json(root / SETTINGS, "remove the file or make it readable"))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(v) for v in first["loc"])
        raise CheckpointError(
            f"{SETTINGS}: {place}: {first['msg']}", "mend the file: name, default_steps, default_guidance, output_size"
        ) from error
