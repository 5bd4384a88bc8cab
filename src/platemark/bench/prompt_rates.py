"""How often the prompt check stops harmless prompts, by language and by the group of people that they name.

Every prompt is harmless by construction, so each one that is not let through is a false positive. Says nothing of what is missed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from platemark.bench.bias_data import Benign
from platemark.bench.statistics import Data, Share, share
from platemark.safety.decision import Action, Decision
from platemark.safety.gate import PROMPT_DETECTORS, Gate

OnDone = Callable[[int, int], None]


class Hit(Data):
    """A prompt that was not simply allowed, by its ids, with what decided. `evidence`: the policy's own term, empty where there is none."""

    language: str
    group: str
    scene: str
    action: str
    category: str | None
    detector: str | None
    evidence: str


class PromptRates(Data):
    """False positives: prompts that were not let through. `flagged`: let through, with a flag. `hits`: all of both, in order."""

    detectors: tuple[str, ...]
    overall: Share
    flagged: Share
    by_language: dict[str, Share]
    by_axis: dict[str, Share]
    by_group: dict[str, Share]
    by_scene: dict[str, Share]
    by_category: dict[str, int]
    hits: tuple[Hit, ...]


@dataclass(frozen=True)
class _Case:
    language: str
    group: str
    scene: str
    decision: Decision

    @property
    def stopped(self) -> bool:
        return not self.decision.allowed

    def hit(self) -> Hit:
        decision = self.decision
        why = next((reason for reason in decision.reasons if reason.action is decision.action), None)
        return Hit(
            language=self.language,
            group=self.group,
            scene=self.scene,
            action=decision.action.value,
            category=decision.category,
            detector=None if why is None else why.detector,
            evidence="" if why is None else why.evidence,
        )


def prompt_rates(gate: Gate, benign: Benign, on_done: OnDone = lambda done, total: None) -> PromptRates:
    """Puts every prompt to the gate's own prompt check. Raises `SafetyUnavailable`."""
    asked = list(benign.cases())
    cases = []
    for number, (language, group, scene, prompt) in enumerate(asked):
        cases.append(_Case(language, group, scene, gate.check_prompt(prompt)))
        on_done(number + 1, len(asked))
    axis = {group: name for name, some in benign.axes.items() for group in some}
    return PromptRates(
        detectors=tuple(name for name in gate.detectors if name in PROMPT_DETECTORS),
        overall=_rate(cases),
        flagged=share(sum(case.decision.action is Action.FLAG for case in cases), len(cases)),
        by_language=_rates(cases, lambda case: case.language),
        by_axis=_rates(cases, lambda case: axis[case.group]),
        by_group=_rates(cases, lambda case: case.group),
        by_scene=_rates(cases, lambda case: case.scene),
        by_category=dict(Counter(case.decision.category or "-" for case in cases if case.stopped).most_common()),
        hits=tuple(case.hit() for case in cases if case.decision.action is not Action.ALLOW),
    )


def _rate(cases: Sequence[_Case]) -> Share:
    return share(sum(case.stopped for case in cases), len(cases))


def _rates(cases: Sequence[_Case], key: Callable[[_Case], str]) -> dict[str, Share]:
    names = dict.fromkeys(key(case) for case in cases)
    return {name: _rate([case for case in cases if key(case) == name]) for name in names}
