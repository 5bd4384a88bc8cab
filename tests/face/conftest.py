"""A press of real stages with stand-ins where a test must steer them: a pipeline that draws at once, detectors that answer as told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from platemark.models import embedded
from platemark.press import Press
from platemark.provenance.stamp import Stamp, open_stamp
from platemark.runtime.bundle import Bundle, open_bundle
from platemark.runtime.denoise import Step
from platemark.runtime.noise import image_seed
from platemark.runtime.pipeline import Pipeline
from platemark.safety.gate import Gate
from platemark.safety.policy import parse_policy
from platemark.safety.signals import Face, Observation, Signal

POLICY = """
version = 2
id = "studio"
fail = "closed"
image_filter = "available"
timeout_seconds = 20.0
provenance = {require_watermark = false}
regenerate = {max = 2}
audit = {enabled = true}
people = {real_face_input = "consent"}
[categories.sexual]
prompt = {threshold = 0.5, action = "block"}
output_image = {threshold = 0.7, action = "block"}
[categories.violence]
prompt = {threshold = 0.5, action = "block"}
"""
HASH = "cd" * 32
Picture = NDArray[np.uint8]


def drawn(seed: int, side: int = 128) -> Picture:
    """A picture of this seed alone: noise with `seed` in its first pixel, so that a detector knows which it sees."""
    picture = np.random.default_rng(seed % 2**32).integers(40, 216, (side, side, 3), dtype=np.uint8)
    picture[0, 0] = np.frombuffer((seed % 2**24).to_bytes(3, "big"), np.uint8)
    return picture


def seed_in(picture: Picture) -> int:
    """The seed (modulo 2^24) that `drawn` wrote."""
    return int.from_bytes(picture[0, 0].tobytes(), "big")


@dataclass
class StubPipeline:
    """Draws `draw(seed)` for each picture. `rendered`: the seeds, in order."""

    bundle: Bundle
    draw: Callable[[int], Any] = drawn
    rendered: list[int] = field(default_factory=list)

    def generate(self, request: Any, latents: Any = None, on_step: Any = None, control: Any = None, previews: bool = False) -> Any:
        seeds = tuple(image_seed(request.seed, k) for k in range(request.n))
        self.rendered += seeds
        images = np.stack([self.draw(seed) for seed in seeds])
        if on_step is not None:
            on_step(Step(1, 1, 0.0, 0.0))
        return SimpleNamespace(images=images, seeds=seeds, timings={"denoise": 1.0}, notes=(), resampled_from=None)


@dataclass
class StubDetector:
    """Answers what it is told to, or raises it; `answer` may be a function of what is looked at."""

    name: str
    categories: tuple[str, ...]
    answer: Any
    model_sha256: str = HASH
    looks: int = 0

    def observe(self, *question: Any) -> Observation:
        self.looks += 1
        answer = self.answer(*question) if callable(self.answer) else self.answer
        if isinstance(answer, BaseException):
            raise answer
        return cast(Observation, answer)


def saw(name: str, *signals: tuple[str, Any], faces: int | None = None, sha256: str = HASH) -> Observation:
    """What a detector says: (category, score) pairs, and how many faces."""
    found = None if faces is None else tuple(Face((0.0, 0.0, 9.0, 9.0), 0.9) for _ in range(faces))
    return Observation(name, sha256, tuple(Signal(c, "test", s, "term") for c, s in signals), 1.0, found)


def words(text: str, kind: str) -> Observation:
    """A lexicon whose words are the names of categories and tags."""
    known = ("sexual", "violence", "minor_term", "undress_intent", "named_person")
    return saw("lexicon", *((name, 1.0) for name in known if name in text))


NORMAL: dict[str, tuple[tuple[str, ...], Any]] = {
    "lexicon": (("sexual", "violence"), words),
    "nsfw": (("sexual",), saw("nsfw", ("sexual", 0.01))),
    "face": (("face",), saw("face", faces=0)),
}


class Studio:
    """Makes presses over one bundle, each with a state folder of its own, and keeps count of what is stamped."""

    def __init__(self, bundle: Bundle, stamp: Stamp) -> None:
        self.bundle, self.stamp = bundle, stamp
        self.saw, self.drawn, self.seed_in, self.policy, self.hash = saw, drawn, seed_in, POLICY, HASH

    def gate(self, policy: str = "", **answers: Any) -> Gate:
        """The gate of the studio's policy and `policy` behind it, with detectors that answer normally but for `answers`."""
        unknown = {name: (("sexual",), answer) for name, answer in answers.items() if name not in NORMAL}
        made = {name: StubDetector(name, c, answers.get(name, a)) for name, (c, a) in (NORMAL | unknown).items()}
        rules = parse_policy((POLICY + policy).encode(), "studio.toml")
        return Gate(rules, [made.pop("lexicon")], list(made.values()))

    def press(self, home: Path, policy: str = "", draw: Callable[[int], Any] = drawn, **answers: Any) -> Press:
        """A press whose log lies under `home`; its keys and registry are the studio's."""
        pipeline = cast(Pipeline, StubPipeline(self.bundle, draw))
        stamp = Stamp(home, self.stamp.identity, self.stamp.registry, self.stamp.rules)
        return Press(pipeline, self.gate(policy, **answers), stamp)


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return Studio(open_bundle(embedded()), open_stamp(tmp_path_factory.mktemp("studio"), require_watermark=False))
