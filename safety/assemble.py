"""Puts a gate together: the prompt detectors that are installed, the built-in picture detectors, and those that a bundle carries.

What the policy requires and is not there refuses; what it takes where available and is not there is stated in every decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from platemark.errors import MissingExtra, SafetyUnavailable
from platemark.runtime.bundle import Bundle
from platemark.safety.clip import ClipFilter
from platemark.safety.closed import fail_closed
from platemark.safety.detectors import registry
from platemark.safety.detectors.checker import COMPONENT as CHECKER
from platemark.safety.detectors.clip_files import GENERAL
from platemark.safety.detectors.clip_loading import clip_filter, domain_of, knows
from platemark.safety.gate import ALWAYS_IMAGE, Gate
from platemark.safety.policy_model import Policy
from platemark.safety.prompt import prompt_detectors
from platemark.safety.signals import ImageDetector, PromptDetector


def gate_for_texts(policy: Policy) -> Gate:
    """A gate that decides on prompts alone and refuses pictures; loads no network for pictures. Raises `SafetyUnavailable`."""
    return Gate(policy, _words(policy), None)


def gate_for_bundle(
    policy: Policy,
    bundle: Bundle,
    *,
    built_in: bool = False,
    vocabulary: Sequence[str] | None = None,
    cache_folder: Path | None = None,
    threads: int | None = None,
) -> Gate:
    """The gate for an opened bundle: every file of it that is read was hash-checked when it was opened.

    `built_in`: whether it is the embedded model; only then its own word for what it draws is enough where the policy requires an image
    filter for the domain. `vocabulary` None: the bundle's own names. `cache_folder` keeps text embeddings, which are most of the loading
    time. Raises `SafetyUnavailable`: a detector that the policy requires is missing or broken, or no image filter where the policy
    requires one.
    """
    with ThreadPoolExecutor(4) as pool:  # engines compile without the interpreter lock
        words = pool.submit(_words, policy)
        clip = pool.submit(_clip, policy, bundle, vocabulary, cache_folder, threads)
        others = pool.map(lambda name: _other(name, bundle, threads), _wanted(policy))
        found: list[ImageDetector] = [one for one in (*others, clip.result()) if one is not None]
        _require_filter(policy, clip.result(), found, built_in)
        return Gate(policy, words.result(), found, _unchecked(policy, clip.result()))


def _words(policy: Policy) -> Sequence[PromptDetector]:
    with fail_closed("prompt"):
        return prompt_detectors(policy)


def _wanted(policy: Policy) -> list[str]:
    listed = [rule.name for rule in policy.detectors if rule.name in registry.NAMES]
    return list(dict.fromkeys((*ALWAYS_IMAGE, *listed)))


def _other(name: str, bundle: Bundle, threads: int | None) -> ImageDetector | None:
    """A detector that needs no concepts, ready to look; None where its extra is not installed or the bundle has none (the gate judges)."""
    if name in registry.FROM_BUNDLE and CHECKER not in bundle.manifest.components:
        return None
    with fail_closed(name):
        try:
            detector = registry.load(name, bundle=bundle, threads=threads)
        except MissingExtra:
            return None
        prepare = getattr(detector, "prepare", None)
        if prepare is not None:
            prepare()
    return detector


def _clip(policy: Policy, bundle: Bundle, vocabulary: Sequence[str] | None, cache: Path | None, threads: int | None) -> ClipFilter | None:
    """The CLIP that the policy names, or the bundle's, with the policy's concepts; None where it does not know what the bundle draws."""
    named = policy.clip_path
    if not policy.concepts or (named is None and "clip_image" not in bundle.manifest.components):
        return None
    source = bundle if named is None else Path(named)
    with fail_closed("clip"):
        found = clip_filter(
            source, policy.concepts, calibration=policy.calibration, vocabulary=vocabulary, cache_folder=cache, threads=threads or 1
        )
        return found if knows(found.domain, domain_of(bundle)) else None


def _require_filter(policy: Policy, clip: ClipFilter | None, found: Sequence[ImageDetector], built_in: bool) -> None:
    if policy.image_filter != "required":
        return
    trusted = clip is not None and (clip.domain == GENERAL or built_in or policy.clip_path is not None)
    if not trusted and "sd_safety_checker" not in {one.name for one in found}:
        raise SafetyUnavailable(
            f"the policy '{policy.id}' requires an image filter, and this bundle has none for what it draws",
            "rebuild with an open_clip folder at clip/ (or safety_checker/) in the checkpoint, or name an exported CLIP in the policy",
        )


def _unchecked(policy: Policy, clip: ClipFilter | None) -> list[str]:
    return [] if clip is not None else sorted(policy.concepts)
