"""Whether a policy loosens what the policy that it extends has locked. Knows no file and no detector."""

from __future__ import annotations

from collections.abc import Iterator

from platemark.safety.policy_model import Category, ImageRule, People, Policy, PromptRule, StageRule

_FACES = ("allow", "consent", "deny")  # laxest first


def loosened(base: Policy, own: Policy) -> str | None:
    """The first complaint, as `key: what is looser`; None where everything locked in `base` is at least as strict in `own`."""
    return next(_complaints(base, own), None)


def _complaints(base: Policy, own: Policy) -> Iterator[str]:
    for name, category in base.categories.items():
        if category.locked:
            yield from _category(f"categories.{name}", category, own.categories[name])
    own_rules = {rule.id: rule for rule in own.rules}
    for rule in base.rules:
        if rule.locked and own_rules.get(rule.id) != rule:
            yield f"rules.{rule.id}: a locked rule cannot be changed"
    if base.audit.locked:
        if not own.audit.locked or not own.audit.enabled:
            yield "audit.enabled: the audit log is locked on"
        if own.audit.prompts_in_clear and not base.audit.prompts_in_clear:
            yield "audit.prompts_in_clear: prompts are locked out of the log"
        if own.audit.retain_days < base.audit.retain_days:
            yield "audit.retain_days: shorter than the locked value"
    if base.image_filter == "required":
        if own.image_filter != "required":
            yield "image_filter: cannot be made optional"
        if own.previews and not base.previews:
            yield "previews: a picture that no filter has seen yet cannot be shown"
    if base.people.locked:
        yield from (f"people.{complaint}" for complaint in _people(base.people, own.people))


def _people(base: People, own: People) -> Iterator[str]:
    if not own.locked:
        yield "locked: cannot be unlocked"
    if _FACES.index(own.real_face_input) < _FACES.index(base.real_face_input):
        yield "real_face_input: laxer than that of the preset"
    if own.face_threshold > base.face_threshold:
        yield "face_threshold: higher than that of the preset"
    if own.minors.rank < base.minors.rank:
        yield "minors: laxer than that of the preset"
    mine, theirs = own.named_persons, base.named_persons
    if mine.action.rank < theirs.action.rank:
        yield "named_persons.action: laxer than that of the preset"
    if (theirs.base_list and not mine.base_list) or not set(mine.list) >= set(theirs.list):
        yield "named_persons.list: a locked name is missing"


def _category(key: str, base: Category, own: Category) -> Iterator[str]:
    if not own.locked:
        yield f"{key}.locked: cannot be unlocked"
    for stage in ("prompt", "input_image", "output_image"):
        mine, theirs = getattr(own, stage), getattr(base, stage)
        if theirs is not None:
            yield from (f"{key}.{stage}.{complaint}" for complaint in _stage(theirs, mine))


def _stage(base: StageRule, own: StageRule) -> Iterator[str]:
    if base.enabled and not own.enabled:
        yield "enabled: cannot be switched off"
    if own.action.rank < base.action.rank:
        yield f"action: '{own.action.value}' is laxer than '{base.action.value}'"
    if base.combine == "any" and own.combine == "all":
        yield "combine: 'all' is laxer than 'any'"
    names = {*base.thresholds, *own.thresholds}
    if own.threshold > base.threshold or any(_threshold(own, n) > _threshold(base, n) for n in names):
        yield "threshold: higher than the locked one"
    if any(getattr(own.severity, band) > getattr(base.severity, band) for band in ("low", "medium", "high")):
        yield "severity: a band begins higher than the locked one"
    yield from _lists(base, own)


def _lists(base: StageRule, own: StageRule) -> Iterator[str]:
    if isinstance(base, PromptRule) and isinstance(own, PromptRule):
        if not set(own.terms) >= set(base.terms) or (base.base_lexicon and not own.base_lexicon):
            yield "terms: a locked term is missing"
        if not set(own.exceptions) <= set(base.exceptions):
            yield "exceptions: none may be added"
    if isinstance(base, ImageRule) and isinstance(own, ImageRule):
        if not set(own.concepts) >= set(base.concepts):
            yield "concepts: a locked concept is missing"
        if any(own.calibration.get(c, 0.0) < base.calibration.get(c, 0.0) for c in base.concepts):
            yield "calibration: lower than the locked one"


def _threshold(rule: StageRule, detector: str) -> float:
    return rule.thresholds.get(detector, rule.threshold)
