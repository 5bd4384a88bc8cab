"""What a check decided: data, written once, and read by the CLI, HTTP answers and the log alike."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Stage = Literal["prompt", "negative_prompt", "output_image"]


class Action(StrEnum):
    """What happens to the prompt or picture; a later one is stricter."""

    ALLOW = "allow"
    FLAG = "flag"
    BLUR = "blur"
    REGENERATE = "regenerate"
    BLOCK = "block"

    @property
    def rank(self) -> int:
        return list(Action).index(self)


class Reason(BaseModel):
    """One finding. `score` and `threshold` are in the detector's own unit (`score >= threshold` means found).

    `code` is stable and snake_case (`lexicon_term`, `policy_term`, `intent_rule`, `clip_concept`, `checks_off`); `detector` names who
    found it; `evidence` is the policy's own term or concept, never the user's text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    category: str
    code: str
    detector: str
    score: float
    threshold: float
    action: Action
    evidence: str = ""


class Decision(BaseModel):
    """The outcome of one check: the strictest action among its reasons, with every reason kept.

    `scores` holds the top score per category whether or not it crossed a threshold.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: Stage
    action: Action
    reasons: tuple[Reason, ...] = ()
    scores: dict[str, float] = {}
    policy_id: str
    policy_sha256: str

    @property
    def allowed(self) -> bool:
        """True where the picture may be delivered as it is (`allow` or `flag`)."""
        return self.action in (Action.ALLOW, Action.FLAG)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return self.model_dump(mode="json")
