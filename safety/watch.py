"""Runs detectors so that nothing they do goes unnoticed: a hang, a crash, a silence or a number that is no score refuses the request.

Each look runs on a thread of its own. A thread that hangs cannot be ended, so it is left behind, and its detector is refused until it
answers; it never keeps the process alive. Knows no policy and no particular detector.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from platemark.errors import SafetyUnavailable
from platemark.safety.closed import REMEDY, fail_closed, require
from platemark.safety.signals import Face, ImageDetector, Observation, PromptDetector, Signal

D = TypeVar("D", PromptDetector, ImageDetector)


@dataclass(frozen=True)
class Watched(Generic[D]):
    """A detector and the seconds that one look of it may take. `explicit`: silence about a category that it reports is an error."""

    detector: D
    seconds: float
    explicit: bool


class Watch(Generic[D]):
    """The detectors of one stage. Safe to share between threads."""

    def __init__(self, watched: Sequence[Watched[D]]) -> None:
        self.watched: tuple[Watched[D], ...] = tuple(watched)
        self._hung: dict[str, int] = {one.detector.name: 0 for one in self.watched}  # looks that were given up and still run
        self._lock = threading.Lock()

    def look(self, call: Callable[[D], Observation]) -> tuple[Observation, ...]:
        """What `call` gives for each detector, all at once, in their order, each checked. Raises `SafetyUnavailable`."""
        for one in self.watched:
            if self._hung[one.detector.name]:
                raise SafetyUnavailable(f"the detector '{one.detector.name}' still hangs in an earlier look", "restart the process")
        began = time.monotonic()
        answers = [self._start(one, call) for one in self.watched]
        return tuple(self._answer(one, answer, began) for one, answer in zip(self.watched, answers, strict=True))

    def _start(self, one: Watched[D], call: Callable[[D], Observation]) -> _Answer:
        answer = _Answer()

        def work() -> None:
            try:
                answer.box.put((call(one.detector), None))
            except BaseException as error:  # noqa: BLE001 - carried over to the asking thread and raised there, interrupts included
                answer.box.put((None, error))
            with self._lock:
                answer.done = True
                self._hung[one.detector.name] -= answer.given_up

        threading.Thread(target=work, name=f"platemark-{one.detector.name}", daemon=True).start()
        return answer

    def _answer(self, one: Watched[D], answer: _Answer, began: float) -> Observation:
        name = one.detector.name
        left = max(0.0, began + one.seconds - time.monotonic())
        try:
            value, error = answer.box.get(timeout=left)
        except queue.Empty:
            with self._lock:
                answer.given_up = not answer.done
                self._hung[name] += answer.given_up
            raise SafetyUnavailable(f"the detector '{name}' did not answer within {one.seconds:g} seconds", REMEDY) from None
        with fail_closed(name):
            if error is not None:
                raise error
        return _checked(one, value)


class _Answer:
    """Where a look's thread leaves what it found. `given_up`: nobody waits any more, and the thread still ran then."""

    def __init__(self) -> None:
        self.box: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self.done = self.given_up = False


def _checked(one: Watched[Any], value: Any) -> Observation:
    """The observation, where it is one and every number in it is what it should be."""
    name = one.detector.name
    require(isinstance(value, Observation), f"the detector '{name}' gave no observation")
    require(value.detector == name and value.model_sha256 == one.detector.model_sha256, f"the detector '{name}' answers for another")
    require(all(_is_signal(signal) for signal in value.signals), f"the detector '{name}' gave a score that is none")
    if "face" in one.detector.categories:
        require(value.faces is not None and all(_is_face(face) for face in value.faces), f"the detector '{name}' gave no faces to count")
    if one.explicit:
        silent = set(one.detector.categories) - {signal.category for signal in value.signals} - {"face"}
        require(not silent, f"the detector '{name}' gave no score for {', '.join(sorted(silent))}")
    require(_is_number(value.milliseconds) and value.milliseconds >= 0, f"the detector '{name}' gave no duration")
    return Observation(name, value.model_sha256, tuple(value.signals), float(value.milliseconds), value.faces)


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)


def _is_signal(signal: Any) -> bool:
    return isinstance(signal, Signal) and isinstance(signal.category, str) and _is_number(signal.score) and 0 <= signal.score <= 1


def _is_face(face: Any) -> bool:
    return isinstance(face, Face) and _is_number(face.score) and 0 <= face.score <= 1
