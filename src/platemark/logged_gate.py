"""The gate with its log: no decision leaves without its record in the audit log. Decides nothing itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from platemark.errors import PlatemarkError, PolicyBlocked, RenderError, SafetyUnavailable
from platemark.runtime.request import GenerationRequest
from platemark.safety.audit import AuditLog
from platemark.safety.audit_record import Subject, decision_record, failure_record
from platemark.safety.decision import Decision, Stage
from platemark.safety.gate import Gate

Picture = NDArray[np.uint8]


class LoggedGate:
    """Raises `SafetyUnavailable` where the gate cannot decide, and where its decision cannot be written down."""

    def __init__(self, gate: Gate, log: AuditLog) -> None:
        self.gate, self.log = gate, log

    def admit(self, request: GenerationRequest, subject: Subject) -> None:
        """As `prompt`, before any work: only what keeps the request out is logged, since `prompt` decides anew when the request runs."""
        with self._failures("prompt", subject, None):
            decision = self.gate.check_prompt(request.prompt, request.negative_prompt, input_image=bool(request.brought))
        if not decision.allowed:
            self.log.write(decision_record(decision, subject))
        admitted(decision)

    def prompt(self, request: GenerationRequest, subject: Subject, consent: str | None = None) -> Decision:
        """The decision on a request's texts, logged. Raises `PolicyBlocked` where it blocks."""
        with self._failures("prompt", subject, None):
            brings = bool(request.brought)
            decision = self.gate.check_prompt(request.prompt, request.negative_prompt, input_image=brings, consent=consent)
        self.log.write(decision_record(decision, subject))
        return admitted(decision)

    def input_image(self, image: Picture, subject: Subject, consent: str | None, *earlier: Decision) -> Decision:
        """The decision on a picture that the request brings, logged. Raises `PolicyBlocked` where it blocks."""
        with self._failures("input_image", subject, image):
            decision = self.gate.check_input_image(image, consent, *earlier)
        self.log.write(decision_record(decision, subject, image))
        return admitted(decision)

    def output_image(self, image: Picture, subject: Subject, *earlier: Decision) -> Decision:
        """The decision on one rendered picture, logged. Raises `RenderError` where it is none."""
        with self._failures("output_image", subject, image):
            decision = self.gate.check_output_image(image, *earlier)
        self.log.write(decision_record(decision, subject, image))
        return decision

    def render_failed(self, error: RenderError, subject: Subject) -> None:
        """Logs a render that is no picture."""
        self._failed(error, "output_image", subject, None)

    @contextlib.contextmanager
    def _failures(self, stage: Stage, subject: Subject, image: Picture | None) -> Iterator[None]:
        """Logs a check that could not be made, and lets its error pass."""
        try:
            yield
        except RenderError as error:
            self._failed(error, stage, subject, image)
            raise
        except SafetyUnavailable as error:
            with contextlib.suppress(SafetyUnavailable):  # nothing is released either way, and the first error says why
                self._failed(error, stage, subject, None)
            raise

    def _failed(self, error: PlatemarkError, stage: Stage, subject: Subject, image: Picture | None) -> None:
        policy = self.gate.policy
        self.log.write(failure_record(error, stage, subject, (policy.id, policy.sha256), image))


def admitted(decision: Decision) -> Decision:
    """The decision, where it lets the request go on. Raises `PolicyBlocked`, which names categories and rules and nothing of the prompt."""
    if decision.allowed:
        return decision
    found = {f"{r.category} ({r.rule if r.code.endswith('_rule') else r.code})" for r in decision.reasons if r.action is decision.action}
    what = "input image" if decision.stage == "input_image" else "prompt"
    message = f"the policy '{decision.policy_id}' blocks this {what}: {', '.join(sorted(found))}"
    remedy = "give --consent REF" if decision.reason_code == "consent_missing" else f"change the {what}, or use another policy"
    raise PolicyBlocked(message, remedy, decision)
