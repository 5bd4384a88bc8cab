"""Rules: what is decided on what was seen, and that no policy lifts the locked ones."""

from __future__ import annotations

from typing import Any

import pytest

from platemark.safety.decision import Action, Decision, Severity
from platemark.safety.policy import load_policy, parse_policy, presets
from platemark.safety.policy_model import Policy
from platemark.safety.rules import LOCKED, Case, Look, decide
from platemark.safety.signals import Face, Observation, Signal

LAXEST = """version = 2
id = "laxest"
fail = "closed"
image_filter = "available"
provenance = {require_watermark = false}
regenerate = {max = 0}
audit = {enabled = false}
people = {real_face_input = "allow", face_threshold = 0.6}
[categories.sexual]
prompt = {enabled = false, action = "allow", threshold = 1.0, combine = "all"}
output_image = {action = "allow", threshold = 1.0, combine = "all", severity = {low = 0.5, medium = 1.0, high = 1.0}}
"""


def policy(text: str = "", base: str = "standard") -> Policy:
    return parse_policy(f'extends = "{base}"\nversion = 2\nid = "t"\n{text}'.encode(), "t.toml")


def look(stage: Any, *signals: tuple[str, float], detector: str = "d", faces: int | None = None, code: str = "c", ms: float = 1.0) -> Look:
    found = tuple(Signal(name, code, score, name) for name, score in signals)
    seen = None if faces is None else tuple(Face((0.0, 0.0, 9.0, 9.0), 0.9) for _ in range(faces))
    return Look(Observation(detector, "ab" * 32, found, ms, seen), tuple(name for name, _ in signals), stage)


def judged(rules: Policy, stage: Any, *looks: Look, **more: Any) -> Decision:
    return decide(rules, Case(stage, looks, **more))


def test_every_score_is_kept_with_threshold_severity_hash_and_time() -> None:
    decision = judged(policy(), "output_image", look("output_image", ("sexual", 0.1), ("weapon", 0.6), ("drugs", 0.3)))
    assert [(e.category, e.score, e.threshold, e.severity) for e in decision.entries] == [
        ("sexual", 0.1, 0.7, Severity.NONE),
        ("weapon", 0.6, 0.25, Severity.MEDIUM),
        ("drugs", 0.3, None, Severity.NONE),
    ]
    assert {(e.model_sha256, e.ms) for e in decision.entries} == {("ab" * 32, 1.0)}
    assert decision.scores == {"sexual": 0.1, "weapon": 0.6, "drugs": 0.3}


def test_the_decision_says_which_category_rule_severity_and_code() -> None:
    """Replay: know programmatically which picture was withheld, and why."""
    decision = judged(policy(), "output_image", look("output_image", ("weapon", 0.9), code="clip_concept", detector="clip"))
    assert (decision.action, decision.category, decision.stage) == (Action.BLOCK, "weapon", "output_image")
    assert (decision.rule, decision.reason_code, decision.severity) == ("categories.weapon.output_image", "clip_concept", Severity.HIGH)
    assert decision.retryable
    assert not judged(policy(), "prompt", look("prompt", ("weapon", 1.0))).retryable


@pytest.mark.parametrize(("score", "action"), [(0.25, Action.BLOCK), (0.2499, Action.ALLOW)])
def test_thresholds_are_inclusive(score: float, action: Action) -> None:
    assert judged(policy(), "output_image", look("output_image", ("weapon", score))).action is action


def test_replay_strength_adjustable() -> None:
    seen = look("output_image", ("weapon", 0.4))
    assert judged(policy(), "output_image", seen).action is Action.BLOCK
    assert judged(policy("[categories.weapon.output_image]\nthreshold = 0.5"), "output_image", seen).action is Action.ALLOW


def test_replay_flag_without_blackout() -> None:
    flags = policy('[categories.weapon.output_image]\naction = "flag"')
    decision = judged(flags, "output_image", look("output_image", ("weapon", 0.9)))
    assert decision.allowed
    assert (decision.action, decision.category) == (Action.FLAG, "weapon")


