"""Reports that users of other image tools filed about their safety checkers, each tried here. The name of a test is the report's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import platemark.press
from platemark.cli import main
from platemark.errors import InputError, PolicyBlocked, PolicyError, RenderError, SafetyUnavailable
from platemark.press import Press
from platemark.safety.decision import Action
from platemark.safety.policy import load_policy, parse_policy
from platemark.safety.signals import Observation

SECOND = '[[detectors]]\nname = "opennsfw"\n'


@pytest.fixture
def press(studio: Any, tmp_path: Path) -> Any:
    return lambda policy="", **more: studio.press(tmp_path / "home", policy, **more)


@pytest.fixture
def sees(studio: Any) -> Any:
    """A detector for sexual pictures that finds the pictures of these seeds (modulo 2^24)."""

    def make(*seeds: int, name: str = "nsfw") -> Any:
        def look(image: Any) -> Observation:
            found: Observation = studio.saw(name, ("sexual", 0.95 if studio.seed_in(image) in seeds else 0.01))
            return found

        return look

    return make


def generate(press: Press, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, dict[str, Any]]:
    """`platemark generate … --json`: exit code and what it said."""
    monkeypatch.setattr(platemark.press, "load", lambda *a, **k: press)
    done = CliRunner().invoke(main, ["generate", *arguments, "--json"])
    return done.exit_code, json.loads(done.stdout)


def test_flag_without_blackout_wanted(press: Any, sees: Any, studio: Any) -> None:
    """diffusers#845: the picture itself is wanted, and to know that it was flagged."""
    lax = studio.policy.replace('threshold = 0.7, action = "block"', 'threshold = 0.7, action = "flag"')
    made: Press = press(nsfw=sees(5))
    made.gate.policy = parse_policy(lax.encode(), "lax.toml")
    (result,) = made.generate("a cat", seed=5)
    assert result.status == "released"
    assert result.decision is not None
    assert (result.decision.action, result.decision.category, result.decision.scores["sexual"]) == (Action.FLAG, "sexual", 0.95)
    assert np.ptp(np.asarray(result.image)) > 100
    assert result.provenance is not None
    assert result.provenance.facts.decision["action"] == "flag"


def test_know_programmatically_which_image_and_why(press: Any, sees: Any) -> None:
    """diffusers#4906."""
    results = press(nsfw=sees(6)).generate("a cat", seed=5, n=3)
    (index,) = [k for k, result in enumerate(results) if result.status == "withheld"]
    decision = results[index].decision
    assert (index, results[index].seed) == (1, 6)
    assert (decision.category, decision.rule, decision.reason_code) == ("sexual", "categories.sexual.output_image", "test")
    assert [(r.detector, r.score, r.threshold, r.severity) for r in decision.reasons] == [("nsfw", 0.95, 0.7, "high")]


def test_strength_adjustable(press: Any, studio: Any) -> None:
    """diffusers#5623: one threshold in a file of a few lines."""
    own = b'extends = "standard"\nversion = 2\nid = "mine"\n[categories.sexual.output_image]\nthreshold = 0.97\n'
    made: Press = press(nsfw=studio.saw("nsfw", ("sexual", 0.95)))
    assert made.generate("a cat", seed=5)[0].status == "withheld"
    made.gate.policy = parse_policy(own, "mine.toml")
    assert made.generate("a cat", seed=5)[0].status == "released"


def test_benign_oil_painting_blocked_second_opinion(press: Any, sees: Any, studio: Any) -> None:
    """replicate/cog-stable-diffusion#84: with `combine = "all"`, one detector that is wrong withholds nothing."""
    both = studio.policy.replace("{threshold = 0.7, ", '{threshold = 0.7, combine = "all", ')
    answers = {"nsfw": sees(5, 6), "opennsfw": sees(6, name="opennsfw")}
    made: Press = press(SECOND, **answers)
    assert [r.status for r in made.generate("a cat", seed=5, n=2)] == ["withheld", "withheld"]
    made.gate.policy = parse_policy((both + SECOND).encode(), "both.toml")
    results = made.generate("a man in water, oil painting", seed=5, n=2)
    assert [r.status for r in results] == ["released", "withheld"]
    assert results[0].decision is not None
    assert {e.detector: e.score for e in results[0].decision.entries if e.category == "sexual"} == {"nsfw": 0.95, "opennsfw": 0.01}


