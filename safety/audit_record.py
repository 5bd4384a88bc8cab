"""What the audit log keeps of one decision, as plain JSON types. Writes nothing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from platemark.errors import PlatemarkError
from platemark.imaging import perceptual_hash
from platemark.safety.decision import Decision, Severity, Stage


@dataclass(frozen=True)
class Subject:
    """What a decision is about.

    `prompt_hmac`: a keyed hash of the request's texts; `prompt`: the texts themselves, only where the policy has them logged in clear.
    `image_index` counts the request's pictures from 0, `attempt` their renders; `content_id` is the one reserved for the picture.
    """

    request_id: str
    prompt_hmac: str
    prompt: str | None = None
    image_index: int | None = None
    seed: int | None = None
    attempt: int | None = None
    content_id: int | None = None

    def of(self, image_index: int, seed: int, attempt: int, content_id: int | None) -> Subject:
        """The same request's picture `image_index`."""
        return replace(self, image_index=image_index, seed=seed, attempt=attempt, content_id=content_id)


def decision_record(decision: Decision, subject: Subject, image: NDArray[np.uint8] | None = None) -> dict[str, Any]:
    """The record of a decision; `image`: the picture as it was checked, uint8 RGB (H, W, 3), before blurring or marking.

    `image_sha256` is over its height and width (4 bytes each, big-endian) and its bytes.
    """
    return {
        "kind": "decision",
        **_subject(subject),
        "policy_id": decision.policy_id,
        "policy_sha256": decision.policy_sha256,
        "stage": decision.stage,
        "action": decision.action.value,
        "rule": decision.rule,
        "reason_code": decision.reason_code,
        "category": decision.category,
        "severity": decision.severity.value,
        "locked": any(reason.locked and reason.rule == decision.rule for reason in decision.reasons),
        "detectors": [entry.model_dump(mode="json") for entry in decision.entries],
        "reasons": [reason.model_dump(mode="json") for reason in decision.reasons],
        "unchecked": list(decision.unchecked),
        "faces": decision.faces,
        "consent": decision.consent,
        **_picture(image),
    }


def failure_record(
    error: PlatemarkError, stage: Stage, subject: Subject, policy: tuple[str, str], image: NDArray[np.uint8] | None = None
) -> dict[str, Any]:
    """The record of a check that could not be made, or of a render that is none. `policy`: id and sha256."""
    return {
        "kind": "failure",
        **_subject(subject),
        "policy_id": policy[0],
        "policy_sha256": policy[1],
        "stage": stage,
        "action": "block",
        "rule": None,
        "reason_code": error.code,
        "category": None,
        "severity": Severity.NONE.value,
        "error": error.message,
        **_picture(image),
    }


def image_sha256(image: NDArray[np.uint8]) -> str:
    """sha256 (hex) of a picture's pixels, uint8 RGB (H, W, 3): height and width (4 bytes each, big-endian), then its bytes."""
    digest = hashlib.sha256(image.shape[0].to_bytes(4, "big") + image.shape[1].to_bytes(4, "big"))
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()


def _subject(subject: Subject) -> dict[str, Any]:
    """Big integers as strings, as everywhere in JSON."""
    clear = {} if subject.prompt is None else {"prompt": subject.prompt}
    return {
        "request_id": subject.request_id,
        "prompt_hmac": subject.prompt_hmac,
        **clear,
        "image_index": subject.image_index,
        "seed": None if subject.seed is None else str(subject.seed),
        "attempt": subject.attempt,
        "content_id": None if subject.content_id is None else str(subject.content_id),
    }


def _picture(image: NDArray[np.uint8] | None) -> dict[str, Any]:
    if image is None:
        return {"image_sha256": None, "perceptual_hash": None}
    return {"image_sha256": image_sha256(image), "perceptual_hash": perceptual_hash(image)}
