"""What a detector says of a prompt or a picture: signals, before any policy has judged them.

Detectors know no policy: they report scores, and the gate compares them with thresholds. Knows no detector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

PromptKind = Literal["prompt", "negative_prompt"]


@dataclass(frozen=True)
class Signal:
    """One finding. `category`: a policy category (`sexual`, `violence`, …) or a tag for rules (`undress_intent`, `face_swap_intent`,
    `minor_term`, `named_person`, `face`); `code`: stable snake_case; `score` in [0, 1]; `evidence`: the policy's own term or concept, never
    the user's text."""

    category: str
    code: str
    score: float
    evidence: str = ""


@dataclass(frozen=True)
class Face:
    """A found face. `box`: (left, top, right, bottom) in pixels of the picture; `score` in [0, 1]."""

    box: tuple[float, float, float, float]
    score: float


@dataclass(frozen=True)
class Observation:
    """What one detector saw in one look. `model_sha256`: of the weights or data file that it ran, hex; `milliseconds` of its own work;
    `faces`: None where the detector does not look for faces."""

    detector: str
    model_sha256: str
    signals: tuple[Signal, ...]
    milliseconds: float
    faces: tuple[Face, ...] | None = None


class PromptDetector(Protocol):
    """Looks at text. `categories`: what it can report. May raise anything: the gate fails closed."""

    name: str
    model_sha256: str

    @property
    def categories(self) -> tuple[str, ...]: ...

    def observe(self, text: str, kind: PromptKind) -> Observation: ...


class ImageDetector(Protocol):
    """Looks at a picture, uint8 RGB (H, W, 3). `categories`: what it can report. May raise anything: the gate fails closed."""

    name: str
    model_sha256: str

    @property
    def categories(self) -> tuple[str, ...]: ...

    def observe(self, image: NDArray[np.uint8]) -> Observation: ...
