"""`platemark bench` as its users meet it: JSON of a stable form, options that are used or refused, one-line errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from platemark.cli import main


def run(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PLATEMARK_HOME": str(home)}
    return subprocess.run([sys.executable, "-m", "platemark", "bench", *arguments], capture_output=True, text=True, env=env, check=False)


SPREAD = {"mean", "min", "p50", "p95", "p99", "max"}
MEMORY = {"rss_bytes", "peak_rss_bytes", "since_reset", "source"}


def test_json_is_one_object_of_a_stable_form(tmp_path: Path) -> None:
    asked = ("--runs", "1", "--warmup", "0", "--steps", "1", "--size", "128x64", "--guidance", "1", "--scheduler", "euler", "--seed", "7")
    done = run(*asked, "--policy", "research", "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    assert set(said) == {
        "bench", "format_version", "machine", "bundle", "bundle_sha256", "policy", "settings", "n", "runs", "warmup", "load_ms", "first_ms",
        "latency_ms", "images_per_second", "ms_per_step", "stages_ms", "breakdown", "memory_loaded", "memory", "energy_j",
        "energy_j_per_image", "energy_source", "energy_meters", "savings",
    }  # fmt: skip
    assert (said["bench"], said["format_version"], said["policy"]) == ("latency", 1, "research")
    settings = said["settings"]
    assert (settings["num_inference_steps"], settings["guidance_scale"], settings["scheduler"]) == ("1", "1", "euler")
    assert (settings["width"], settings["height"]) == ("128", "64")
    assert set(said["latency_ms"]) == SPREAD
    assert set(said["memory"]) == set(said["memory_loaded"]) == MEMORY
    assert set(said["machine"]) == {"cpu", "cores", "system", "software"}
    assert set(said["breakdown"]) == {"parts_ms", "outside_ms", "denoise_ms", "share_of_denoise", "checks_and_provenance_ms"}
    assert (said["energy_j"] is None) == said["energy_source"].startswith("none")
    assert not (tmp_path / "registry.sqlite").exists()


def test_bias_of_the_prompt_check_alone(tmp_path: Path) -> None:
    benign = tmp_path / "benign.toml"
    benign.write_text('[axes]\nage = ["child"]\n[languages.en]\nscenes = {a = "{} in the garden"}\ngroups = {child = "a child"}\n')
    done = run("bias", "--prompts-only", "--benign", str(benign), "--json", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["bench"], said["attributes"], said["picture_check"]) == ("bias", None, None)
    assert said["prompt_check"]["overall"]["n"] == 1
    text = run("bias", "--prompts-only", "--benign", str(benign), home=tmp_path / "home")
    assert text.returncode == 0
    assert "no pictures were made" in text.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--runs", "0"), "runs is out of range"),
        (("-n", "9"), "n is out of range"),
        (("--size", "big"), "is not WIDTHxHEIGHT"),
        (("--bundle", "nowhere"), "no bundle folder"),
        (("bias", "--images", "0"), "images is out of range"),
        (("bias", "--attributes", "nowhere.toml"), "cannot be read"),
        (("--runs", "3", "bias"), "--runs belongs behind 'bias'"),
        (("--json", "bias"), "--json belongs behind 'bias'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["bench", *arguments])
    said = capsys.readouterr()
    assert left.value.code == 2
    text = said.out if "--json" in arguments else said.err
    assert says in text
    assert len((said.out + said.err).strip().splitlines()) == 1
