"""The gate: one decision per prompt and per picture, and a refusal wherever a check cannot do its work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from platemark.errors import PlatemarkError, RenderError, SafetyUnavailable
from platemark.safety.clip import ConceptScore
from platemark.safety.decision import Action, Decision
from platemark.safety.gate import Gate, apply_action, gate_for_clip
from platemark.safety.policy import Policy, load_policy, parse_policy
from platemark.safety.prompt import PromptCheck

RED, GREEN, YELLOW = (250, 10, 10), (10, 250, 10), (250, 250, 10)


@dataclass
class Filter:
    """An image filter that answers what it is told to, or raises it."""

    answer: Any
    name: str = "fake"

    def score(self, image: NDArray[np.uint8]) -> Mapping[str, ConceptScore]:
        if isinstance(self.answer, BaseException):
            raise self.answer
        answer: Mapping[str, ConceptScore] = self.answer
        return answer


def scores(alarm: Any = 0.1, caution: Any = 0.1) -> dict[str, ConceptScore]:
    return {"alarm": ConceptScore(alarm, "red"), "caution": ConceptScore(caution, "yellow")}


@pytest.fixture
def gate(colour_policy: Policy, clip_folder: Path, colours: Any) -> Gate:
    towers = colours.ColourTower("image"), colours.ColourTower("text")
    return gate_for_clip(colour_policy, clip_folder, *towers, colours.colour_tokens, ["red", "green", "blue", "white", "yellow"])


def test_each_picture_gets_its_own_decision(gate: Gate, colours: Any) -> None:
    decisions = [gate.check_image(colours.picture(colour)) for colour in (GREEN, RED, YELLOW, GREEN)]
    assert [d.action for d in decisions] == [Action.ALLOW, Action.BLOCK, Action.BLUR, Action.ALLOW]
    blocked = decisions[1]
    assert [(r.category, r.code, r.detector, r.evidence) for r in blocked.reasons] == [("alarm", "clip_concept", "clip", "red")]
    assert blocked.reasons[0].score >= blocked.reasons[0].threshold == 0.5
    assert set(decisions[0].scores) == {"alarm", "caution"}
    assert decisions[0].reasons == ()
    assert (blocked.policy_id, blocked.policy_sha256) == ("colours", gate.policy.sha256)


def test_prompt_decision(gate: Gate) -> None:
    blocked, allowed = gate.check_prompt("a r3d thing"), gate.check_prompt("a green thing")
    assert (blocked.stage, blocked.action, blocked.scores) == ("prompt", Action.BLOCK, {"alarm": 1.0})
    assert (allowed.action, allowed.reasons, allowed.scores) == (Action.ALLOW, (), {"alarm": 0.0})
    assert "r3d" not in str(blocked.as_dict())


def test_negative_prompt_names_its_stage() -> None:
    gate = Gate(load_policy("standard"), Filter({}))
    intent = gate.check_prompt("a woman", "clothes")
    assert (intent.stage, intent.action) == ("negative_prompt", Action.BLOCK)
    named = gate.check_prompt("a woman", "nude")
    assert (named.stage, named.action, named.allowed) == ("negative_prompt", Action.FLAG, True)
    assert gate.check_prompt("a bomb", "nude").stage == "prompt"


def test_threshold_is_inclusive(colour_policy: Policy, colours: Any) -> None:
    for score, action in ((0.5, Action.BLOCK), (0.499, Action.ALLOW)):
        assert Gate(colour_policy, Filter(scores(alarm=score))).check_image(colours.picture(GREEN)).action is action


class ForeignError(Exception):
    """What a detector might raise that nobody thought of."""


FAULTS = {
    "raises ValueError": ValueError("shape of 'secret prompt'"),
    "raises its own error": ForeignError("secret prompt"),
    "raises MemoryError": MemoryError(),
    "raises a platemark error": PlatemarkError("x", "y"),
    "answers nothing": None,
    "answers a number": 0.0,
    "lacks a category": {"alarm": ConceptScore(0.1, "red")},
    "empty": {},
    "nan": scores(alarm=float("nan")),
    "nan in the other category": scores(caution=float("nan")),
    "infinite": scores(alarm=float("inf")),
    "minus infinite": scores(alarm=float("-inf")),
    "negative": scores(alarm=-0.1),
    "above one": scores(alarm=1.5),
    "a string": scores(alarm="0.1"),
    "none": scores(alarm=None),
    "a bool": scores(alarm=False),
    "an array": scores(alarm=np.zeros(2)),
    "plain numbers": {"alarm": 0.1, "caution": 0.1},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_failing_image_filter_never_decides(colour_policy: Policy, colours: Any, fault: Any) -> None:
    with pytest.raises(SafetyUnavailable) as caught:
        Gate(colour_policy, Filter(fault)).check_image(colours.picture(GREEN))
    assert "secret" not in str(caught.value)
    assert caught.value.exit_code == 4


def test_interrupts_are_not_swallowed(colour_policy: Policy, colours: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        Gate(colour_policy, Filter(KeyboardInterrupt())).check_image(colours.picture(GREEN))


@pytest.mark.parametrize("method", ["prompt_reasons", "negative_reasons"])
@pytest.mark.parametrize("fault", [ForeignError("secret"), RecursionError(), UnicodeError("secret")], ids=type)
def test_a_failing_prompt_check_never_decides(gate: Gate, monkeypatch: pytest.MonkeyPatch, method: str, fault: Exception) -> None:
    def fail(self: PromptCheck, text: str) -> None:
        raise fault

    monkeypatch.setattr(PromptCheck, method, fail)
    with pytest.raises(SafetyUnavailable) as caught:
        gate.check_prompt("a green thing")
    assert "secret" not in str(caught.value)


def test_a_prompt_that_is_no_text_is_not_decided(gate: Gate) -> None:
    for prompt, negative in ((None, ""), (b"red", ""), ("green", None), (["green"], "")):
        with pytest.raises(SafetyUnavailable):
            gate.check_prompt(prompt, negative)  # type: ignore[arg-type]


def test_a_prompt_check_that_cannot_be_made_refuses(colour_policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: PromptCheck, policy: Policy) -> None:
        raise OSError("lexicon gone")

    monkeypatch.setattr(PromptCheck, "__init__", fail)
    with pytest.raises(SafetyUnavailable):
        Gate(colour_policy, Filter(scores()))


def test_wrong_arrays_and_flat_renders(gate: Gate, colours: Any) -> None:
    array: Any
    for array in (colours.picture(GREEN).astype(np.float32) / 255, colours.picture(GREEN)[..., 0], np.zeros((0, 0, 3), np.uint8), None):
        with pytest.raises(SafetyUnavailable):
            gate.check_image(array)
    for flat in (np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)):
        with pytest.raises(RenderError):
            gate.check_image(flat)
    nearly = np.full((16, 16, 3), 77, np.uint8)
    nearly[3:9, 4] += 2
    with pytest.raises(RenderError, match="flat"):
        gate.check_image(nearly)
    nearly[5, 5, 1] += 3
    assert gate.check_image(nearly).stage == "output_image"


@pytest.mark.parametrize("preset", ["strict", "standard", "research"])
def test_a_policy_with_image_checks_needs_a_filter(preset: str) -> None:
    with pytest.raises(SafetyUnavailable, match="no image filter") as caught:
        Gate(load_policy(preset))
    assert caught.value.remedy.startswith("put an open_clip folder at clip/ in the checkpoint and rebuild")


def test_a_missing_clip_folder_refuses(colour_policy: Policy, tmp_path: Path, colours: Any) -> None:
    with pytest.raises(SafetyUnavailable, match="lacks"):
        gate_for_clip(colour_policy, tmp_path / "none", colours.ColourTower("image"), colours.ColourTower("text"), colours.colour_tokens)


def test_checks_that_the_policy_leaves_out_are_stated(colours: Any) -> None:
    off = colours.POLICY.replace("image_checks = true", "image_checks = false").replace("prompt_checks = true", "prompt_checks = false")
    gate = Gate(parse_policy(off.encode(), "off.toml"))
    for decision, key in ((gate.check_image(colours.picture(RED)), "image_checks"), (gate.check_prompt("red"), "prompt_checks")):
        assert decision.allowed
        assert [(r.category, r.code, r.evidence) for r in decision.reasons] == [("policy", "checks_off", f"{key} = false")]


def test_apply_action(gate: Gate, colours: Any) -> None:
    image: NDArray[np.uint8] = colours.picture(GREEN, 64, 96)
    image[16:48, 32:64] = RED

    def outcome(action: Action) -> NDArray[np.uint8] | None:
        return apply_action(image, Decision(stage="output_image", action=action, policy_id="x", policy_sha256="0"))

    assert outcome(Action.ALLOW) is image
    assert outcome(Action.FLAG) is image
    assert outcome(Action.BLOCK) is None
    assert outcome(Action.REGENERATE) is None
    blurred = outcome(Action.BLUR)
    assert blurred is not None
    assert blurred.shape == image.shape
    assert blurred.dtype == np.uint8
    steps = np.abs(np.diff(blurred.astype(int), axis=1)).max(), np.abs(np.diff(image.astype(int), axis=1)).max()
    assert steps[0] < 25 < 200 < steps[1]
