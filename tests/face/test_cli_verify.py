"""`platemark verify`: files, folders and standard input; what it prints, writes and exits with."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import platemark
from platemark.cli import main
from platemark.imaging import encode
from platemark.provenance.identity import init_keys
from platemark.provenance.record import Facts
from platemark.provenance.stamp import Stamped, open_stamp

SCHEMA = Draft202012Validator(json.loads((Path(__file__).parents[2] / "docs" / "verify.schema.json").read_text(encoding="utf-8")))
FACTS = Facts(
    model_name="m", model_sha256="ab" * 32, bundle_sha256="cd" * 32, seed=1, request_hmac="ef" * 32, settings={}, resampled_from=None,
    decision={"action": "allow", "policy_id": "standard", "policy_sha256": "12" * 32},
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli-verify")
    init_keys(folder, name="Test Studio")
    return folder


@pytest.fixture(scope="module")
def stamped(home: Path) -> Stamped:
    y, x = np.mgrid[0:256, 0:320]
    noise = np.random.default_rng(0).normal(0, 12, (256, 320, 3))
    picture = np.clip(np.stack([x / 2 + 40, y / 2 + 60, 128 + 60 * np.sin(x / 17 + y / 23)], -1) + noise, 0, 255).astype(np.uint8)
    press = open_stamp(home)
    return press.apply(picture, FACTS, press.reserve())


@pytest.fixture(scope="module")
def files(stamped: Stamped, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file of every kind of answer."""
    root = tmp_path_factory.mktemp("pictures")
    info, claimed = PngInfo(), io.BytesIO()
    info.add_text("parameters", "a cat\nSteps: 20, Sampler: Euler")
    plain = Image.fromarray(np.full((64, 64, 3), 99, np.uint8))
    plain.save(claimed, "png", pnginfo=info)
    made = {
        "trusted": stamped.data,
        "tampered": stamped.data[:-12] + b"\0\0\0\3tEXta\0b\x7b\x2e\x1e\x01" + stamped.data[-12:],
        "corrupt": stamped.data[:9000],
        "recovered-by-watermark": encode(stamped.pixels),
        "unsigned-claims": claimed.getvalue(),
        "none": encode(np.full((64, 64, 3), 99, np.uint8)),
        "error": b"no picture",
    }
    for name, data in made.items():
        (root / f"{name}.png").write_bytes(data)
    return {name: root / f"{name}.png" for name in made}


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("PLATEMARK_HOME", str(home))

    def do(*arguments: str | Path, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(main, ["verify", *map(str, arguments)], input=stdin)

    return do


CODES = {"trusted": 0, "recovered-by-watermark": 0, "unsigned-claims": 1, "none": 1, "error": 2, "tampered": 6, "corrupt": 6}


@pytest.mark.parametrize("kind", CODES)
def test_verdicts_and_exit_codes(kind: str, run: Callable[..., Result], files: dict[str, Path]) -> None:
    done = run(files[kind], "--json", "--fast")
    assert done.exit_code == CODES[kind], (done.stdout, done.stderr)
    line = json.loads(done.stdout)
    SCHEMA.validate(line)
    assert line["file"] == str(files[kind])
    assert line.get("verdict", "error") == kind
    assert done.stderr == ""


def test_the_worst_of_several_files_counts(run: Callable[..., Result], files: dict[str, Path]) -> None:
    for names, code in ((("trusted", "none"), 1), (("trusted", "error"), 2), (("error", "tampered", "trusted"), 6)):
        done = run(*(files[name] for name in names), "--fast", "--json")
        assert done.exit_code == code
        assert [json.loads(line).get("verdict", "error") for line in done.stdout.splitlines()] == list(names)


def test_text_for_people(run: Callable[..., Result], files: dict[str, Path], stamped: Stamped) -> None:
    done = run(files["trusted"], "--fast")
    assert done.exit_code == 0
    said = done.stdout.splitlines()
    assert said[0] == f"{files['trusted']}: trusted"
    assert "  axes       integrity intact, trust trusted, recovery by-watermark" in said
    assert f"The watermark says content id {stamped.record.content_id}" in done.stdout
    done = run(files["error"])
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")


def test_standard_input_and_folders(run: Callable[..., Result], files: dict[str, Path]) -> None:
    done = run("-", "--json", "--fast", stdin=files["trusted"].read_bytes())
    assert (done.exit_code, json.loads(done.stdout)["file"]) == (0, "-")
    assert json.loads(done.stdout)["verdict"] == "trusted"
    assert run("-", "--fast", stdin=b"").exit_code == 2
    done = run(files["none"].parent, "--json", "--fast", "--jobs", "1")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(one.get("verdict", "error") for one in found) == sorted(files)
    assert done.exit_code == 6


def test_the_deep_search_is_for_few_files(run: Callable[..., Result], files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from platemark.provenance.verify import batch

    asked: list[bool] = []

    def seen(found: Any, settings: batch.Settings, **options: Any) -> Any:
        asked.append(settings.deep)
        return iter(())

    monkeypatch.setattr(batch, "verify_all", seen)
    for count, options in ((1, ()), (16, ()), (17, ()), (17, ("--deep",)), (1, ("--fast",))):
        run(*[files["none"]] * count, *options)
    assert asked == [True, True, False, True, False]


def test_output_files(run: Callable[..., Result], files: dict[str, Path], tmp_path: Path) -> None:
    for suffix in ("jsonl", "csv", "parquet"):
        done = run(files["trusted"], files["none"], "--fast", "-o", tmp_path / f"out.{suffix}")
        assert done.exit_code == 1
        assert done.stdout == "2 files: 1 trusted, 1 none\n"
        assert (tmp_path / f"out.{suffix}").stat().st_size > 100
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as handle:
        assert [row["verdict"] for row in csv.DictReader(handle)] == ["trusted", "none"]
    done = run(files["trusted"], "--fast", "--json", "-o", tmp_path / "out.jsonl")
    assert json.loads(done.stdout) == {"files": 1, "verdicts": {"trusted": 1}}
    assert run(files["trusted"], "-o", tmp_path / "out.xls").exit_code == 2


def test_signed_reports(run: Callable[..., Result], files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "report.json"
    assert run(files["trusted"], files["none"], "--fast", "--signed-report", report).exit_code == 1
    done = run("--check-report", report, files["trusted"], "--json")
    assert done.exit_code == 0
    said = json.loads(done.stdout)
    assert (said["report"]["signature"], said["report"]["trust"], said["report"]["signer"]) == ("valid", "trusted", "Test Studio")
    assert said["contents"] == {str(files["trusted"]): True}
    done = run("--check-report", report, files["tampered"])
    assert done.exit_code == 6
    assert "not in this report" in done.stdout
    whole = json.loads(report.read_text())
    report.write_text(json.dumps(whole | {"signature": whole["signature"][::-1]}))
    assert run("--check-report", report).exit_code == 6
    monkeypatch.setenv("PLATEMARK_HOME", str(tmp_path / "nobody"))
    done = CliRunner().invoke(main, ["verify", str(files["none"]), "--signed-report", str(tmp_path / "no.json")])
    assert (done.exit_code, done.stdout) == (2, "")  # said before the work, not after
    assert not (tmp_path / "no.json").exists()


@pytest.mark.parametrize("profile", ["eu-art50", "ca-sb942", "cn-gb45438", "iptc"])
def test_profiles(profile: str, run: Callable[..., Result], files: dict[str, Path]) -> None:
    line = json.loads(run(files["trusted"], "--fast", "--json", "--profile", profile).stdout)
    SCHEMA.validate(line)
    assert line["profile"]["name"] == profile
    done = run(files["trusted"], "--fast", "--profile", profile)
    assert "no legal advice" in done.stdout
    assert all(f"[{row['clause']}]" in done.stdout for row in line["profile"]["rows"])
    assert run(files["trusted"], "--profile", "xx").exit_code == 2


def test_a_profile_is_in_the_table_too(run: Callable[..., Result], files: dict[str, Path], tmp_path: Path) -> None:
    run(files["trusted"], files["none"], "--fast", "--profile", "iptc", "-o", tmp_path / "o.csv")
    with (tmp_path / "o.csv").open(encoding="utf-8", newline="") as handle:
        ours, plain = csv.DictReader(handle)
    rows = json.loads(run(files["none"], "--fast", "--json", "--profile", "iptc").stdout)["profile"]["rows"]
    assert (plain["profile"], plain["missing"]) == ("iptc", "; ".join(row["id"] for row in rows))
    assert len(ours["missing"]) < len(plain["missing"])
    assert ours["wrong"] == ours["not_checked"] == ""


def test_hostile_names_do_not_reach_the_terminal(run: Callable[..., Result], tmp_path: Path) -> None:
    xmp = (
        b'<x xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" Iptc4xmpExt:AISystemUsed="a&#x9b;31mb"/>'
    )  # fmt: skip
    path = tmp_path / "x\x1b[31m.png"
    path.write_bytes(encode(np.full((40, 40, 3), 9, np.uint8), xmp=xmp))
    done = run(path, "--fast")
    assert done.exit_code == 1
    assert "\x1b" not in done.stdout
    assert "\x9b" not in done.stdout
    assert r"x\x1b[31m.png: unsigned-claims" in done.stdout


def test_nothing_to_verify_is_refused(run: Callable[..., Result], tmp_path: Path) -> None:
    for arguments in ((), (tmp_path,), ("--trust-list", tmp_path / "none.pem", tmp_path), ("x.png", "--jobs", "0")):
        done = run(*arguments)
        assert (done.exit_code, done.stdout) == (2, "")
        assert len(done.stderr.strip().splitlines()) == 1


def test_what_cannot_be_read_does_not_stop_the_others(
    run: Callable[..., Result], files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a user who may not read: the check of `os.access` must not end the command before the other files are verified."""
    monkeypatch.setattr("os.access", lambda *_, **__: False)
    done = run(files["none"], tmp_path / "missing.png", "--json", "--fast")
    assert done.exit_code == 2
    assert [json.loads(line).get("verdict") for line in done.stdout.splitlines()] == ["none", None]


def test_contradicting_searches_are_refused(run: Callable[..., Result], files: dict[str, Path]) -> None:
    done = run(files["none"], "--fast", "--deep")
    assert done.exit_code == 2
    assert "contradict" in done.stderr


def test_a_report_that_has_no_place_is_refused_before_the_work(run: Callable[..., Result], files: dict[str, Path], tmp_path: Path) -> None:
    done = run(files["none"], "--fast", "--signed-report", tmp_path / "missing" / "r.json")
    assert done.exit_code == 2
    assert "cannot write" in done.stderr
    assert done.stdout == ""


def test_the_source_of_a_claim_is_named(run: Callable[..., Result], files: dict[str, Path]) -> None:
    assert "claims an origin (web-ui parameters), but nothing proves it" in run(files["unsigned-claims"], "--fast").stdout


def test_the_python_face(files: dict[str, Path], home: Path, stamped: Stamped, tmp_path: Path) -> None:
    report = platemark.verify(files["trusted"], home=home, deep=False)
    assert isinstance(report, platemark.VerifyReport)
    assert report.verdict == "trusted"
    assert platemark.verify(str(files["none"])).verdict == "none"
    assert platemark.verify(stamped.data, home=tmp_path, profile="iptc").verdict == "intact-untrusted"
    with pytest.raises(platemark.errors.ImageError):
        platemark.verify(b"no picture")


def test_as_a_process(files: dict[str, Path]) -> None:
    """A folder over two processes, from a fresh interpreter whose start method is the system's own."""
    paths = [str(files["none"])] * 6
    done = subprocess.run(
        [sys.executable, "-m", "platemark", "verify", *paths, "--json", "--fast", "--jobs", "2"], capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["verdict"] for line in lines] == ["none"] * 6
    assert {line["layers"]["watermark"]["state"] for line in lines} == {"no-key"}
