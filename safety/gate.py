"""The gate: prompt and picture in, decision out. Fails closed: a check that cannot run raises `SafetyUnavailable` and decides nothing.

Rendering anew where a decision says `regenerate` is the press's loop; writing decisions down is the audit log's work. Knows nothing of
pipelines, files or signatures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL import ImageFilter as PillowFilter

from platemark.errors import InputError, SafetyUnavailable
from platemark.runtime.render import check_render
from platemark.safety.clip import require_picture
from platemark.safety.closed import REMEDY, require
from platemark.safety.decision import Action, Decision, Severity, Stage
from platemark.safety.policy_model import DetectorRule, Policy
from platemark.safety.rules import Case, Look, decide
from platemark.safety.signals import ImageDetector, PromptDetector, PromptKind
from platemark.safety.watch import D, Watch, Watched

ALWAYS_PROMPT = ("lexicon",)  # what the locked rules stand on: without them there is no gate
ALWAYS_IMAGE = ("nsfw", "face")
PROMPT_DETECTORS = ("lexicon", "classifier", "semantic")
IMAGE_DETECTORS = ("nsfw", "face", "opennsfw", "clip", "sd_safety_checker")
MAX_CONSENT = 200  # characters of a consent reference
_BLUR = 1 / 12  # Gaussian radius as a share of the longer side: the gist of the colours stays, shapes do not


class Gate:
    """The checks of one policy. Holds no request, so safe to share between threads."""

    def __init__(
        self,
        policy: Policy,
        prompt_detectors: Sequence[PromptDetector],
        image_detectors: Sequence[ImageDetector] | None,
        unchecked: Sequence[str] = (),
    ) -> None:
        """`image_detectors` None: a gate for texts alone, which refuses every picture.

        `unchecked`: what the policy asks for and accepts that nobody checks here; every decision on a picture states it.

        Raises `SafetyUnavailable` where a detector is missing that the policy requires or a locked rule stands on, where two have one
        name, and where a detector's model is not the one that the policy names.
        """
        self.policy, self.unchecked = policy, tuple(unchecked)
        _require_all(policy, prompt_detectors, image_detectors)
        self._sees = image_detectors is not None
        self._prompt = Watch([_watched(policy, detector, explicit=False) for detector in prompt_detectors])
        self._image = Watch([_watched(policy, detector, explicit=True) for detector in image_detectors or ()])

    @property
    def detectors(self) -> dict[str, str]:
        """The detectors in force and the sha256 of their models."""
        both: tuple[Watched[Any], ...] = (*self._prompt.watched, *self._image.watched)
        return {one.detector.name: one.detector.model_sha256 for one in both}

    def check_prompt(
        self, prompt: str, negative_prompt: str = "", *, extra: Sequence[str] = (), input_image: bool = False, consent: str | None = None
    ) -> Decision:
        """Decides on the texts of a request together; an empty prompt is the caller's to refuse.

        `extra`: texts that are put behind the prompt (a style preset's): looked at with the prompt as one text. `input_image`: whether the
        request brings a picture. The stage is `negative_prompt` where that alone makes the decision as strict as it is.
        Raises `SafetyUnavailable`, and `InputError` for a consent reference that is none.
        """
        texts = (prompt, negative_prompt, *extra)
        require(all(isinstance(text, str) for text in texts), "a prompt to check must be text")
        asked: list[tuple[str, PromptKind]] = [(prompt, "prompt")]
        asked += [(", ".join((prompt, *extra)), "prompt")] if extra else []
        asked += [(negative_prompt, "negative_prompt")] if negative_prompt.strip() else []
        looks = tuple(look for text, kind in asked for look in self._read(text, kind))
        return decide(self.policy, Case("prompt", looks, input_image=input_image, consent=checked_consent(consent)))

    def check_input_image(self, image: NDArray[np.uint8], consent: str | None = None, *earlier: Decision) -> Decision:
        """Decides on a picture that the request brings, uint8 RGB (H, W, 3), in the light of `earlier` decisions on the same request.

        Raises `SafetyUnavailable`, and `InputError` for a consent reference that is none.
        """
        looks = self._see(image, "input_image")
        case = Case("input_image", looks, _carried(earlier), True, checked_consent(consent), self.unchecked)
        return decide(self.policy, case)

    def check_output_image(self, image: NDArray[np.uint8], *earlier: Decision) -> Decision:
        """Decides on one rendered picture, uint8 RGB (H, W, 3), in the light of the request's `earlier` decisions.

        Raises `SafetyUnavailable` (not such an array; a detector that fails or says something that is no score) and `RenderError` (as
        good as one colour all over: no picture).
        """
        require_picture(image)
        check_render(image)
        looks = self._see(image, "output_image")
        brought = any(decision.input_image for decision in earlier)
        consent = next((decision.consent for decision in earlier if decision.consent), None)
        return decide(self.policy, Case("output_image", looks, _carried(earlier), brought, consent, self.unchecked))

    def _read(self, text: str, kind: PromptKind) -> tuple[Look, ...]:
        seen = self._prompt.look(lambda detector: detector.observe(text, kind))
        return tuple(Look(one, w.detector.categories, kind) for one, w in zip(seen, self._prompt.watched, strict=True))

    def _see(self, image: NDArray[np.uint8], stage: Stage) -> tuple[Look, ...]:
        require(self._sees, "this gate was made for texts alone")
        require_picture(image)
        frozen = np.ascontiguousarray(image).copy()
        frozen.setflags(write=False)  # a detector that scribbles on its input must not change what is released, nor what others see
        seen = self._image.look(lambda detector: detector.observe(frozen))
        return tuple(Look(one, w.detector.categories, stage) for one, w in zip(seen, self._image.watched, strict=True))


def apply_action(image: NDArray[np.uint8], decision: Decision) -> NDArray[np.uint8] | None:
    """The picture that `decision` lets out: as it is, blurred, or None (`block`, and `regenerate` where nothing better came)."""
    if decision.allowed:
        return image
    if decision.action is not Action.BLUR:
        return None
    require_picture(image)
    radius = max(1.0, max(image.shape[:2]) * _BLUR)
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).filter(PillowFilter.GaussianBlur(radius)))


def checked_consent(consent: str | None) -> str | None:
    """A consent reference as it may stand in a record: one line of 1 to `MAX_CONSENT` printable characters. Raises `InputError`."""
    if consent is None:
        return None
    fits = isinstance(consent, str) and consent == consent.strip() and 0 < len(consent) <= MAX_CONSENT and consent.isprintable()
    if not fits:
        remedy = f"give 1 to {MAX_CONSENT} characters, such as a case number"
        raise InputError("the consent reference is not one line of printable text", remedy)
    return consent


def _carried(earlier: Sequence[Decision]) -> dict[str, Severity]:
    """The gravest severity per category and tag over earlier decisions."""
    carried: dict[str, Severity] = {}
    for decision in earlier:
        for name, severity in decision.seen.items():
            carried[name] = max(severity, carried.get(name, Severity.NONE), key=lambda s: s.rank)
    return carried


def _rules(policy: Policy) -> dict[str, DetectorRule]:
    return {rule.name: rule for rule in policy.detectors}


def _named(policy: Policy) -> list[str]:
    """Every detector that a policy names: those it wants, and those that it gives a threshold of their own."""
    stages = (rule for c in policy.categories.values() for rule in (c.prompt, c.input_image, c.output_image) if rule)
    return [*_rules(policy), *(name for rule in stages for name in rule.thresholds)]


def _require_all(policy: Policy, prompt: Sequence[PromptDetector], image: Sequence[ImageDetector] | None) -> None:
    detectors: tuple[PromptDetector | ImageDetector, ...] = (*prompt, *(image or ()))
    there = {detector.name: detector for detector in detectors}
    require(len(there) == len(detectors), "two detectors have one name")
    wanted = {*ALWAYS_PROMPT, *ALWAYS_IMAGE, *(rule.name for rule in policy.detectors if rule.required)}
    for name in sorted(wanted if image is not None else wanted - set(IMAGE_DETECTORS)):
        if name not in there:
            raise SafetyUnavailable(
                f"the policy '{policy.id}' needs the detector '{name}', which is not there",
                "install the extra that brings it, use a bundle that carries it, or take it off the policy's detectors",
            )
    stranger = next((name for name in _named(policy) if name not in (*there, *PROMPT_DETECTORS, *IMAGE_DETECTORS)), None)
    if stranger is not None:  # also where it need not be there: a slip of the pen must not leave a check out
        names = ", ".join((*PROMPT_DETECTORS, *IMAGE_DETECTORS))
        raise SafetyUnavailable(f"the policy '{policy.id}' names the detector '{stranger}', which nobody knows", f"use one of {names}")
    for name, rule in _rules(policy).items():
        if name in there and rule.sha256 is not None and there[name].model_sha256 != rule.sha256:
            raise SafetyUnavailable(f"the model of the detector '{name}' is not the one that the policy '{policy.id}' names", REMEDY)


def _watched(policy: Policy, detector: D, *, explicit: bool) -> Watched[D]:
    rule: Any = _rules(policy).get(detector.name)
    return Watched(detector, rule.timeout_seconds if rule and rule.timeout_seconds else policy.timeout_seconds, explicit)
