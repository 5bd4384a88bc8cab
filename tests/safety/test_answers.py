"""Answers: structured, in the OpenAI image API's error shape, and with nothing of the prompt in them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from platemark.errors import EngineError, InputError, PlatemarkError, PolicyBlocked, PolicyError, RenderError, SafetyUnavailable
from platemark.safety.answers import openai_error, openai_failure
from platemark.safety.decision import Action, Decision, Severity
from platemark.safety.policy import load_policy
from platemark.safety.rules import Case, Look, decide
from platemark.safety.signals import Observation, Signal


def decided(stage: Any, *signals: tuple[str, float]) -> Decision:
    found = tuple(Signal(category, "lexicon_term", score, "a term") for category, score in signals)
    return decide(load_policy("standard"), Case(stage, (Look(Observation("lexicon", "ab" * 32, found, 1.0), (), stage),)))


@pytest.mark.parametrize(
    ("stage", "param", "retryable"),
    [("prompt", "prompt", False), ("input_image", "image", False), ("output_image", None, True)],
)
def test_a_decision_as_an_error_of_the_openai_image_api(stage: Any, param: str | None, retryable: bool) -> None:
    decision = decided(stage, ("sexual", 0.95))
    body = openai_error(decision)
    assert set(body) == {"error"}
    error = body["error"]
    assert {key: error[key] for key in ("type", "code", "param")} == {
        "type": "image_generation_user_error", "code": "moderation_blocked", "param": param}  # fmt: skip
    assert error["message"].endswith("safety_violations=[sexual]")
    assert (error["category"], error["stage"], error["severity"], error["retryable"]) == ("sexual", stage, "high", retryable)
    assert (error["rule"], error["reason_code"]) == (f"categories.sexual.{stage}", "lexicon_term")
    assert error["violations"] == [{"category": "sexual", "severity": "high", "rule": f"categories.sexual.{stage}"}]
    json.dumps(body)


def test_every_category_that_blocks_is_named_and_flags_are_not() -> None:
    error = openai_error(decided("prompt", ("violence", 0.6), ("sexual", 0.95), ("named_person", 1.0)))["error"]
    assert {v["category"] for v in error["violations"]} == {"sexual", "violence"}
    assert "named_person" not in error["message"]


def test_a_negative_prompt_is_the_parameter_to_blame() -> None:
    decision = Decision(stage="negative_prompt", action=Action.BLOCK, policy_id="p", policy_sha256="0" * 64, severity=Severity.HIGH)
    assert openai_error(decision)["error"]["param"] == "negative_prompt"


@pytest.mark.parametrize(
    ("error", "status", "kind", "code", "retryable"),
    [
        (InputError("a", "b"), 400, "invalid_request_error", "bad_input", False),
        (SafetyUnavailable("a", "b"), 503, "server_error", "safety_unavailable", True),
        (PolicyError("a", "b"), 503, "server_error", "safety_unavailable", False),
        (RenderError("a", "b"), 500, "server_error", "render_error", True),
        (EngineError("a", "b"), 500, "server_error", "engine_error", False),
        (PolicyBlocked("a", "b"), 400, "image_generation_user_error", "blocked", False),
    ],
)
def test_failures(error: PlatemarkError, status: int, kind: str, code: str, retryable: bool) -> None:
    got, body = openai_failure(error)
    assert (got, body["error"]["type"], body["error"]["code"], body["error"]["retryable"]) == (status, kind, code, retryable)
    assert body["error"]["message"]
    assert body["error"]["param"] is None


def test_a_blocked_request_answers_with_its_decision() -> None:
    decision = decided("prompt", ("sexual", 0.95))
    assert openai_failure(PolicyBlocked("a", "b", decision)) == (400, openai_error(decision))
