"""From what detectors saw to what the policy does about it: a pure function. Knows no detector, no picture and no text.

The locked rules are here and not in a file, so that no policy can lift them. They take a category as seen from the low band on, by any
one detector, whatever a policy says about second opinions; the schema bounds the low band of the categories that they stand on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from platemark.safety.decision import Action, Decision, Entry, Reason, Severity, Stage
from platemark.safety.policy_fields import Bands
from platemark.safety.policy_model import TAGS, CombinationRule, Condition, Policy, StageRule
from platemark.safety.signals import Observation, Signal

GATE = "gate"  # names the finder where a rule, and no single detector, found
NEGATIVE_INTENT = "negative_intent"  # code of a signal in a negative prompt whose absence asks for the category
TAG_SCORE = 0.5  # from here on a tag counts as there

LOCKED = (
    CombinationRule(
        id="locked_sexual_with_face",
        action=Action.BLOCK,
        stages=("input_image", "output_image"),
        all=(Condition(signal="sexual"), Condition(signal="face")),
    ),
    CombinationRule(id="locked_undress_a_picture", action=Action.BLOCK, all=(Condition(signal="undress_intent"),), input_image=True),
    CombinationRule(id="locked_minor_with_sexual", action=Action.BLOCK, all=(Condition(signal="minor_term"), Condition(signal="sexual"))),
    CombinationRule(id="locked_minors", action=Action.BLOCK, all=(Condition(signal="minors"),)),
    CombinationRule(
        id="locked_named_person",
        action=Action.BLOCK,
        all=(Condition(signal="named_person"),),
        any=(Condition(signal="sexual"), Condition(signal="violence"), Condition(signal="deception")),
    ),
)


@dataclass(frozen=True)
class Look:
    """What one detector saw at one stage. `reports`: the categories it can speak of; silence about one of them counts as a score of 0."""

    observation: Observation
    reports: tuple[str, ...]
    stage: Stage


@dataclass(frozen=True)
class Case:
    """What a decision is made on. `carried`: what earlier stages of the request saw; `input_image`: whether one was given."""

    stage: Stage
    looks: tuple[Look, ...]
    carried: Mapping[str, Severity] = field(default_factory=dict)
    input_image: bool = False
    consent: str | None = None
    unchecked: tuple[str, ...] = ()


def decide(policy: Policy, case: Case) -> Decision:
    """The policy's decision on a case: every score and every reason, and the strictest action among them."""
    entries = [_entry(policy, look, category) for look in case.looks for category in _spoken(look)]
    seen = _seen(policy, case)
    faces = _faces(policy, case)
    reasons = [*_findings(policy, case), *_mentions(policy, case), *_face_input(policy, case, faces)]
    reasons += [_combined(rule, seen, locked=True) for rule in LOCKED if _holds(rule, case, seen)]
    reasons += [_combined(rule, seen, locked=rule.locked) for rule in policy.rules if _holds(rule, case, seen)]
    return _decision(policy, case, reasons, tuple(entries), seen, faces)


def _decision(
    policy: Policy, case: Case, reasons: list[Reason], entries: tuple[Entry, ...], seen: dict[str, Severity], faces: int | None
) -> Decision:
    top = max(reasons, key=lambda r: (r.action.rank, r.locked, r.severity.rank), default=None)
    negative = case.stage == "prompt" and top is not None and top.rule.endswith(".negative_prompt")
    return Decision(
        stage="negative_prompt" if negative else case.stage,
        action=top.action if top else Action.ALLOW,
        reasons=tuple(dict.fromkeys(reasons)),
        entries=entries,
        policy_id=policy.id,
        policy_sha256=policy.sha256,
        rule=top.rule if top else None,
        reason_code=top.code if top else None,
        category=top.category if top else None,
        severity=top.severity if top else Severity.NONE,
        retryable=case.stage == "output_image" and top is not None and top.action.rank > Action.FLAG.rank,
        faces=faces,
        consent=case.consent,
        input_image=case.input_image,
        unchecked=case.unchecked,
        seen=seen,
    )


def severity_of(score: float, bands: Bands) -> Severity:
    """The band that `score` lies in."""
    if score >= bands.high:
        return Severity.HIGH
    if score >= bands.medium:
        return Severity.MEDIUM
    return Severity.LOW if score >= bands.low else Severity.NONE


def _spoken(look: Look) -> list[str]:
    named = [signal.category for signal in look.observation.signals]
    return [name for name in dict.fromkeys((*look.reports, *named)) if name != "face"]


def _score(look: Look, category: str) -> float:
    return max((signal.score for signal in look.observation.signals if signal.category == category), default=0.0)


def _top(look: Look, category: str) -> Signal | None:
    return max((s for s in look.observation.signals if s.category == category), key=lambda s: s.score, default=None)


def _severity(policy: Policy, stage: Stage, category: str, score: float) -> Severity:
    if category in TAGS:
        return Severity.HIGH if score >= TAG_SCORE else Severity.NONE
    rule = policy.rule(category, stage)
    return severity_of(score, rule.severity if rule else Bands())


def _threshold(rule: StageRule, detector: str) -> float:
    return rule.thresholds.get(detector, rule.threshold)


def _entry(policy: Policy, look: Look, category: str) -> Entry:
    rule, score, observation = policy.rule(category, look.stage), _score(look, category), look.observation
    tag = TAG_SCORE if category in TAGS else None
    return Entry(
        detector=observation.detector,
        category=category,
        score=score,
        threshold=_threshold(rule, observation.detector) if rule else tag,
        severity=_severity(policy, look.stage, category, score),
        model_sha256=observation.model_sha256,
        ms=round(observation.milliseconds, 3),
    )


