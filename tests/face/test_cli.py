"""The program as its users meet it: real processes, JSON on stdout, one-line errors, exit codes, and no file left behind."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import platemark.press
from platemark.cli import main
from platemark.models import embedded
from platemark.press import Press


def run(*arguments: str | Path, home: Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PLATEMARK_HOME": str(home)}
    return subprocess.run([sys.executable, "-m", "platemark", *map(str, arguments)], capture_output=True, text=True, env=env, cwd=cwd)


def run_here(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The same without a process of its own, which takes a second and more."""
    done = CliRunner().invoke(main, list(map(str, arguments)))
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def refused(done: subprocess.CompletedProcess[str], exit_code: int = 2) -> str:
    """Asserts the shape of a refusal: its exit code, nothing on stdout, one line with a remedy on stderr."""
    assert done.returncode == exit_code, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert lines[0].endswith(")")
    assert "Traceback" not in done.stderr
    return lines[0]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli-home")


@pytest.fixture(scope="module")
def loaded(home: Path) -> Press:
    return platemark.press.load(home=home)


@pytest.fixture
def opened(loaded: Press, monkeypatch: pytest.MonkeyPatch) -> Press:
    """Commands in this process take this press, unless they name a bundle or a policy."""
    load = platemark.press.load

    def taken(bundle: Any = None, **more: Any) -> Press:
        return load(bundle, **more) if bundle or more.get("policy") else loaded

    monkeypatch.setattr(platemark.press, "load", taken)
    return loaded