def test_replay_benign_oil_painting_blocked_second_opinion() -> None:
    """One net is sure, the other is not: with `combine = "all"` the picture passes, with `any` it does not."""
    nets = (look("output_image", ("sexual", 0.95), detector="nsfw"), look("output_image", ("sexual", 0.01), detector="opennsfw"))
    agree = policy('[categories.sexual.output_image]\ncombine = "all"')
    assert judged(policy(), "output_image", *nets).action is Action.BLOCK
    assert judged(agree, "output_image", *nets).action is Action.ALLOW
    both = (nets[0], look("output_image", ("sexual", 0.8), detector="opennsfw"))
    assert judged(agree, "output_image", *both).action is Action.BLOCK
    silent = Look(Observation("opennsfw", "ab" * 32, (), 1.0), ("sexual",), "output_image")
    assert judged(agree, "output_image", nets[0], silent).action is Action.ALLOW
    assert judged(agree, "output_image", nets[0]).action is Action.BLOCK  # nobody else to ask


def test_a_detector_may_have_its_own_threshold() -> None:
    rules = policy("[categories.sexual.output_image]\nthresholds = {opennsfw = 0.95}")
    assert judged(rules, "output_image", look("output_image", ("sexual", 0.9), detector="opennsfw")).action is Action.ALLOW
    assert judged(rules, "output_image", look("output_image", ("sexual", 0.9), detector="nsfw")).action is Action.BLOCK


def test_a_negative_prompt_that_names_a_thing_is_flagged_at_most_and_meets_no_rule() -> None:
    words = (look("prompt", ("minor_term", 1.0)), look("negative_prompt", ("sexual", 1.0), code="lexicon_term"))
    decision = judged(policy(), "prompt", *words)
    assert (decision.action, decision.stage) == (Action.FLAG, "negative_prompt")
    assert "sexual" not in decision.seen
    asks = look("negative_prompt", ("sexual", 1.0), code="negative_intent")
    decision = judged(policy(), "prompt", words[0], asks)
    assert (decision.action, decision.rule) == (Action.BLOCK, "locked_minor_with_sexual")


def test_mentions_do_what_the_people_rules_say() -> None:
    named, child = look("prompt", ("named_person", 1.0)), look("prompt", ("minor_term", 1.0))
    assert judged(policy(), "prompt", named).action is Action.FLAG
    assert judged(policy(base="strict"), "prompt", named).action is Action.BLOCK
    assert judged(policy(), "prompt", child).action is Action.ALLOW
    assert judged(policy('[people]\nminors = "block"'), "prompt", child).rule == "people.minors"


@pytest.mark.parametrize(
    ("wanted", "consent", "action", "code"),
    [
        ("deny", None, Action.BLOCK, "real_face_input"),
        ("deny", "case-7", Action.BLOCK, "real_face_input"),
        ("consent", None, Action.BLOCK, "consent_missing"),
        ("consent", "case-7", Action.ALLOW, "consent_given"),
        ("allow", None, Action.ALLOW, None),
    ],
)
def test_real_faces_brought_in(wanted: str, consent: str | None, action: Action, code: str | None) -> None:
    rules = policy(f'[people]\nreal_face_input = "{wanted}"')
    decision = judged(rules, "input_image", look("input_image", faces=1), input_image=True, consent=consent)
    assert (decision.action, decision.reason_code, decision.faces, decision.consent) == (action, code, 1, consent)
    none = judged(rules, "input_image", look("input_image", faces=0), input_image=True)
    assert (none.action, none.faces) == (Action.ALLOW, 0)
    rendered = judged(rules, "output_image", look("output_image", faces=2))
    assert (rendered.action, rendered.faces) == (Action.ALLOW, 2)


def test_combination_rules_of_the_file() -> None:
    rules = policy(
        '[[rules]]\nid = "armed_crowd"\nall = [{signal = "weapon", at_least = "medium"}]\nany = [{signal = "face"}, {signal = "hate"}]\n'
        'stages = ["output_image"]\naction = "regenerate"\n[categories.weapon.output_image]\naction = "allow"\n'
    )
    armed = look("output_image", ("weapon", 0.6))
    assert judged(rules, "output_image", armed, look("output_image", faces=0)).action is Action.ALLOW
    decision = judged(rules, "output_image", armed, look("output_image", faces=1))
    assert (decision.action, decision.rule, decision.reason_code) == (Action.REGENERATE, "armed_crowd", "combination_rule")
    assert decision.reasons[-1].evidence == "weapon and face"
    assert judged(rules, "output_image", look("output_image", ("weapon", 0.3)), look("output_image", faces=1)).action is Action.ALLOW
    assert judged(rules, "output_image", armed, carried={"hate": Severity.LOW}).action is Action.REGENERATE


