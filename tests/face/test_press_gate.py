"""What the gate decides, as the press carries it out: texts, styles, blur, faces, consent, and what log and record keep of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import platemark.press
from platemark.cli import main
from platemark.errors import InputError, PolicyBlocked
from platemark.logged_gate import LoggedGate
from platemark.press import Press
from platemark.safety.assemble import gate_for_texts
from platemark.safety.audit_record import Subject
from platemark.safety.decision import Action
from platemark.safety.policy import load_policy, parse_policy


@pytest.fixture
def press(studio: Any, tmp_path: Path) -> Callable[..., Press]:
    return lambda policy="", **more: studio.press(tmp_path / "home", policy, **more)


def under(made: Press, text: str) -> Press:
    made.gate.policy = parse_policy(text.encode(), "other.toml")
    return made


@pytest.mark.parametrize("where", ["prefix", "suffix"])
def test_the_words_of_a_style_are_checked(press: Any, tmp_path: Path, where: str) -> None:
    style = tmp_path / "bad.toml"
    style.write_text(f'{where} = " violence "\n')
    with pytest.raises(PolicyBlocked, match="violence"):
        press().generate("a cat", seed=5, style=style)
    style.write_text(f'{where} = " undress_intent "\n')
    assert press().generate("a cat", seed=5, style=style)[0].status == "released"


def test_prompt_and_style_are_checked_together(press: Any, tmp_path: Path) -> None:
    style = tmp_path / "half.toml"
    style.write_text('suffix = ", sexual"\n')
    lax = press("[[rules]]\nid = 'x'\nall = [{signal = 'violence'}]\naction = 'flag'\n")
    with pytest.raises(PolicyBlocked) as caught:
        lax.generate("a minor_term", seed=5, style=style)
    assert caught.value.decision.rule == "locked_minor_with_sexual"


def test_negative_prompts_are_checked(press: Any, studio: Any) -> None:
    """What a negative prompt names stays out of the picture; where its absence asks for a thing, it counts in full."""
    made: Press = press()
    named = made.generate("a cat", seed=5, negative_prompt="violence")[0]
    assert named.status == "released"
    (record,) = made.log.search(lambda r: r["stage"] == "negative_prompt")
    assert [(r["rule"], r["action"]) for r in record["reasons"]] == [("categories.violence.negative_prompt", "flag")]

    def lexicon(text: str, kind: str) -> Any:
        from platemark.safety.signals import Observation, Signal

        found = (Signal("sexual", "negative_intent", 1.0, "clothes"),) if kind == "negative_prompt" else ()
        return Observation("lexicon", studio.hash, found, 1.0)

    with pytest.raises(PolicyBlocked) as caught:
        press(lexicon=lexicon).generate("a woman", seed=5, negative_prompt="clothes")
    assert (caught.value.decision.stage, caught.value.decision.reason_code) == ("negative_prompt", "negative_intent")


def test_a_blurred_picture_is_marked_and_says_so(press: Any, studio: Any) -> None:
    blur = studio.policy.replace('threshold = 0.7, action = "block"', 'threshold = 0.7, action = "blur"')
    made = under(press(nsfw=studio.saw("nsfw", ("sexual", 0.95))), blur)
    (result,) = made.generate("a cat", seed=5)
    assert result.status == "released"
    assert result.provenance is not None
    assert result.provenance.facts.decision["action"] == "blur"
    sharp, soft = (np.abs(np.diff(np.asarray(p, int), axis=1)).mean() for p in (studio.drawn(5), result.image))
    assert soft < sharp / 5


def test_faces_outcome_and_consent_reach_record_and_log(press: Any, studio: Any) -> None:
    made: Press = press(face=studio.saw("face", faces=2))
    (result,) = made.generate("a portrait", seed=5, consent="case 7/2026")
    assert result.provenance is not None
    facts = result.provenance.facts
    assert (facts.face_count, facts.consent_ref) == (2, "case 7/2026")
    assert (facts.decision["action"], facts.decision["faces"], facts.decision["policy_id"]) == ("allow", 2, "studio")
    assert facts.decision["policy_sha256"] == made.gate.policy.sha256
    asked, looked = made.log.search()
    assert (asked["consent"], asked["faces"]) == ("case 7/2026", None)
    assert (looked["consent"], looked["faces"], looked["content_id"]) == ("case 7/2026", 2, str(result.provenance.content_id))
    with pytest.raises(InputError, match="consent"):
        made.generate("a portrait", seed=5, consent="two\nlines")


def test_a_face_with_a_sexual_score_is_withheld_under_any_policy(press: Any, studio: Any) -> None:
    lax = studio.policy.replace('threshold = 0.7, action = "block"', 'threshold = 1.0, action = "allow"')
    answers = {"nsfw": studio.saw("nsfw", ("sexual", 0.55)), "face": studio.saw("face", faces=1)}
    (result,) = under(press(**answers), lax).generate("a portrait", seed=5)
    assert result.status == "withheld"
    assert result.decision is not None
    assert (result.decision.action, result.decision.rule) == (Action.BLOCK, "locked_sexual_with_face")


def test_the_log_holds_a_keyed_hash_and_no_prompt(press: Any, tmp_path: Path) -> None:
    made: Press = press()
    made.generate("a very private unicorn", seed=5, negative_prompt="a private dog")
    with pytest.raises(PolicyBlocked):
        made.generate("private violence", seed=5)
    files = [path for path in (tmp_path / "home" / "audit").iterdir() if path.suffix == ".jsonl"]
    assert files
    assert not [path for path in files if b"private" in path.read_bytes() or b"unicorn" in path.read_bytes()]
    records = list(made.log.search())
    assert {len(r["prompt_hmac"]) for r in records} == {64}
    assert len({r["prompt_hmac"] for r in records}) == 2
    assert [r["action"] for r in records] == ["allow", "allow", "block"]
    assert made.log.verify().intact


def test_the_log_has_the_prompt_where_the_policy_says_so(press: Any, studio: Any, tmp_path: Path) -> None:
    clear = studio.policy.replace("audit = {enabled = true}", "audit = {enabled = true, prompts_in_clear = true}")
    made = under(press(), clear)
    made.generate("a very private unicorn", seed=5)
    assert {r["prompt"] for r in made.log.search()} == {"a very private unicorn | "}


def test_each_picture_has_its_record_in_the_log(press: Any, studio: Any) -> None:
    made: Press = press()
    results = made.generate("a cat", seed=2**64 - 1, n=2)
    prompt, *pictures = made.log.search()
    assert (prompt["stage"], prompt["image_index"], prompt["seed"]) == ("prompt", None, None)
    assert [(r["image_index"], r["seed"], r["attempt"]) for r in pictures] == [(0, str(2**64 - 1), 0), (1, "0", 0)]
    assert {r["request_id"] for r in (prompt, *pictures)} == {results[0].request_id}
    for record in pictures:
        assert len(record["image_sha256"]) == len(record["perceptual_hash"]) == 64
        assert {d["detector"]: d["model_sha256"] for d in record["detectors"]} == {"nsfw": studio.hash}
        assert {"category", "score", "threshold", "severity", "ms"} < set(record["detectors"][0])
        assert (record["policy_id"], record["policy_sha256"]) == ("studio", made.gate.policy.sha256)
    json.dumps(pictures)


def test_a_picture_that_a_request_brings_is_decided_on_and_logged(press: Any, studio: Any) -> None:
    """The door for pictures that are brought: refused without consent, and with it the reference is in the log."""
    made: Press = press(face=studio.saw("face", faces=1))
    gate, about = LoggedGate(made.gate, made.log), Subject("r1", "00" * 32)
    with pytest.raises(PolicyBlocked, match="consent_missing") as caught:
        gate.input_image(studio.drawn(1), about, None)
    assert "--consent" in caught.value.remedy
    words = made.gate.check_prompt("a cat", input_image=True, consent="case 7")
    brought = gate.input_image(studio.drawn(1), about, "case 7", words)
    assert (brought.faces, brought.consent, brought.reason_code) == (1, "case 7", "consent_given")
    assert made.gate.check_output_image(studio.drawn(2), words, brought).consent == "case 7"
    refused, allowed = made.log.search()
    assert (refused["action"], refused["rule"], refused["reason_code"]) == ("block", "people.real_face_input", "consent_missing")
    assert (allowed["action"], allowed["consent"], allowed["faces"], allowed["stage"]) == ("allow", "case 7", 1, "input_image")


@pytest.mark.parametrize(("rule", "consent", "passes"), [("deny", "case 7", False), ("consent", "case 7", True), ("allow", None, True)])
def test_real_faces_brought_in(press: Any, studio: Any, rule: str, consent: str | None, passes: bool) -> None:
    made = under(press(face=studio.saw("face", faces=1)), studio.policy.replace('"consent"', f'"{rule}"'))
    assert made.gate.check_input_image(studio.drawn(1), consent).allowed is passes


def test_style_and_consent_from_the_command_line(press: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: Press = press()
    monkeypatch.setattr(platemark.press, "load", lambda *a, **k: made)
    (tmp_path / "bad.toml").write_text('prefix = "violence, "\n')
    (tmp_path / "good.toml").write_text('prefix = "an etching of "\n')
    arguments = ["generate", "a cat", "--seed", "5", "--json", "--consent", "case 7", "-o", str(tmp_path / "cat.png")]
    blocked = CliRunner().invoke(main, [*arguments, "--style", str(tmp_path / "bad.toml")])
    assert (blocked.exit_code, json.loads(blocked.stdout)["error"]["code"]) == (3, "blocked")
    assert not (tmp_path / "cat.png").exists()
    done = CliRunner().invoke(main, [*arguments, "--style", str(tmp_path / "good.toml")])
    facts = json.loads(done.stdout)["provenance"][0]["facts"]
    assert (done.exit_code, facts["settings"]["style"], facts["consent_ref"]) == (0, "good", "case 7")
    assert (tmp_path / "cat.png").exists()


def test_artist_styles_are_the_operators_to_name() -> None:
    """Off in the presets; a file that lists terms switches it on."""
    prompt = "a harbour in the style of Ada Example"
    assert gate_for_texts(load_policy("standard")).check_prompt(prompt).action is Action.ALLOW
    own = 'extends = "standard"\nversion = 2\nid = "m"\n[categories.artist_style.prompt]\nenabled = true\nterms = ["of ada example"]\n'
    decision = gate_for_texts(parse_policy(own.encode(), "m.toml")).check_prompt(prompt)
    assert (decision.action, decision.category, decision.rule) == (Action.BLOCK, "artist_style", "categories.artist_style.prompt")
