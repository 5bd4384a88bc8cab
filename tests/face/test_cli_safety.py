"""`platemark safety` and `platemark check`: what would be decided and why, and the log of what was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from platemark import explain
from platemark.cli import main
from platemark.press import Press
from platemark.safety.audit_chain import segment_path


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def said(*arguments: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in call(*arguments, "--json").stdout.splitlines()]


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    path = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def stub_gate(studio: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The commands ask this gate; call it with detectors' answers."""

    def use(**answers: Any) -> None:
        monkeypatch.setattr(explain, "_gate", lambda rules, bundle, pictures: studio.gate(**answers))

    use()
    return use


def test_explain_shows_every_score_threshold_rule_and_the_outcome(stub_gate: Any) -> None:
    (answer,) = said("safety", "explain", "sexual and violence", "--policy", "strict")
    assert answer["subject"] == "prompt"
    assert answer["policy"]["id"] == "strict"
    assert answer["detectors"]["lexicon"]
    assert {(e["detector"], e["category"], e["score"], e["threshold"]) for e in answer["entries"]} == {
        ("lexicon", "sexual", 1.0, 0.5), ("lexicon", "violence", 1.0, 0.5)}  # fmt: skip
    locked = {rule["id"]: rule for rule in answer["rules"] if rule["id"].startswith("locked_")}
    assert len(locked) == 5
    assert all(rule["locked"] and rule["action"] == "block" and not rule["held"] for rule in locked.values())
    assert (answer["action"], answer["rule"], answer["severity"]) == ("block", "categories.sexual.prompt", "high")
    assert answer["answer"]["error"]["code"] == "moderation_blocked"
    assert "sexual and violence" not in json.dumps(answer)


def test_explain_as_text(stub_gate: Any) -> None:
    done = call("safety", "explain", "a minor_term, sexual")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert any(line.split()[:4] == ["sexual", "lexicon", "1.000", "0.50"] for line in lines)
    assert any(line.split()[:4] == ["rule", "locked_minor_with_sexual", "locked", "holds"] for line in lines)
    assert any(line.split()[:4] == ["rule", "locked_undress_a_picture", "locked", "-"] for line in lines)
    assert lines[-1].startswith("outcome   block, by ")


def test_explain_a_prompt_that_goes_with_a_picture(stub_gate: Any) -> None:
    assert said("safety", "explain", "undress_intent")[0]["action"] == "allow"
    answer = said("safety", "explain", "undress_intent", "--input-image")[0]
    assert (answer["action"], answer["rule"]) == ("block", "locked_undress_a_picture")


def test_explain_a_picture(stub_gate: Any, studio: Any, noise: Path) -> None:
    stub_gate(nsfw=studio.saw("nsfw", ("sexual", 0.6)), face=studio.saw("face", faces=1))
    answer = said("safety", "explain", noise)[0]
    assert (answer["subject"], answer["stage"], answer["faces"]) == (str(noise), "output_image", 1)
    assert (answer["action"], answer["rule"]) == ("block", "locked_sexual_with_face")
    brought = said("safety", "explain", noise, "--input-image", "--consent", "case-7")[0]
    assert (brought["stage"], brought["consent"]) == ("input_image", "case-7")


def test_explain_a_picture_with_the_gate_itself(noise: Path) -> None:
    """Nothing stubbed: the embedded bundle, every built-in detector, two presets."""
    answer = said("safety", "explain", noise)[0]
    assert {"nsfw", "face", "clip", "lexicon"} <= set(answer["detectors"])
    assert all(len(sha256) == 64 for sha256 in answer["detectors"].values())
    scores = {(e["detector"], e["category"]) for e in answer["entries"]}
    assert {("nsfw", "sexual"), ("clip", "weapon")} <= scores
    assert answer["action"] == "allow", answer["reasons"]
    text = call("safety", "explain", noise, "--policy", "strict").stdout
    assert "weapon" in text
    assert "drugs" in text


