"""What a check decided: data, written once, and read by the CLI, HTTP answers and the log alike."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Stage = Literal["prompt", "negative_prompt", "input_image", "output_image"]


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


class Severity(StrEnum):
    """How grave a score is by the policy's bands."""

    NONE = "none"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"

    @property
    def rank(self) -> int:
        return list(Severity).index(self)


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Reason(_Data):
    """One finding that the policy acts on.

    `code` is stable and snake_case: the detector's own code of the signal (`lexicon_term`, `clip_concept`, …), or `locked_rule`,
    `combination_rule`, `real_face_input`, `named_person`, `minor_mentioned`. `rule` is the id of what acted: a combination rule's, or
    `categories.<name>.<stage>`. `evidence` is the policy's own term or concept, never the user's text.
    """

    category: str
    code: str
    rule: str
    detector: str
    score: float
    threshold: float
    severity: Severity
    action: Action
    locked: bool = False
    evidence: str = ""


class Entry(_Data):
    """What one detector said of one category, whether or not it crossed a threshold. `threshold` None: the policy has no rule for it."""

    detector: str
    category: str
    score: float
    threshold: float | None
    severity: Severity
    model_sha256: str
    ms: float


class Decision(_Data):
    """The outcome of one check: the strictest action among its reasons, with every reason and every score kept.

    `rule`, `reason_code`, `category` and `severity` are those of the reason that decided (None where nothing was found); `retryable`:
    whether the same request with another seed may pass. `faces`: how many were seen, None where nobody looked. `unchecked`: what the
    policy asks for and this bundle or install cannot check, where the policy accepts that. `seen`: severities and tags that later stages
    of the same request take into account.
    """

    stage: Stage
    action: Action
    reasons: tuple[Reason, ...] = ()
    entries: tuple[Entry, ...] = ()
    policy_id: str
    policy_sha256: str
    rule: str | None = None
    reason_code: str | None = None
    category: str | None = None
    severity: Severity = Severity.NONE
    retryable: bool = False
    faces: int | None = None
    consent: str | None = None
    input_image: bool = False
    unchecked: tuple[str, ...] = ()
    seen: dict[str, Severity] = {}

    @property
    def allowed(self) -> bool:
        """True where the picture may be delivered as it is (`allow` or `flag`)."""
        return self.action in (Action.ALLOW, Action.FLAG)

    @property
    def scores(self) -> dict[str, float]:
        """The top score per category, whether or not it crossed a threshold."""
        top: dict[str, float] = {}
        for entry in self.entries:
            top[entry.category] = max(top.get(entry.category, 0.0), entry.score)
        return top

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return self.model_dump(mode="json") | {"scores": self.scores}

    def for_record(self) -> dict[str, Any]:
        """What a picture's provenance record keeps: the outcome, without each detector's every score."""
        return self.model_dump(mode="json", exclude={"entries", "seen", "retryable"}) | {"scores": self.scores}
