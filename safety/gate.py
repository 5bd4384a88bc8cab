"""The gate: prompt and picture in, decision out. Fails closed: a check that cannot run raises `SafetyUnavailable` and decides nothing.

Rendering anew where a decision says `regenerate` is the press's loop. Knows nothing of pipelines, files or signatures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL import ImageFilter as PillowFilter

from platemark.errors import SafetyUnavailable
from platemark.runtime.bundle import Bundle
from platemark.runtime.engine import Engine
from platemark.runtime.render import check_render
from platemark.safety.clip import FILES as CLIP_FILES
from platemark.safety.clip import ClipFilter, ClipModel, ConceptScore, ImageFilter, Tokenize, read_preprocess, require_picture
from platemark.safety.closed import fail_closed, require
from platemark.safety.decision import Action, Decision, Reason, Stage
from platemark.safety.policy import ImageRule, Policy
from platemark.safety.prompt import DETECTOR, PromptCheck

_BLUR = 1 / 12  # Gaussian radius as a share of the longer side: the gist of the colours stays, shapes do not


class Gate:
    """The checks of one policy. Stateless after construction, so safe to share between threads."""

    def __init__(self, policy: Policy, image_filter: ImageFilter | None = None) -> None:
        """Raises `SafetyUnavailable` where the policy wants pictures checked and there is nothing to check them with."""
        if policy.image_checks and image_filter is None:
            raise SafetyUnavailable(
                f"the policy '{policy.id}' needs an image check, and there is no image filter",
                "put an open_clip folder at clip/ in the checkpoint and rebuild, or use a policy with image_checks = false",
            )
        self.policy = policy
        self._filter = image_filter
        with fail_closed(DETECTOR):
            self._words = PromptCheck(policy) if policy.prompt_checks else None

    def check_prompt(self, prompt: str, negative_prompt: str = "") -> Decision:
        """Decides on the prompt and the negative prompt together; an empty prompt is the caller's to refuse.

        The stage is `negative_prompt` where only the negative prompt makes the decision as strict as it is.
        """
        if self._words is None:
            return self._decide("prompt", [_off("prompt_checks")], {})
        with fail_closed(DETECTOR):
            require(isinstance(prompt, str) and isinstance(negative_prompt, str), "a prompt to check must be text")
            found = self._words.prompt_reasons(prompt)
            negative = self._words.negative_reasons(negative_prompt)
        scores = dict.fromkeys(self._words.categories, 0.0) | {reason.category: 1.0 for reason in found + negative}
        stage: Stage = "negative_prompt" if _strictest(negative).rank > _strictest(found).rank else "prompt"
        return self._decide(stage, found + negative, scores)

    def check_image(self, image: NDArray[np.uint8]) -> Decision:
        """Decides on one picture, uint8 RGB (H, W, 3).

        Raises `SafetyUnavailable` (not such an array; a detector that fails or says something that is no score) and `RenderError` (as
        good as one colour all over: no picture).
        """
        require_picture(image)
        check_render(image)
        if not self.policy.image_checks or self._filter is None:
            return self._decide("output_image", [_off("image_checks")], {})
        with fail_closed(self._filter.name):
            scores = self._filter.score(image)
            rules = self.policy.image_rules
            reasons = [_concept(name, rule, _scored(scores, name), self._filter.name) for name, rule in rules.items()]
        return self._decide("output_image", [r for r in reasons if r.score >= r.threshold], {r.category: r.score for r in reasons})

    def _decide(self, stage: Stage, reasons: Sequence[Reason], scores: dict[str, float]) -> Decision:
        return Decision(
            stage=stage,
            action=_strictest(reasons),
            reasons=tuple(reasons),
            scores=scores,
            policy_id=self.policy.id,
            policy_sha256=self.policy.sha256,
        )


def apply_action(image: NDArray[np.uint8], decision: Decision) -> NDArray[np.uint8] | None:
    """The picture that `decision` lets out: as it is, blurred, or None (`block`, and `regenerate` where nothing better came)."""
    if decision.allowed:
        return image
    if decision.action is not Action.BLUR:
        return None
    require_picture(image)
    radius = max(1.0, max(image.shape[:2]) * _BLUR)
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).filter(PillowFilter.GaussianBlur(radius)))


def gate_for_clip(
    policy: Policy,
    folder: Path,
    image: Engine,
    text: Engine,
    tokenize: Tokenize,
    vocabulary: Sequence[str] = (),
    cache_folder: Path | None = None,
) -> Gate:
    """The gate with a CLIP folder's towers (compiled engines) as its image filter; nothing is loaded where the policy checks no pictures.

    `vocabulary`: the names that the CLIP knows, where that is known. Raises `SafetyUnavailable`.
    """
    if not policy.image_checks:
        return Gate(policy)
    concepts = {name: rule.concepts for name, rule in policy.image_rules.items()}
    return Gate(policy, ClipFilter(ClipModel.load(folder, image, text, tokenize), concepts, vocabulary, cache_folder))


def gate_for_bundle(policy: Policy, bundle: Bundle, vocabulary: Sequence[str] | None = None, cache_folder: Path | None = None) -> Gate:
    """The gate with an opened bundle's CLIP (`clip_image`, `clip_text` and the files in `clip/`), compiled by ONNX Runtime.

    Every file that it reads is one that the bundle lists, hence was hash-checked when it was opened. `vocabulary` None: the bundle's own
    names. `cache_folder` keeps the text embeddings, which are most of the loading time. Raises `BundleError` (a file that is there but not
    listed, names that cannot be read) and `SafetyUnavailable` (no CLIP, which only a policy without image checks accepts; one that fails).
    """
    if "clip_image" not in bundle.manifest.components or not policy.image_checks:
        return Gate(policy)
    from platemark.runtime.tokenizer import FILES as TOKENIZER_FILES

    folder = bundle.folder("clip", (*CLIP_FILES, *TOKENIZER_FILES))
    graphs = [bundle.file(bundle.component(name).graph) for name in ("clip_image", "clip_text")]
    names = bundle.names() if vocabulary is None else vocabulary
    return _compiled(policy, folder, graphs, names, cache_folder)


def _compiled(policy: Policy, folder: Path, graphs: Sequence[Path], vocabulary: Sequence[str], cache_folder: Path | None) -> Gate:
    with fail_closed("clip"):
        from platemark.runtime.backends.onnxruntime import compile_graph
        from platemark.runtime.tokenizer import Tokenizer

        tokenizer = Tokenizer.load(folder, read_preprocess(folder).context_length)
        image, text = (compile_graph(graph) for graph in graphs)
    return gate_for_clip(policy, folder, image, text, tokenizer.encode_batch, vocabulary, cache_folder)


def _concept(category: str, rule: ImageRule, found: ConceptScore, detector: str) -> Reason:
    return Reason(
        category=category,
        code="clip_concept",
        detector=detector,
        score=found.score,
        threshold=rule.threshold,
        action=rule.action,
        evidence=found.concept,
    )


def _scored(scores: Mapping[str, ConceptScore], category: str) -> ConceptScore:
    """The category's score, where it is one: a finite number in [0, 1]."""
    require(category in scores, f"the image filter gave no score for '{category}'")
    value: Any = scores[category].score
    require(
        isinstance(value, float) and math.isfinite(value) and 0 <= value <= 1,
        f"the image filter's score for '{category}' is no probability",
    )
    return scores[category]


def _off(key: str) -> Reason:
    """States in the decision that the policy leaves this check out."""
    return Reason(
        category="policy", code="checks_off", detector="gate", score=1.0, threshold=1.0, action=Action.ALLOW, evidence=f"{key} = false"
    )


def _strictest(reasons: Sequence[Reason]) -> Action:
    return max((reason.action for reason in reasons), key=lambda action: action.rank, default=Action.ALLOW)
