"""The kinds of values that policy files hold, and the strictness that all their tables share. Knows no table."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from platemark.safety.decision import Action, Severity, Stage

Phrase = Annotated[str, Field(min_length=1, max_length=200)]
Phrases = Annotated[tuple[Phrase, ...], Field(strict=False)]
FileAction = Annotated[Action, Field(strict=False)]  # a plain string in the file
FileSeverity = Annotated[Severity, Field(strict=False)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Score = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Stages = Annotated[tuple[Stage, ...], Field(strict=False)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Bands(Strict):
    """Where a score begins to be of low, medium and high severity. Below `low` it is of none."""

    low: Score = 0.5
    medium: Score = 0.7
    high: Score = 0.9

    @model_validator(mode="after")
    def _rising(self) -> Bands:
        if not self.low <= self.medium <= self.high:
            raise ValueError("the bands must rise: low <= medium <= high")
        return self