def _named_only(look: Look, signal: Signal) -> bool:
    """Whether a negative prompt merely names the thing, which keeps it out of the picture."""
    return look.stage == "negative_prompt" and signal.code != NEGATIVE_INTENT


def _seen(policy: Policy, case: Case) -> dict[str, Severity]:
    """What combination rules go by: per category the gravest severity that any detector gave, here or at an earlier stage."""
    seen = dict(case.carried)
    for look in case.looks:
        for signal in look.observation.signals:
            severity = Severity.NONE if _named_only(look, signal) else _severity(policy, look.stage, signal.category, signal.score)
            if severity.rank > seen.get(signal.category, Severity.NONE).rank:
                seen[signal.category] = severity
    if _faces(policy, case):
        seen["face"] = Severity.HIGH
    return seen


def _faces(policy: Policy, case: Case) -> int | None:
    """How many faces the detector that looks for them found; None where none looks."""
    found = [look.observation.faces for look in case.looks if look.observation.faces is not None]
    return max((sum(face.score >= policy.people.face_threshold for face in faces) for faces in found), default=None)


def _findings(policy: Policy, case: Case) -> Iterable[Reason]:
    """The category rules: prompt and negative prompt each by themselves."""
    for stage in dict.fromkeys(look.stage for look in case.looks):
        looks = [look for look in case.looks if look.stage == stage]
        for category in dict.fromkeys(name for look in looks for name in _spoken(look)):
            rule = policy.rule(category, stage)
            if rule is not None:
                yield from _category(policy, rule, category, stage, [look for look in looks if category in _spoken(look)])


def _category(policy: Policy, rule: StageRule, category: str, stage: Stage, looks: list[Look]) -> Iterable[Reason]:
    over = [look for look in looks if _score(look, category) >= _threshold(rule, look.observation.detector)]
    if not over or (rule.combine == "all" and len({look.observation.detector for look in over}) < _detectors(looks)):
        return
    for look in over:
        threshold = _threshold(rule, look.observation.detector)
        for signal in look.observation.signals:
            if signal.category == category and signal.score >= threshold:
                yield _finding(policy, rule, look, signal, threshold)


def _detectors(looks: Iterable[Look]) -> int:
    return len({look.observation.detector for look in looks})


def _finding(policy: Policy, rule: StageRule, look: Look, signal: Signal, threshold: float) -> Reason:
    capped = _named_only(look, signal) and rule.action.rank > Action.FLAG.rank
    return Reason(
        category=signal.category,
        code=signal.code,
        rule=f"categories.{signal.category}.{look.stage}",
        detector=look.observation.detector,
        score=signal.score,
        threshold=threshold,
        severity=_severity(policy, look.stage, signal.category, signal.score),
        action=Action.FLAG if capped else rule.action,
        locked=policy.categories[signal.category].locked,
        evidence=signal.evidence,
    )


def _mentions(policy: Policy, case: Case) -> Iterable[Reason]:
    """What a mention of a named person or of a child alone does."""
    people = policy.people
    actions = {"named_person": (people.named_persons.action, "people.named_persons"), "minor_term": (people.minors, "people.minors")}
    for look in case.looks:
        for tag, (action, rule) in actions.items():
            signal = _top(look, tag)
            if signal and signal.score >= TAG_SCORE and action is not Action.ALLOW and not _named_only(look, signal):
                yield _plain(tag, "mention", rule, action, look.observation.detector, signal.score, signal.evidence)


def _face_input(policy: Policy, case: Case, faces: int | None) -> Iterable[Reason]:
    """The people rule for pictures that a user brings. A face gate cannot tell a photo from a drawing: every face counts as real."""
    rule, wanted = "people.real_face_input", policy.people.real_face_input
    if case.stage != "input_image" or not faces or wanted == "allow":
        return
    if wanted == "deny":
        yield _plain("face", "real_face_input", rule, Action.BLOCK, "face", 1.0, "deny")
    elif case.consent is None:
        yield _plain("face", "consent_missing", rule, Action.BLOCK, "face", 1.0, "consent")
    else:
        yield _plain("face", "consent_given", rule, Action.ALLOW, "face", 1.0, "consent")


def _plain(category: str, code: str, rule: str, action: Action, detector: str, score: float, evidence: str) -> Reason:
    return Reason(
        category=category,
        code=code,
        rule=rule,
        detector=detector,
        score=score,
        threshold=TAG_SCORE,
        severity=Severity.HIGH if action is Action.BLOCK else Severity.LOW,
        action=action,
        evidence=evidence,
    )


def _met(condition: Condition, seen: Mapping[str, Severity]) -> bool:
    return seen.get(condition.signal, Severity.NONE).rank >= max(condition.at_least.rank, Severity.LOW.rank)


def _holds(rule: CombinationRule, case: Case, seen: Mapping[str, Severity]) -> bool:
    if case.stage not in rule.stages or (rule.input_image is not None and rule.input_image != case.input_image):
        return False
    return all(_met(c, seen) for c in rule.all) and (not rule.any or any(_met(c, seen) for c in rule.any))


def _combined(rule: CombinationRule, seen: Mapping[str, Severity], *, locked: bool) -> Reason:
    met = [condition.signal for condition in (*rule.all, *rule.any) if _met(condition, seen)]
    return Reason(
        category=next((name for name in met if name not in TAGS), met[0]),
        code="locked_rule" if rule in LOCKED else "combination_rule",
        rule=rule.id,
        detector=GATE,
        score=1.0,
        threshold=1.0,
        severity=max((seen[name] for name in met), key=lambda s: s.rank),
        action=rule.action,
        locked=locked,
        evidence=" and ".join(met),
    )