@pytest.fixture(scope="module")
def apple(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("cli") / "apple.png"
    done = run("generate", "a red apple", "--seed", "1", "-o", path, "--json", home=home)
    assert done.returncode == 0, done.stderr
    return path, json.loads(done.stdout)


def test_generate_json_is_one_object_and_nothing_else(apple: tuple[Path, dict[str, Any]]) -> None:
    path, said = apple
    assert set(said) == {"files", "status", "seeds", "decisions", "errors", "provenance", "timings", "notes", "request_ids"}
    assert said["status"] == ["released"]
    assert said["errors"] == [None]
    assert said["files"] == [str(path)]
    assert said["seeds"] == ["1"]
    assert said["decisions"][0]["action"] == "allow"
    assert said["provenance"][0]["facts"]["seed"] == "1"
    with Image.open(path) as picture:
        assert picture.size == (512, 512)


def test_verify_json_says_verdict_and_layers(apple: tuple[Path, dict[str, Any]], home: Path) -> None:
    done = run("verify", apple[0], "--json", home=home)
    assert done.returncode == 0
    said = json.loads(done.stdout)
    assert said["file"] == str(apple[0])
    assert said["verdict"] == "intact-untrusted"
    assert set(said["layers"]) == {"c2pa", "watermark", "metadata", "registry"}


def test_a_jpeg_copy_is_recovered_by_its_watermark(apple: tuple[Path, dict[str, Any]], home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.jpg"
    with Image.open(apple[0]) as picture:
        picture.convert("RGB").save(copy, quality=75)
    done = run("verify", copy, "--json", home=home)
    assert done.returncode == 0, done.stdout
    said = json.loads(done.stdout)
    assert said["verdict"] == "recovered-by-watermark"
    assert said["content_id"] == apple[1]["provenance"][0]["content_id"]


def test_an_unmarked_picture_is_none_with_a_p_value(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(path)
    done = run("verify", path, "--json", home=home)
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert said["verdict"] == "none"
    assert said["layers"]["watermark"]["state"] == "not-detected"
    assert 0 < said["layers"]["watermark"]["p_value"] <= 1


def test_several_prompts_go_into_a_folder(home: Path, tmp_path: Path) -> None:
    done = run("generate", "cat", "dog", "-n", "2", "--seed", "7", "--steps", "2", "-o", tmp_path / "out", home=home)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0000-7.png", "0001-8.png", "0002-9.png", "0003-10.png"]


def test_strangers_state_reads_no_key(apple: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    done = run("verify", apple[0], "--json", home=tmp_path / "elsewhere")
    said = json.loads(done.stdout)
    assert said["layers"]["watermark"]["state"] == "no-key"
    assert said["verdict"] == "intact-untrusted"
    assert not (tmp_path / "elsewhere").exists()  # verifying makes no keys


@pytest.mark.parametrize(
    "arguments",
    [
        ("",), ("   ",), ("x" * 100_000,), ("cat", "--size", "0x0"), ("cat", "--size", "-1x-1"), ("cat", "--size", "7x7"),
        ("cat", "--size", "7"), ("cat", "--size=--5x5"),
        ("cat", "--size", "100000x100000"), ("cat", "--guidance", "nan"), ("cat", "--guidance", "inf"), ("cat", "--steps", "0"),
        ("cat", "--scheduler", "magic"), ("cat", "--bundle", "missing-folder"), ("cat", "--seed", "-7"), ("cat", "-n", "0"),
        ("cat", "--policy", "no-such-policy"), ("cat", "--steps", "many"), ("cat", "--no-such-option"), ("cat", "-o", "picture.bmp"),
        ("cat", "dog", "-o", "one.png"), ("cat", "-o", "no/such/folder/cat.png"), (),
    ],
)  # fmt: skip
def test_bad_generate_requests(arguments: tuple[str, ...], opened: Press, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(run_here("generate", *arguments))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("   ",), ("cat", "--size", "7x7"), ("cat", "--bundle", "missing-folder")])
def test_bad_generate_requests_as_processes(arguments: tuple[str, ...], home: Path, tmp_path: Path) -> None:
    refused(run("generate", *arguments, home=home, cwd=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_bad_requests_in_json(opened: Press) -> None:
    done = run_here("generate", "cat", "--steps", "0", "--json")
    assert done.returncode == 2
    assert set(json.loads(done.stdout)["error"]) == {"code", "message", "remedy"}


def test_a_bundle_with_a_flipped_byte_does_not_open(home: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(embedded(), bundle)
    weights = bundle / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    line = refused(run("generate", "cat", "--bundle", bundle, "-o", tmp_path / "cat.png", home=home))
    assert "diffusion_pytorch_model.safetensors" in line
    refused(run("inspect", bundle, home=home))
    assert not (tmp_path / "cat.png").exists()


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["text", "empty", "png", "jpeg", "webp", "bomb"])
@pytest.mark.parametrize("command", ["check", "verify"])
def test_files_that_are_not_pictures(kind: str, command: str, home: Path, tmp_path: Path) -> None:
    path = tmp_path / f"file.{kind}"
    if kind in {"png", "jpeg", "webp"}:
        picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (96, 96, 3), dtype=np.uint8))
        picture.save(path, format=kind)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_bytes({"text": b"not a picture\n" * 50, "empty": b"", "bomb": png_header(20_000, 20_000)}[kind])
    before = path.read_bytes()
    if command == "check":
        refused(run_here("check", "--image", path))
    else:
        done = run_here("verify", path, "--json")
        said = json.loads(done.stdout)
        assert (done.returncode, said.get("verdict")) == (6, "corrupt") or (
            done.returncode == 2 and set(said["error"]) == {"code", "message", "remedy"}
        )
    assert path.read_bytes() == before


def test_missing_files_do_not_stop_the_others(apple: tuple[Path, dict[str, Any]], home: Path, tmp_path: Path) -> None:
    done = run("verify", tmp_path / "none.png", apple[0], "--json", home=home)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 2
    assert set(lines[0]) == {"file", "error"}
    assert lines[1]["verdict"] == "intact-untrusted"


def test_check_says_action_and_reasons(apple: tuple[Path, dict[str, Any]], home: Path) -> None:
    blocked = run("check", "--prompt", "a naked woman", "--json", home=home)
    assert blocked.returncode == 3
    said = json.loads(blocked.stdout)
    assert said["action"] == "block"
    assert said["reasons"]
    picture = run("check", "--image", apple[0], "--json", home=home)
    assert picture.returncode == 0
    assert json.loads(picture.stdout)["action"] == "allow"


def test_blocked_prompt_exits_3(home: Path, tmp_path: Path) -> None:
    line = refused(run("generate", "a naked woman", "-o", tmp_path / "x.png", home=home), 3)
    assert "naked" not in line
    assert not (tmp_path / "x.png").exists()


def test_keys_make_a_trusted_picture(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert run("keys", "init", home=home).returncode == 0
    for path in (home / "keys").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600, path
    shown = json.loads(run("keys", "show", "--json", home=home).stdout)
    assert "PRIVATE" not in json.dumps(shown)
    done = run("generate", "cat", "--seed", "1", "--steps", "2", "-o", tmp_path / "cat.png", home=home)
    assert done.returncode == 0, done.stderr
    assert json.loads(run("verify", tmp_path / "cat.png", "--json", home=home).stdout)["verdict"] == "trusted"
    assert run("keys", "export", tmp_path / "wm.json", home=home).returncode == 0
    assert (tmp_path / "wm.json").stat().st_mode & 0o777 == 0o600
    other = tmp_path / "other"
    assert run("keys", "import", tmp_path / "wm.json", home=other).returncode == 0
    said = json.loads(run("verify", tmp_path / "cat.png", "--json", home=other).stdout)
    assert said["layers"]["watermark"]["state"] == "detected"
    refused(run("keys", "init", home=home))  # never overwrites


def test_inspect_and_doctor(home: Path) -> None:
    said = json.loads(run("inspect", embedded(), "--json", home=home).stdout)
    assert said["manifest"]["name"] == "platemark-emoji"
    assert all(engine["usable"] for engine in said["engines"].values())
    report = json.loads(run("doctor", "--json", home=home).stdout)
    assert report["backends"]["onnxruntime"]["usable"]


def test_build_refuses_pickles(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    shutil.copytree(embedded(), tmp_path / "ckpt", ignore=shutil.ignore_patterns("*.onnx", "bundle.json"))
    weights = tmp_path / "ckpt" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.bin"))
    line = refused(run("build", tmp_path / "ckpt", "-o", tmp_path / "bundle", home=home))
    assert "safetensors" in line
    assert not (tmp_path / "bundle").exists()


def test_a_bad_second_prompt_leaves_nothing_behind(opened: Press, tmp_path: Path) -> None:
    for second, code in (("", 2), ("a naked woman", 3)):
        refused(run_here("generate", "cat", second, "-o", tmp_path / "out"), code)
        assert list(tmp_path.iterdir()) == []


def test_pictures_finished_before_an_error_are_named(home: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0001-2.png").mkdir()  # the second file cannot be written
    done = run("generate", "cat", "-n", "2", "--seed", "1", "--steps", "2", "-o", tmp_path / "out", "--json", home=home)
    said = json.loads(done.stdout)
    assert done.returncode != 0
    assert said["files"] == [str(tmp_path / "out" / "0000-1.png")]
    assert set(said["error"]) == {"code", "message", "remedy"}


@pytest.mark.parametrize("arguments", [(), ("keys",)])
def test_no_arguments_show_the_help(arguments: tuple[str, ...], home: Path) -> None:
    done = run(*arguments, home=home)
    assert done.returncode == 0
    assert "Commands:" in done.stdout.splitlines()
    assert done.stderr == ""


@pytest.mark.parametrize("prompt", ["", " ", "x" * 100_000])
def test_check_refuses_what_generate_refuses(prompt: str) -> None:
    refused(run_here("check", "--prompt", prompt))


def test_a_file_name_that_is_no_utf8_is_reported(home: Path, tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    done = run("verify", path, "--json", home=home)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "bad_input"
    refused_text = run("verify", path, home=home)
    assert refused_text.returncode == 2
    assert "Traceback" not in refused_text.stderr
