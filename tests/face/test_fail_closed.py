"""Fault injection: every detector, every stage, every kind of fault, over every road. Nothing unfiltered leaves, and the log says why.

The HTTP server has no road that generates yet; what it will answer is held in tests/safety/test_answers.py.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import platemark.press
from platemark.cli import main
from platemark.errors import PlatemarkError, PolicyError, SafetyUnavailable
from platemark.models import embedded
from platemark.press import Press
from platemark.runtime.bundle import open_bundle
from platemark.runtime.request import GenerationRequest
from platemark.safety import assemble
from platemark.safety.detectors import face, nsfw
from platemark.safety.policy import load_policy
from platemark.safety.signals import Observation, Signal

SEEDS = {"seed": 5, "n": 3}
SLOW = '[[detectors]]\nname = "{}"\ntimeout_seconds = 0.15\n'


class ForeignError(Exception):
    """What a detector might raise that nobody thought of."""


def scored(name: str, score: Any, sha256: str = "cd" * 32) -> Observation:
    return Observation(name, sha256, (Signal("sexual", "test", score),), 1.0, () if name == "face" else None)


FAULTS: dict[str, Callable[[str], Any]] = {
    "crashes": lambda name: ForeignError("a secret prompt"),
    "runs out of memory": lambda name: MemoryError(),
    "recurses": lambda name: RecursionError(),
    "raises a Platemark error": lambda name: PlatemarkError("a", "b"),
    "says NaN": lambda name: scored(name, float("nan")),
    "says infinity": lambda name: scored(name, float("inf")),
    "says more than one": lambda name: scored(name, 1.01),
    "says an array": lambda name: scored(name, np.zeros(3)),
    "says another dtype": lambda name: scored(name, np.float16(0.5)),
    "says nothing": lambda name: lambda *question: None,
    "runs another model": lambda name: scored(name, 0.1, "ee" * 32),
    "answers for another": lambda name: scored("stranger", 0.1),
    "hangs": lambda name: lambda *question: threading.Event().wait(3.0),
}
DETECTORS = ("lexicon", "nsfw", "face", "opennsfw")  # the last as one that a policy adds


@pytest.fixture
def press(studio: Any, tmp_path: Path) -> Callable[..., Press]:
    return lambda policy="", **more: studio.press(tmp_path / "home", policy, **more)


@pytest.fixture
def nothing_leaves(studio: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails where anything was stamped or recorded."""
    stamped: list[Any] = []
    monkeypatch.setattr(platemark.press.Stamp, "apply", lambda *a, **k: stamped.append(a))
    before = studio.stamp.registry.count()
    yield
    assert stamped == []
    assert studio.stamp.registry.count() == before


