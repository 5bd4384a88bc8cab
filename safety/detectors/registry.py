"""Detectors by the names that policies use. What is asked for is loaded or refused, never left out in silence."""

from __future__ import annotations

from platemark.errors import PolicyError
from platemark.runtime.bundle import Bundle
from platemark.safety.closed import require
from platemark.safety.signals import ImageDetector

BUILT_IN = ("nsfw", "face")  # in every install
EXTRA = ("opennsfw",)  # with the extra `safety`
FROM_BUNDLE = ("sd_safety_checker",)  # in a bundle whose checkpoint has it; `clip` too, which needs a policy's concepts: see `clip_filter`
NAMES = (*BUILT_IN, *EXTRA, *FROM_BUNDLE)


def load(name: str, *, sha256: str | None = None, bundle: Bundle | None = None, threads: int | None = None) -> ImageDetector:
    """The detector `name`, its weights not yet read (its `prepare` or first look does that).

    `sha256`: the model that it must be, hex. `threads`: of one operator, or looks at a time; None: the detector's own choice.
    Raises `PolicyError` (no such detector), `MissingExtra` (the extra that carries it is not installed) and `SafetyUnavailable` (another
    model than `sha256`; a bundle without it).
    """
    detector = _make(name, bundle, threads)
    require(
        sha256 is None or detector.model_sha256 == sha256.lower(),
        f"the detector '{name}' is another model than the policy names: sha256 {detector.model_sha256[:12]}…",
    )
    return detector


def _make(name: str, bundle: Bundle | None, threads: int | None) -> ImageDetector:
    if name == "nsfw":
        from platemark.safety.detectors.nsfw import NsfwDetector

        return NsfwDetector(threads)
    if name == "face":
        from platemark.safety.detectors.face import FaceDetector

        return FaceDetector(threads)
    if name == "opennsfw":
        from platemark.safety.detectors.opennsfw import OpenNsfwDetector

        return OpenNsfwDetector(threads)
    if name == "sd_safety_checker":
        from platemark.safety.detectors.checker import checker_for_bundle

        require(bundle is not None, "the detector 'sd_safety_checker' comes out of a bundle, and there is none")
        assert bundle is not None
        return checker_for_bundle(bundle, threads)
    raise PolicyError(f"there is no picture detector {name[:40]!r}", f"name one of {', '.join(NAMES)}")