def test_check_decides_on_prompts_and_input_pictures_as_one_request(stub_gate: Any, studio: Any, noise: Path) -> None:
    stub_gate(face=studio.saw("face", faces=1))
    refused = call("check", "--prompt", "a cat", "--input-image", noise, "--json")
    decisions = [json.loads(line) for line in refused.stdout.splitlines()]
    assert refused.exit_code == 3
    assert [(d["stage"], d["action"], d["reason_code"]) for d in decisions] == [
        ("prompt", "allow", None), ("input_image", "block", "consent_missing")]  # fmt: skip
    assert call("check", "--input-image", noise, "--consent", "case-7").exit_code == 0
    undress = call("check", "--prompt", "undress_intent", "--input-image", noise, "--consent", "case-7")
    assert (undress.exit_code, "locked_undress_a_picture" in undress.stdout) == (3, True)
    assert call("check", "--input-image", noise, "--consent", " ").exit_code == 2


def test_check_and_explain_refuse_what_they_cannot_answer(noise: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(noise.read_bytes()[:60])
    for arguments in (
        ("check",), ("check", "--image", tmp_path / "none.png"), ("check", "--image", tmp_path / "bad.png"),
        ("safety", "explain", ""), ("safety", "explain", tmp_path / "bad.png"), ("safety", "explain", "cat", "--policy", "nothing"),
        ("safety", "explain", "cat", "--consent", " x"),
    ):  # fmt: skip
        done = call(*arguments)
        assert (done.exit_code, done.stdout) == (2, ""), arguments
        assert len(done.stderr.strip().splitlines()) == 1


@pytest.fixture
def logged(studio: Any, state_home: Path) -> Press:
    """Two requests in the log of the state folder: one with a withheld picture, one blocked at its prompt."""
    made: Press = studio.press(state_home, nsfw=lambda image: studio.saw("nsfw", ("sexual", 0.95 if studio.seed_in(image) == 6 else 0.01)))
    made.generate("a cat", seed=5, n=2)
    with pytest.raises(Exception, match="blocks this prompt"):
        made.generate("violence", seed=9)
    return made


def test_audit_search(logged: Press, studio: Any, tmp_path: Path) -> None:
    every = said("safety", "audit", "search")
    assert [(r["stage"], r["action"]) for r in every] == [
        ("prompt", "allow"), ("output_image", "allow"), ("output_image", "block"), ("prompt", "block")]  # fmt: skip
    assert [r["seed"] for r in said("safety", "audit", "search", "--category", "sexual")] == ["6"]
    assert len(said("safety", "audit", "search", "--request", every[0]["request_id"])) == 3
    assert [r["seq"] for r in said("safety", "audit", "search", "--action", "block", "--limit", "1")] == [4]
    assert [r["seq"] for r in said("safety", "audit", "search", "--stage", "output_image")] == [2, 3]
    assert said("safety", "audit", "search", "--since", "2100-01-01") == []
    assert len(said("safety", "audit", "search", "--until", "2100-01-01", "--since", "2000-01-01")) == 4
    Image.fromarray(studio.drawn(6)).save(tmp_path / "copy.jpg", quality=80)
    assert [r["seed"] for r in said("safety", "audit", "search", "--image", tmp_path / "copy.jpg")] == ["6"]
    assert "categories.sexual.output_image" in call("safety", "audit", "search", "--category", "sexual").stdout
    assert call("safety", "audit", "search", "--since", "yesterday").exit_code == 2


def test_audit_verify_locates_an_edit_and_a_cut(logged: Press) -> None:
    good = call("safety", "audit", "verify")
    assert (good.exit_code, good.stdout.startswith("intact: 4 records")) == (0, True)
    file = segment_path(logged.log.folder, 1)
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b'"action":"block"', b'"action":"allow"', 1))
    done = call("safety", "audit", "verify")
    assert done.exit_code == 1
    assert "audit-000001.jsonl, line 4" in done.stdout  # the record after the edited one does not follow it
    file.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    (report,) = said("safety", "audit", "verify")
    assert (report["intact"], report["problem"]["line"]) == (False, 4)
    assert "cut short" in report["problem"]["what"]


def test_an_empty_state_has_an_intact_log(state_home: Path) -> None:
    assert call("safety", "audit", "verify").exit_code == 0
    assert said("safety", "audit", "search") == []
    assert list(state_home.iterdir()) == []