def by_api(press: Press, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlatemarkError:
    with pytest.raises(PlatemarkError) as caught:
        press.generate("a cat", **SEEDS)
    return caught.value


def by_iterator(press: Press, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlatemarkError:
    """`run` alone: a request that was admitted before the fault, picture by picture."""
    request = GenerationRequest.make(press.pipeline.bundle.manifest, prompt="a cat", **SEEDS)
    with pytest.raises(PlatemarkError) as caught:
        next(press.run(request))
    return caught.value


def by_command_line(press: Press, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlatemarkError:
    """`platemark generate` with two prompts and two pictures each, into a folder: a batch."""
    monkeypatch.setattr(platemark.press, "load", lambda *a, **k: press)
    out = tmp_path / "out"
    done = CliRunner().invoke(main, ["generate", "a cat", "a dog", "-n", "2", "--seed", "5", "-o", f"{out}/", "--json"])
    said = json.loads(done.stdout)
    assert set(said) == {"error"}
    assert not out.exists() or list(out.iterdir()) == []
    error = PlatemarkError(said["error"]["message"], said["error"]["remedy"])
    error.code, error.exit_code = said["error"]["code"], done.exit_code  # type: ignore[misc]
    return error


ROADS = {"api": by_api, "iterator": by_iterator, "command line": by_command_line}


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.usefixtures("nothing_leaves")
def test_no_fault_of_a_detector_lets_a_picture_out(
    press: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, road: str, detector: str, fault: str
) -> None:
    made: Press = press(SLOW.format(detector) if fault == "hangs" else "", **{detector: FAULTS[fault](detector)})
    error = ROADS[road](made, tmp_path, monkeypatch)
    assert (error.code, error.exit_code) == ("safety_unavailable", 4)
    assert "secret" not in str(error)
    (record,) = made.log.search(lambda r: r["kind"] == "failure")
    assert (record["reason_code"], record["action"]) == ("safety_unavailable", "block")
    assert record["stage"] == ("prompt" if detector == "lexicon" else "output_image")
    assert made.log.verify().intact


def test_without_a_fault_everything_comes_out(press: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the tests above: the same roads, no fault."""
    made: Press = press()
    assert [result.status for result in made.generate("a cat", **SEEDS)] == ["released"] * 3
    monkeypatch.setattr(platemark.press, "load", lambda *a, **k: made)
    done = CliRunner().invoke(main, ["generate", "a cat", "a dog", "-n", "2", "--seed", "5", "-o", f"{tmp_path / 'out'}/", "--json"])
    said = json.loads(done.stdout)
    assert (done.exit_code, said["status"]) == (0, ["released"] * 4)
    assert len(list((tmp_path / "out").iterdir())) == 4


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, np.int16, np.bool_])
@pytest.mark.usefixtures("nothing_leaves")
def test_a_picture_of_another_dtype_is_not_looked_at(press: Any, studio: Any, kind: Any) -> None:
    with pytest.raises(SafetyUnavailable):
        press(draw=lambda seed: studio.drawn(seed).astype(kind)).generate("a cat", **SEEDS)


@pytest.mark.usefixtures("nothing_leaves")
def test_a_fault_at_the_second_picture_ends_the_request_there(press: Any, studio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def second(image: Any) -> Observation:
        if studio.seed_in(image) == 6:
            raise ForeignError
        return scored("nsfw", 0.01)

    released: list[int] = []
    real = Press._release
    monkeypatch.setattr(Press, "_release", lambda self, proof, *rest: (released.append(proof.index), real(self, proof, *rest))[1])
    monkeypatch.setattr(platemark.press, "apply_action", lambda picture, decision: None)
    with pytest.raises(SafetyUnavailable):
        press(nsfw=second).generate("a cat", **SEEDS)
    assert released in ([], [0])  # the first may be on its way; neither the second nor the third ever is


@pytest.mark.parametrize("stage", ["prompt", "output"])
@pytest.mark.usefixtures("nothing_leaves")
def test_a_decision_that_cannot_be_logged_lets_nothing_out(press: Any, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    made: Press = press()
    real = made.log.write

    def full(record: dict[str, Any]) -> None:
        if record["stage"].startswith(stage):
            raise SafetyUnavailable("the audit log cannot be written: No space left on device", "make room")
        real(record)

    monkeypatch.setattr(made.log, "write", full)
    with pytest.raises(SafetyUnavailable, match="No space left"):
        made.generate("a cat", **SEEDS)


@pytest.mark.parametrize("road", ["api", "command line"])
@pytest.mark.parametrize(
    "line", ["unknown = 1", "[categories.sexual]\nunknown = 1", "[[detectors]]\nname = 'nsfw'\nunknown = 1", "[regenerate]\nmin = 1"]
)
def test_an_unknown_policy_key_lets_nothing_out(tmp_path: Path, road: str, line: str) -> None:
    file = tmp_path / "policy.toml"
    file.write_text('extends = "standard"\nversion = 2\nid = "mine"\n' + line)
    if road == "api":
        with pytest.raises(PolicyError, match="unknown key"):
            platemark.press.load(policy=file, home=tmp_path / "home")
    else:
        done = CliRunner().invoke(main, ["generate", "a cat", "--policy", str(file), "-o", str(tmp_path / "cat.png"), "--json"])
        assert (done.exit_code, json.loads(done.stdout)["error"]["code"]) == (2, "bad_policy")
    assert {path.name for path in tmp_path.iterdir()} <= {"policy.toml"}


@pytest.mark.parametrize("module", [nsfw, face], ids=["nsfw", "face"])
@pytest.mark.parametrize("damage", ["missing", "mismatching hash", "truncated"])
def test_built_in_weights_must_be_there_and_be_the_right_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, studio: Any, module: Any, damage: str
) -> None:
    """The whole road to this is tried by test_replays: here is every kind of damage to every built-in file."""
    (folder := tmp_path / "models").mkdir()
    models = next(path for path in module.files("platemark.safety").iterdir() if path.name == "models")
    for path in models.glob("*.onnx") if damage != "missing" else ():
        data = path.read_bytes()
        (folder / path.name).write_bytes(data[:-100] if damage == "truncated" else data[:-1] + bytes([data[-1] ^ 1]))
    monkeypatch.setattr(module, "files", lambda package: tmp_path)
    monkeypatch.setattr(assemble, "_clip", lambda *rest: None)
    with pytest.raises(SafetyUnavailable, match=r"missing|not the ones"):
        platemark.press.gate_for(studio.bundle, load_policy("standard"), tmp_path / "home")


def test_an_image_filter_that_is_not_the_exported_one_lets_nothing_out(tmp_path: Path) -> None:
    """Replay: unloaded weights that score happily. A filter edited together with its manifest still has to give its golden embedding."""
    bundle, name = tmp_path / "bundle", "clip/golden.json"
    shutil.copytree(embedded(), bundle)
    golden = json.loads((bundle / name).read_text())
    golden["image"]["embedding"].reverse()
    (bundle / name).write_text(json.dumps(golden))
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["files"][name] = hashlib.sha256((bundle / name).read_bytes()).hexdigest()
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(SafetyUnavailable, match="golden embedding"):
        platemark.press.gate_for(open_bundle(bundle), load_policy("standard"), tmp_path / "home")