POLICIES = [*presets(), "laxest"]
SEXUAL, FACE = ("sexual", 0.5), 1
LOCKED_CASES: list[tuple[str, str, list[Look], dict[str, Any]]] = [
    ("locked_sexual_with_face", "output_image", [look("output_image", SEXUAL), look("output_image", faces=1)], {}),
    ("locked_sexual_with_face", "input_image", [look("input_image", SEXUAL), look("input_image", faces=1)],
     {"input_image": True, "consent": "c"}),
    ("locked_sexual_with_face", "output_image", [look("output_image", faces=1)], {"carried": {"sexual": Severity.LOW}}),
    ("locked_sexual_with_face", "output_image", [look("output_image", SEXUAL)], {"carried": {"face": Severity.HIGH}}),
    ("locked_undress_a_picture", "prompt", [look("prompt", ("undress_intent", 0.5))], {"input_image": True}),
    ("locked_undress_a_picture", "input_image", [look("input_image", faces=0)],
     {"input_image": True, "consent": "c", "carried": {"undress_intent": Severity.HIGH}}),
    ("locked_minor_with_sexual", "prompt", [look("prompt", ("minor_term", 0.5), SEXUAL)], {}),
    ("locked_minor_with_sexual", "output_image", [look("output_image", SEXUAL)], {"carried": {"minor_term": Severity.HIGH}}),
    ("locked_minors", "prompt", [look("prompt", ("minors", 0.5))], {}),
    ("locked_named_person", "prompt", [look("prompt", ("named_person", 0.5), SEXUAL)], {}),
    ("locked_named_person", "prompt", [look("prompt", ("named_person", 0.5), ("violence", 0.5))], {}),
    ("locked_named_person", "prompt", [look("prompt", ("named_person", 0.5), ("deception", 0.5))], {}),
    ("locked_named_person", "output_image", [look("output_image", SEXUAL)], {"carried": {"named_person": Severity.HIGH}}),
]  # fmt: skip


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(("rule", "stage", "looks", "more"), LOCKED_CASES)
def test_no_policy_lifts_a_locked_rule(name: str, rule: str, stage: str, looks: list[Look], more: dict[str, Any]) -> None:
    rules = parse_policy(LAXEST.encode(), "laxest.toml") if name == "laxest" else load_policy(name)
    decision = judged(rules, stage, *looks, **more)
    assert decision.action is Action.BLOCK
    assert rule in {reason.rule for reason in decision.reasons}
    assert all(reason.locked for reason in decision.reasons if reason.rule == rule)


@pytest.mark.parametrize(
    ("stage", "looks", "more"),
    [
        ("output_image", [look("output_image", ("sexual", 0.49)), look("output_image", faces=1)], {}),
        ("output_image", [look("output_image", SEXUAL), look("output_image", faces=0)], {}),
        ("prompt", [look("prompt", ("undress_intent", 1.0))], {}),
        ("prompt", [look("prompt", ("minor_term", 1.0))], {"input_image": True}),
        ("prompt", [look("prompt", ("named_person", 1.0), ("hate", 1.0))], {}),
    ],
)
def test_locked_rules_need_every_condition(stage: str, looks: list[Look], more: dict[str, Any]) -> None:
    decision = judged(parse_policy(LAXEST.encode(), "laxest.toml"), stage, *looks, **more)
    assert not {reason.rule for reason in decision.reasons} & {rule.id for rule in LOCKED}
    assert decision.allowed


def test_low_faces_do_not_count() -> None:
    seen = Observation("face", "ab" * 32, (), 1.0, (Face((0, 0, 9, 9), 0.4), Face((0, 0, 9, 9), 0.5)))
    assert judged(policy(), "output_image", Look(seen, ("face",), "output_image")).faces == 1
