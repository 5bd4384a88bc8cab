"""The gate: one decision per prompt and per picture, and a refusal wherever a check cannot do its work."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from platemark.errors import InputError, PlatemarkError, RenderError, SafetyUnavailable
from platemark.safety.decision import Action, Decision
from platemark.safety.gate import Gate, apply_action, checked_consent
from platemark.safety.policy import parse_policy
from platemark.safety.policy_model import Policy
from platemark.safety.signals import Face, Observation, Signal

GREEN, RED = (10, 250, 10), (250, 10, 10)
HASH = "cd" * 32


@dataclass
class Detector:
    """Answers what it is told to, raises it, or does it."""

    name: str
    categories: tuple[str, ...]
    answer: Any
    model_sha256: str = HASH
    asked: list[Any] = field(default_factory=list)

    def observe(self, *question: Any) -> Observation:
        self.asked.append(question)
        answer = self.answer(*question) if callable(self.answer) else self.answer
        if isinstance(answer, BaseException):
            raise answer
        found: Observation = answer
        return found


def saw(name: str, *signals: tuple[str, Any], faces: Any = None, ms: Any = 1.0, sha256: str = HASH) -> Observation:
    return Observation(name, sha256, tuple(Signal(c, "test", s, "term") for c, s in signals), ms, faces)


def words(text: str, kind: str) -> Observation:
    """A lexicon of one word a category."""
    found = [(c, 1.0) for c in ("sexual", "violence", "minor_term", "undress_intent", "named_person") if c in text]
    return saw("lexicon", *found)


def prompt_side(answer: Any = words) -> list[Detector]:
    return [Detector("lexicon", ("sexual", "violence"), answer)]


def image_side(**answers: Any) -> list[Detector]:
    given = {"nsfw": saw("nsfw", ("sexual", 0.01)), "face": saw("face", faces=()), "clip": saw("clip", ("alarm", 0.1), ("caution", 0.1))}
    categories = {"nsfw": ("sexual",), "face": ("face",), "clip": ("alarm", "caution")}
    return [Detector(name, categories[name], answer) for name, answer in (given | answers).items()]


@pytest.fixture
def gate_of(colour_policy: Policy) -> Callable[..., Gate]:
    def make(prompt: Any = words, policy: Policy = colour_policy, **answers: Any) -> Gate:
        return Gate(policy, prompt_side(prompt), image_side(**answers))

    return make


def test_each_picture_gets_its_own_decision(gate_of: Any, colours: Any) -> None:
    """Replay: a batch with one flagged picture."""

    def clip(image: NDArray[np.uint8]) -> Observation:
        return saw("clip", ("alarm", 0.9 if image[0, 1, 0] > 200 else 0.1), ("caution", 0.1))

    gate = gate_of(clip=clip)
    decisions = [gate.check_output_image(colours.picture(colour)) for colour in (GREEN, RED, GREEN, GREEN)]
    assert [d.action for d in decisions] == [Action.ALLOW, Action.BLOCK, Action.ALLOW, Action.ALLOW]
    blocked = decisions[1]
    assert [(r.category, r.code, r.detector, r.evidence) for r in blocked.reasons] == [("alarm", "test", "clip", "term")]
    assert {e.detector for e in blocked.entries} == {"nsfw", "clip"}
    assert (blocked.faces, blocked.policy_sha256) == (0, gate.policy.sha256)


def test_prompts_are_decided_on_with_all_their_texts(gate_of: Any) -> None:
    gate = gate_of()
    assert gate.check_prompt("a cat").action is Action.ALLOW
    # Style presets are checked too, and together with the prompt.
    assert gate.check_prompt("a minor_term", extra=["in a sexual style"]).rule == "locked_minor_with_sexual"
    assert gate.check_prompt("a minor_term", "sexual").allowed
    assert gate.check_prompt("undress_intent her").allowed
    assert gate.check_prompt("undress_intent her", input_image=True).rule == "locked_undress_a_picture"


def test_earlier_decisions_are_carried_to_the_picture(gate_of: Any, colours: Any) -> None:
    gate = gate_of(nsfw=saw("nsfw", ("sexual", 0.6)))
    image = colours.picture(GREEN)
    assert gate.check_output_image(image).allowed
    assert gate.check_output_image(image, gate.check_prompt("a minor_term")).rule == "locked_minor_with_sexual"
    faces = gate_of(face=saw("face", faces=(Face((0, 0, 9, 9), 0.9),)))
    brought = faces.check_input_image(image, "case-7", faces.check_prompt("a cat", input_image=True))
    assert (brought.faces, brought.consent, brought.allowed) == (1, "case-7", True)
    assert gate.check_output_image(image, brought).rule == "locked_sexual_with_face"


def test_an_input_picture_with_a_face_needs_consent(gate_of: Any, colours: Any) -> None:
    gate = gate_of(face=saw("face", faces=(Face((0, 0, 9, 9), 0.9),)))
    refused = gate.check_input_image(colours.picture(GREEN))
    assert (refused.action, refused.reason_code, refused.stage) == (Action.BLOCK, "consent_missing", "input_image")
    assert gate.check_input_image(np.zeros((16, 16, 3), np.uint8), "case-7").allowed  # flat is fine here: nobody rendered it


@pytest.mark.parametrize("consent", ["", " ", "x" * 201, "a\nb", " padded", 7])
def test_a_consent_reference_is_one_line(consent: Any, gate_of: Any) -> None:
    with pytest.raises(InputError, match="consent"):
        gate_of().check_prompt("a cat", consent=consent)
    assert checked_consent("case 7/2026") == "case 7/2026"


class ForeignError(Exception):
    """What a detector might raise that nobody thought of."""


def scribble(image: NDArray[np.uint8]) -> Observation:
    image[0, 0] = 0
    return saw("nsfw", ("sexual", 0.0))


FAULTS: dict[str, tuple[str, Any]] = {
    "raises ValueError": ("clip", ValueError("shape of 'secret prompt'")),
    "raises its own error": ("clip", ForeignError("secret prompt")),
    "raises MemoryError": ("clip", MemoryError()),
    "raises a platemark error": ("clip", PlatemarkError("x", "y")),
    "raises RenderError": ("clip", RenderError("x", "y")),
    "nsfw raises": ("nsfw", OSError("weights gone")),
    "face raises": ("face", RecursionError()),
    "answers nothing": ("clip", lambda image: None),
    "answers a number": ("clip", lambda image: 0.0),
    "answers a tuple": ("clip", lambda image: ("clip", 0.1)),
    "lacks a category": ("clip", saw("clip", ("alarm", 0.1))),
    "silent": ("nsfw", saw("nsfw")),
    "no faces": ("face", saw("face", faces=None)),
    "faces that are none": ("face", saw("face", faces=("a face",))),
    "a face without score": ("face", saw("face", faces=(Face((0, 0, 1, 1), float("nan")),))),
    "nan": ("clip", saw("clip", ("alarm", float("nan")), ("caution", 0.1))),
    "nan in the other category": ("clip", saw("clip", ("alarm", 0.1), ("caution", float("nan")))),
    "infinite": ("clip", saw("clip", ("alarm", float("inf")), ("caution", 0.1))),
    "minus infinite": ("clip", saw("clip", ("alarm", float("-inf")), ("caution", 0.1))),
    "negative": ("clip", saw("clip", ("alarm", -0.1), ("caution", 0.1))),
    "above one": ("clip", saw("clip", ("alarm", 1.5), ("caution", 0.1))),
    "a string": ("clip", saw("clip", ("alarm", "0.1"), ("caution", 0.1))),
    "none": ("clip", saw("clip", ("alarm", None), ("caution", 0.1))),
    "a bool": ("clip", saw("clip", ("alarm", False), ("caution", 0.1))),
    "an array": ("clip", saw("clip", ("alarm", np.zeros(2)), ("caution", 0.1))),
    "answers for another": ("nsfw", saw("clip", ("sexual", 0.1))),
    "another model": ("nsfw", saw("nsfw", ("sexual", 0.1), sha256="00" * 32)),
    "no duration": ("nsfw", saw("nsfw", ("sexual", 0.1), ms=float("nan"))),
    "writes into the picture": ("nsfw", scribble),
}


@pytest.mark.parametrize(("name", "fault"), FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("stage", ["input_image", "output_image"])
def test_a_failing_picture_detector_never_decides(gate_of: Any, colours: Any, stage: str, name: str, fault: Any) -> None:
    """Replay: missing weights, and a crash for lack of memory, with the checker loaded."""
    gate = gate_of(**{name: fault})
    image = colours.picture(GREEN)
    before = image.copy()
    with pytest.raises(SafetyUnavailable) as caught:
        getattr(gate, f"check_{stage}")(image)
    assert "secret" not in str(caught.value)
    assert caught.value.exit_code == 4
    assert np.array_equal(image, before)


PROMPT_FAULTS = [
    ForeignError("secret"), RecursionError(), UnicodeError("secret"), lambda *_: None, lambda *_: saw("lexicon", ("sexual", float("nan"))),
    lambda *_: saw("other"), lambda *_: saw("lexicon", (7, 0.5)),  # type: ignore[arg-type]
]  # fmt: skip


@pytest.mark.parametrize("fault", PROMPT_FAULTS)
@pytest.mark.parametrize("texts", [("a cat", ""), ("a cat", "a dog")])
def test_a_failing_prompt_detector_never_decides(gate_of: Any, fault: Any, texts: tuple[str, str]) -> None:
    with pytest.raises(SafetyUnavailable) as caught:
        gate_of(prompt=fault).check_prompt(*texts)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_interrupts_are_not_swallowed(gate_of: Any, colours: Any, interrupt: type[BaseException]) -> None:
    with pytest.raises(interrupt):
        gate_of(nsfw=interrupt()).check_output_image(colours.picture(GREEN))


def test_a_detector_that_hangs_is_noticed_and_not_asked_again(colour_policy: Policy, colours: Any) -> None:
    policy = colour_policy.model_copy(update={"timeout_seconds": 0.2})
    wait, calls = threading.Event(), []

    def hang(image: Any) -> Observation:
        calls.append(1)
        wait.wait(30)
        return saw("nsfw", ("sexual", 0.0))

    gate = Gate(policy, prompt_side(), image_side(nsfw=hang))
    with pytest.raises(SafetyUnavailable, match=r"did not answer within 0\.2 seconds"):
        gate.check_output_image(colours.picture(GREEN))
    with pytest.raises(SafetyUnavailable, match="still hangs"):
        gate.check_output_image(colours.picture(GREEN))
    assert len(calls) == 1
    wait.set()
    for thread in threading.enumerate():
        if thread.name == "platemark-nsfw":
            thread.join(10)
    assert gate.check_output_image(colours.picture(GREEN)).allowed  # it came back, and works again


def test_a_policy_sets_a_detectors_own_time(colours: Any) -> None:
    text = colours.POLICY + "[[detectors]]\nname = 'nsfw'\ntimeout_seconds = 0.1\n"
    wait = threading.Event()
    gate = Gate(parse_policy(text.encode(), "p.toml"), prompt_side(), image_side(nsfw=lambda image: wait.wait(20)))
    with pytest.raises(SafetyUnavailable, match=r"'nsfw' did not answer within 0\.1"):
        gate.check_output_image(colours.picture(GREEN))
    wait.set()


def test_a_prompt_that_is_no_text_is_not_decided(gate_of: Any) -> None:
    for prompt, negative in ((None, ""), (b"red", ""), ("green", None), (["green"], "")):
        with pytest.raises(SafetyUnavailable):
            gate_of().check_prompt(prompt, negative)
    with pytest.raises(SafetyUnavailable):
        gate_of().check_prompt("a cat", extra=[None])


def test_wrong_arrays_and_flat_renders(gate_of: Any, colours: Any) -> None:
    """Replay: NaN mistaken for the filter; a black picture is a render error and never "unsafe"."""
    gate, array = gate_of(), None
    for array in (colours.picture(GREEN).astype(np.float32) / 255, colours.picture(GREEN)[..., 0], np.zeros((0, 0, 3), np.uint8), None):
        for check in (gate.check_output_image, gate.check_input_image):
            with pytest.raises(SafetyUnavailable):
                check(array)
    for flat in (np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)):
        with pytest.raises(RenderError):
            gate.check_output_image(flat)
    nearly = np.full((16, 16, 3), 77, np.uint8)
    nearly[3:9, 4] += 2
    with pytest.raises(RenderError, match="flat"):
        gate.check_output_image(nearly)
    nearly[5, 5, 1] += 3
    assert gate.check_output_image(nearly).stage == "output_image"


@pytest.mark.parametrize("missing", ["lexicon", "nsfw", "face"])
def test_without_what_the_locked_rules_stand_on_there_is_no_gate(colour_policy: Policy, missing: str) -> None:
    """Replay: missing weights turn everything black without a message."""
    detectors = [[d for d in side if d.name != missing] for side in (prompt_side(), image_side())]
    with pytest.raises(SafetyUnavailable, match=f"needs the detector '{missing}'") as caught:
        Gate(colour_policy, *detectors)
    assert caught.value.remedy


def test_a_policys_detectors_must_be_there_and_be_the_right_model(colours: Any) -> None:
    def gate(text: str) -> Gate:
        return Gate(parse_policy((colours.POLICY + text).encode(), "p.toml"), prompt_side(), image_side())

    with pytest.raises(SafetyUnavailable, match="needs the detector 'opennsfw'"):
        gate("[[detectors]]\nname = 'opennsfw'\n")
    gate("[[detectors]]\nname = 'opennsfw'\nrequired = false\n")
    with pytest.raises(SafetyUnavailable, match="the model of the detector 'nsfw' is not the one"):
        gate(f"[[detectors]]\nname = 'nsfw'\nsha256 = '{'ef' * 32}'\n")
    assert gate(f"[[detectors]]\nname = 'nsfw'\nsha256 = '{HASH}'\n").detectors["nsfw"] == HASH
    with pytest.raises(SafetyUnavailable, match="two detectors"):
        Gate(parse_policy(colours.POLICY.encode(), "p.toml"), prompt_side(), [*image_side(), *image_side()])


def test_a_gate_for_texts_refuses_pictures(colour_policy: Policy, colours: Any) -> None:
    gate = Gate(colour_policy, prompt_side(), None)
    assert gate.check_prompt("a cat").allowed
    for check in (gate.check_output_image, gate.check_input_image):
        with pytest.raises(SafetyUnavailable, match="texts alone"):
            check(colours.picture(GREEN))


def test_replay_the_interface_says_off_and_the_backend_says_on(colour_policy: Policy, colours: Any) -> None:
    """What is not checked is in the decision itself, where every reader sees the same."""
    gate = Gate(colour_policy, prompt_side(), [d for d in image_side() if d.name != "clip"], ["alarm", "caution"])
    decision = gate.check_output_image(colours.picture(GREEN))
    assert decision.unchecked == ("alarm", "caution")
    assert decision.as_dict()["unchecked"] == ["alarm", "caution"]


def test_many_threads_may_use_one_gate(gate_of: Any, colours: Any) -> None:
    gate, found = gate_of(), []

    def work() -> None:
        found.extend(gate.check_output_image(colours.picture(GREEN)).action for _ in range(10))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [Action.ALLOW] * 60


def test_apply_action(colours: Any) -> None:
    image: NDArray[np.uint8] = colours.picture(GREEN, 64, 96)
    image[16:48, 32:64] = RED

    def outcome(action: Action) -> NDArray[np.uint8] | None:
        return apply_action(image, Decision(stage="output_image", action=action, policy_id="x", policy_sha256="0"))

    assert outcome(Action.ALLOW) is image
    assert outcome(Action.FLAG) is image
    assert outcome(Action.BLOCK) is None
    assert outcome(Action.REGENERATE) is None
    blurred = outcome(Action.BLUR)
    assert blurred is not None
    assert blurred.shape == image.shape
    assert blurred.dtype == np.uint8
    steps = np.abs(np.diff(blurred.astype(int), axis=1)).max(), np.abs(np.diff(image.astype(int), axis=1)).max()
    assert steps[0] < 25 < 200 < steps[1]
