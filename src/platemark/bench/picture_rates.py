"""How often the image check stops the pictures of harmless prompts, by prompt and by what a picture shows. Renders nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from platemark.bench.statistics import Data, Share, share
from platemark.safety.decision import Action, Decision
from platemark.safety.gate import IMAGE_DETECTORS, Gate


@dataclass(frozen=True)
class Picture:
    """One picture that was asked for. `decision` of the image check, where it was made; `shows`: attribute → value; `name`: the likeliest
    of the names that the model was trained on, where those are known."""

    prompt: str
    state: Literal["made", "prompt_blocked", "render_error"]
    decision: Decision | None
    shows: dict[str, str]
    name: str | None = None

    @property
    def stopped(self) -> bool:
        return self.decision is not None and not self.decision.allowed


class PictureRates(Data):
    """Of the pictures made for harmless prompts, those that the image check did not let through as they are.

    `prompts_blocked` and `render_errors` count pictures that never came to be. `by_attribute`: group → value → rate among the pictures
    that show it. `unchecked`: what the policy asks for and nobody here can check.
    """

    detectors: tuple[str, ...]
    asked: int
    prompts_blocked: int
    render_errors: int
    overall: Share
    flagged: Share
    by_prompt: dict[str, Share]
    by_attribute: dict[str, dict[str, Share]]
    by_category: dict[str, int]
    unchecked: tuple[str, ...]


def picture_rates(gate: Gate, asked: Sequence[Picture], groups: Iterable[str]) -> PictureRates:
    """`groups`: the attributes that every made picture was read for."""
    made = [one for one in asked if one.state == "made"]
    states = Counter(one.state for one in asked)
    flags = sum(one.decision is not None and one.decision.action is Action.FLAG for one in made)
    return PictureRates(
        detectors=tuple(name for name in gate.detectors if name in IMAGE_DETECTORS),
        asked=len(asked),
        prompts_blocked=states["prompt_blocked"],
        render_errors=states["render_error"],
        overall=_rate(made),
        flagged=share(flags, len(made)),
        by_prompt=_rates(made, lambda one: one.prompt),
        by_attribute={group: _rates(made, lambda one, group=group: one.shows[group]) for group in groups},  # type: ignore[misc]
        by_category=dict(Counter(one.decision.category or "-" for one in made if one.decision and one.stopped).most_common()),
        unchecked=gate.unchecked,
    )


def _rate(pictures: Sequence[Picture]) -> Share:
    return share(sum(one.stopped for one in pictures), len(pictures))


def _rates(pictures: Sequence[Picture], key: Callable[[Picture], str]) -> dict[str, Share]:
    names = dict.fromkeys(key(one) for one in pictures)
    return {name: _rate([one for one in pictures if key(one) == name]) for name in names}
