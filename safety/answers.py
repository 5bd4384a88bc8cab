"""Decisions in the words of an HTTP API: the error shape of the OpenAI image API, and a status. Speaks no HTTP itself."""

from __future__ import annotations

from typing import Any

from platemark.errors import InputError, PlatemarkError, PolicyBlocked, PolicyError, RenderError, SafetyUnavailable
from platemark.safety.decision import Decision

STATUS_BLOCKED, STATUS_UNAVAILABLE, STATUS_FAILED, STATUS_BAD = 400, 503, 500, 400
_PARAMETERS = {"prompt": "prompt", "negative_prompt": "negative_prompt", "input_image": "image", "output_image": None}


def openai_error(decision: Decision) -> dict[str, Any]:
    """`{"error": {"message", "type", "code", "param", …}}` of a decision that withholds; sent with status `STATUS_BLOCKED`.

    `code` is `moderation_blocked`, as for the gpt-image models. Beside the fields of that API: `category`, `stage`, `severity`, `rule`,
    `reason_code`, `retryable`, `policy` and `violations` (category, severity, rule of every finding that withholds). Holds nothing of the
    prompt.
    """
    found = [reason for reason in decision.reasons if reason.action is decision.action]
    categories = sorted({reason.category for reason in found})
    what = "request" if decision.stage != "output_image" else "picture"
    return {
        "error": {
            "message": f"The {what} was rejected by the policy '{decision.policy_id}': safety_violations=[{', '.join(categories)}]",
            "type": "image_generation_user_error",
            "code": "moderation_blocked",
            "param": _PARAMETERS[decision.stage],
            "category": decision.category,
            "stage": decision.stage,
            "severity": decision.severity.value,
            "rule": decision.rule,
            "reason_code": decision.reason_code,
            "retryable": decision.retryable,
            "policy": decision.policy_id,
            "violations": [{"category": r.category, "severity": r.severity.value, "rule": r.rule} for r in found],
        }
    }


def openai_failure(error: PlatemarkError) -> tuple[int, dict[str, Any]]:
    """HTTP status and body of any Platemark error; a `PolicyBlocked` that carries its decision answers as `openai_error`."""
    if isinstance(error, PolicyBlocked):
        decision = error.decision
        body = openai_error(decision) if isinstance(decision, Decision) else _plain(error, "image_generation_user_error", False)
        return STATUS_BLOCKED, body
    if isinstance(error, PolicyError):  # a policy that cannot be read checks nothing; whoever asks for a picture is not to blame
        return STATUS_UNAVAILABLE, _plain(error, "server_error", False, SafetyUnavailable.code)
    if isinstance(error, InputError):
        return STATUS_BAD, _plain(error, "invalid_request_error", False)
    if isinstance(error, SafetyUnavailable):
        return STATUS_UNAVAILABLE, _plain(error, "server_error", True)
    return STATUS_FAILED, _plain(error, "server_error", isinstance(error, RenderError))


def _plain(error: PlatemarkError, kind: str, retryable: bool, code: str | None = None) -> dict[str, Any]:
    message = f"{error.message} ({error.remedy})"
    return {"error": {"message": message, "type": kind, "code": code or error.code, "param": None, "retryable": retryable}}
