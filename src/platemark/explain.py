"""Asks the gate without a request: what it would decide, every score it goes by, and what the log says. Releases and logs nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platemark.errors import InputError
from platemark.imaging import decode, hash_distance, perceptual_hash
from platemark.models import embedded
from platemark.press import gate_for
from platemark.provenance.home import home, make_private
from platemark.runtime.bundle import open_bundle
from platemark.runtime.request import check_prompt_text
from platemark.safety.answers import openai_error
from platemark.safety.assemble import gate_for_texts
from platemark.safety.audit import AuditLog, since
from platemark.safety.decision import Decision
from platemark.safety.gate import Gate
from platemark.safety.policy import load_policy
from platemark.safety.policy_model import AuditRules, Policy
from platemark.safety.rules import LOCKED

_SAME = 31  # bits of 256 within which two perceptual hashes are of one picture, by PDQ's makers


@dataclass(frozen=True)
class Question:
    """What is to be decided on. Prompts and input images belong to one request; output images stand by themselves."""

    prompts: tuple[str, ...] = ()
    negative: str = ""
    images: tuple[Path, ...] = ()
    inputs: tuple[Path, ...] = ()
    consent: str | None = None


def decisions(question: Question, policy: str | Path | None, bundle: Path | None) -> Iterator[tuple[str, str, Decision]]:
    """(`prompt` or `file`, which, the decision) for everything asked. Raises `InputError`, `PolicyError`, `SafetyUnavailable`."""
    if not question.prompts and not question.images and not question.inputs:
        raise InputError("nothing to check", "give --prompt TEXT, --image FILE or --input-image FILE")
    for prompt in question.prompts:
        check_prompt_text(prompt)
    pictures = {path: decode(path).array for path in (*question.inputs, *question.images)}  # all readable before the first answer
    gate = _gate(load_policy(policy), bundle, bool(pictures))
    brought, earlier = bool(question.inputs), []
    for prompt in question.prompts:
        earlier.append(gate.check_prompt(prompt, question.negative, input_image=brought, consent=question.consent))
        yield "prompt", prompt, earlier[-1]
    for path in question.inputs:
        yield "file", str(path), gate.check_input_image(pictures[path], question.consent, *earlier)
    for path in question.images:
        yield "file", str(path), gate.check_output_image(pictures[path])


def explained(
    subject: str, policy: str | Path | None, bundle: Path | None, *, negative: str = "", as_input: bool = False, consent: str | None = None
) -> dict[str, Any]:
    """Everything that a decision stands on, as plain JSON types: the policy, the detectors, every score with threshold and severity, every
    rule with whether it held, and the outcome. Errors as of `decisions`."""
    rules, path = load_policy(policy), _file(subject)
    gate = _gate(rules, bundle, path is not None)
    if path is None:
        check_prompt_text(subject)
        decision = gate.check_prompt(subject, negative, input_image=as_input, consent=consent)
    else:
        array = decode(path).array
        decision = gate.check_input_image(array, consent) if as_input else gate.check_output_image(array)
    held = {reason.rule for reason in decision.reasons}
    every = [(rule, True) for rule in LOCKED] + [(rule, rule.locked) for rule in rules.rules]
    return {
        "subject": "prompt" if path is None else str(path),
        "policy": {"id": rules.id, "sha256": rules.sha256},
        "detectors": gate.detectors,
        "rules": [
            {"id": r.id, "locked": locked, "action": r.action.value, "stages": list(r.stages), "held": r.id in held} for r, locked in every
        ],
        **decision.as_dict(),
        "answer": None if decision.allowed else openai_error(decision),
    }


def lines(answer: dict[str, Any]) -> Iterator[str]:
    """What `explained` found, as text."""
    yield f"policy    {answer['policy']['id']} ({answer['policy']['sha256'][:12]})"
    yield f"stage     {answer['stage']}"
    yield f"{'category':20} {'detector':18} {'score':>6} {'threshold':>9}  severity  ms"
    for entry in answer["entries"]:
        threshold = "none" if entry["threshold"] is None else f"{entry['threshold']:.2f}"
        yield (
            f"{entry['category']:20} {entry['detector']:18} {entry['score']:6.3f} {threshold:>9}  {entry['severity']:8}  {entry['ms']:.1f}"
        )
    if answer["faces"] is not None:
        yield f"faces     {answer['faces']}"
    yield from (f"unchecked {name}: the bundle has no image filter that knows it" for name in answer["unchecked"])
    for rule in answer["rules"]:
        yield f"rule      {rule['id']:28} {'locked' if rule['locked'] else 'policy'}  {'holds' if rule['held'] else '-'}"
    for reason in answer["reasons"]:
        yield f"reason    {reason['category']}: {reason['evidence'] or reason['code']} -> {reason['action']}, by {reason['rule']}"
    decided = f", by {answer['rule']} ({answer['reason_code']}, severity {answer['severity']})" if answer["rule"] else ""
    yield f"outcome   {answer['action']}{decided}"


def audit_log() -> AuditLog:
    """The log of the state folder, for reading."""
    return AuditLog(home(), AuditRules(enabled=True))


def found(
    *,
    request: str | None = None,
    action: str | None = None,
    category: str | None = None,
    stage: str | None = None,
    image: Path | None = None,
    since: str | None = None,
    until: str | None = None,
    limit: int | None = None,
) -> Iterable[dict[str, Any]]:
    """The log's records that fit everything given, oldest first; `limit`: the last ones only. Raises `InputError`, `SafetyUnavailable`."""
    wanted = {"request_id": request, "action": action, "category": category, "stage": stage}
    fixed = {key: value for key, value in wanted.items() if value is not None}
    begin, end = (_moment(text) for text in (since, until))
    alike = perceptual_hash(decode(image).array) if image is not None else None

    def matches(record: dict[str, Any]) -> bool:
        time = str(record.get("time", ""))
        inside = (begin is None or time >= begin) and (end is None or time < end)
        return inside and all(record.get(key) == value for key, value in fixed.items()) and _alike(record, alike)

    records = audit_log().search(matches)
    return records if limit is None else deque(records, maxlen=limit)


def headline(record: dict[str, Any]) -> str:
    """One record in one line."""
    which = "" if record.get("image_index") is None else f" image {record['image_index']}"
    seq, time, request, stage, action = (record.get(key) for key in ("seq", "time", "request_id", "stage", "action"))
    return f"{seq}  {time}  {request}{which}  {stage}  {action}  {record.get('rule') or record.get('reason_code') or '-'}"


def _gate(rules: Policy, bundle: Path | None, pictures: bool) -> Gate:
    if not pictures:
        return gate_for_texts(rules)
    return gate_for(open_bundle(bundle if bundle is not None else embedded()), rules, make_private(home()))


def _file(subject: str) -> Path | None:
    try:
        return Path(subject) if Path(subject).is_file() else None
    except (OSError, ValueError):  # longer than a path may be, or with a NUL in it
        return None


def _moment(text: str | None) -> str | None:
    """As the log writes times, so that they compare as text."""
    return since(text).isoformat(timespec="milliseconds").replace("+00:00", "Z") if text is not None else None


def _alike(record: dict[str, Any], perceptual: str | None) -> bool:
    if perceptual is None:
        return True
    theirs = record.get("perceptual_hash")
    return isinstance(theirs, str) and len(theirs) == len(perceptual) and hash_distance(theirs, perceptual) <= _SAME