def test_batch_with_one_flagged_image(press: Any, sees: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One flagged picture of four leaves three, each with its own seed and file."""
    code, said = generate(press(nsfw=sees(7)), monkeypatch, "a cat", "-n", "4", "--seed", "5", "-o", f"{tmp_path / 'out'}/")
    assert code == 0
    assert said["status"] == ["released", "released", "withheld", "released"]
    assert [file is None for file in said["files"]] == [False, False, True, False]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0000-5.png", "0001-6.png", "0003-8.png"]


def test_all_filtered_gives_an_empty_list(press: Any, sees: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """replicate/cog-stable-diffusion#65: every picture stays in the list with its reason, and the exit code says that none came out."""
    made: Press = press(nsfw=sees(5, 6))
    results = made.generate("a cat", seed=5, n=2)
    assert [(r.status, r.image, r.decision is not None) for r in results] == [("withheld", None, True)] * 2
    code, said = generate(made, monkeypatch, "a cat", "-n", "2", "--seed", "5", "-o", f"{tmp_path / 'out'}/")
    assert (code, said["files"], said["status"]) == (PolicyBlocked.exit_code, [None, None], ["withheld", "withheld"])
    assert [decision["category"] for decision in said["decisions"]] == ["sexual", "sexual"]
    assert not (tmp_path / "out").exists()


def test_black_output_with_status_succeeded(press: Any, studio: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """dkackman/diffusers-workflow#133: a black picture is an error of the render, in status, exit code and log."""
    made: Press = press(draw=lambda seed: np.zeros((128, 128, 3), np.uint8))
    code, said = generate(made, monkeypatch, "a cat", "--seed", "5", "-o", str(tmp_path / "cat.png"))
    assert (code, said["status"], said["files"], said["decisions"]) == (RenderError.exit_code, ["render_error"], [None], [None])
    assert said["errors"][0]["code"] == "render_error"
    assert not (tmp_path / "cat.png").exists()
    half: Press = press(draw=lambda seed: studio.drawn(seed) * (seed != 5))
    code, said = generate(half, monkeypatch, "a cat", "-n", "2", "--seed", "5", "-o", f"{tmp_path / 'out'}/")
    assert (code, said["status"]) == (0, ["render_error", "released"])
    done = CliRunner().invoke(main, ["generate", "a cat", "--seed", "5", "-o", str(tmp_path / "cat.png")])
    assert done.exit_code == RenderError.exit_code
    assert "render_error  seed 5  the picture is one flat colour" in done.stdout


def test_nan_mistaken_for_filter(press: Any, studio: Any) -> None:
    """vladmandic/sdnext#2242: no decision is made on what is no picture, and no detector is asked."""
    looked: list[int] = []

    def nsfw(image: Any) -> Observation:
        looked.append(1)
        found: Observation = studio.saw("nsfw", ("sexual", 0.95))
        return found

    made: Press = press(draw=lambda seed: np.zeros((128, 128, 3), np.uint8), nsfw=nsfw)
    (result,) = made.generate("a cat", seed=5)
    assert (result.status, result.decision, looked) == ("render_error", None, [])
    assert [r["reason_code"] for r in made.log.search(lambda r: r["stage"] == "output_image")] == ["render_error"]


def test_oom_with_the_checker_loaded(press: Any) -> None:
    """InvokeAI#1448: a checker that runs out of memory refuses the request, says so, and works again when there is memory."""
    memory = {"left": False}

    def nsfw(image: Any) -> Observation:
        if not memory["left"]:
            raise MemoryError
        return Observation("nsfw", "cd" * 32, (), 1.0)

    made: Press = press(nsfw=nsfw)
    with pytest.raises(SafetyUnavailable, match="'nsfw' failed: MemoryError"):
        made.generate("a cat", seed=5)
    memory["left"] = True
    with pytest.raises(SafetyUnavailable, match="gave no score for sexual"):  # silence is not taken for a clean picture
        made.generate("a cat", seed=5)


def test_checker_bypassed_by_api(press: Any, sees: Any) -> None:
    """A1111-nsfw-censor#1: there is no argument that leaves the check out, and no way to a picture but through it."""
    made: Press = press(nsfw=sees(5))
    for name in ("safety_checker", "enable_safety_checker", "safety", "check", "policy", "moderation"):
        with pytest.raises(InputError, match=f"unknown setting '{name}'"):
            made.generate("a cat", seed=5, **{name: None})
    assert made.generate("a cat", seed=5)[0].data is None
    with pytest.raises(PolicyBlocked):
        made.generate("sexual", seed=5)
    with pytest.raises(PolicyBlocked):  # a request that nobody admitted is decided on where it runs
        list(made.run(replace(made.admit("a cat", seed=5), prompt="sexual")))


def test_removed_option_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """stable-diffusion-webui#11795: a key of an earlier version is named in one line, with what to do."""
    file = tmp_path / "old.toml"
    file.write_text('extends = "standard"\nversion = 2\nid = "old"\nimage_checks = true\n')
    done = CliRunner().invoke(main, ["safety", "explain", "a cat", "--policy", str(file)])
    assert done.exit_code == PolicyError.exit_code
    assert "unknown key 'image_checks'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_ui_says_off_backend_says_on(press: Any) -> None:
    """biniou#45: the policy in force, its hash and every detector are in each answer, as the gate itself has them."""
    made: Press = press()
    (result,) = made.generate("a cat", seed=5)
    decision = result.as_dict()["decision"]
    assert (decision["policy_id"], decision["policy_sha256"]) == ("studio", made.gate.policy.sha256)
    assert {entry["detector"] for entry in decision["entries"]} == {"nsfw"}
    assert (decision["faces"], decision["unchecked"]) == (0, [])
    assert {r["policy_sha256"] for r in made.log.search()} == {made.gate.policy.sha256}


def test_missing_weights_turn_everything_black_without_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI-ReActor#57: the file is named, nothing is written, and the exit code is that of an unavailable check."""
    from platemark.safety.detectors import nsfw

    monkeypatch.setattr(nsfw, "files", lambda package: tmp_path)
    done = CliRunner().invoke(main, ["generate", "a cat", "-o", str(tmp_path / "cat.png")])
    assert (done.exit_code, done.stdout) == (SafetyUnavailable.exit_code, "")
    assert ".onnx are missing" in done.stderr
    assert not (tmp_path / "cat.png").exists()


def test_regenerate_if_filtered(press: Any, sees: Any, studio: Any) -> None:
    """video-killed-the-radio-star#104: rendered anew with another seed, at most as often as the policy says; the seed that came is told."""
    again = studio.policy.replace('threshold = 0.7, action = "block"', 'threshold = 0.7, action = "regenerate"')
    step = 0x9E3779B9
    made: Press = press(nsfw=sees(5, (5 + step) % 2**24))
    made.gate.policy = parse_policy(again.encode(), "again.toml")
    results = made.generate("a cat", seed=5, n=2)
    assert [(r.status, r.seed) for r in results] == [("released", 5 + 2 * step), ("released", 6)]
    never: Press = press(nsfw=studio.saw("nsfw", ("sexual", 0.95)))
    never.gate.policy = parse_policy(again.encode(), "again.toml")
    (withheld,) = never.generate("a cat", seed=5)
    assert (withheld.status, withheld.decision.action) == ("withheld", Action.REGENERATE)
    assert never.pipeline.rendered == [5, 5 + step, 5 + 2 * step]  # type: ignore[attr-defined]


def test_reason_other_message_none(press: Any, sees: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """googleapis/python-genai#592: every refusal has a category, a rule and a code that mean something, and a sentence."""
    made: Press = press(nsfw=sees(5))
    with pytest.raises(PolicyBlocked) as caught:
        made.generate("violence", seed=5)
    said, decision = caught.value.as_dict(), caught.value.decision
    assert "violence" in said["message"]
    assert said["remedy"]
    assert (decision.stage, decision.category, decision.rule) == ("prompt", "violence", "categories.violence.prompt")
    withheld = made.generate("a cat", seed=5)[0].decision
    assert withheld is not None
    for value in (withheld.category, withheld.rule, withheld.reason_code, withheld.severity.value):
        assert value
        assert value.lower() not in {"other", "none", "unknown"}
    for name in ("strict", "standard", "research"):
        assert load_policy(name).rules  # every rule has an id by which the answer names it
