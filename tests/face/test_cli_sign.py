"""`platemark sign` and moving keys with `platemark keys`: what is written, said and exited with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from platemark.cli import main
from platemark.imaging import encode
from platemark.provenance.credentials import read
from platemark.provenance.identity import init_keys

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli-sign")
    init_keys(folder, name="Test Studio")
    return folder


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("PLATEMARK_HOME", str(home))
    return lambda *arguments, stdin=None: CliRunner().invoke(main, [*map(str, arguments)], input=stdin)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8), "jpeg"))
    return path


def test_a_file_is_signed_in_place_and_again(run: Run, picture: Path) -> None:
    first = json.loads(run("sign", picture, "--json").stdout)
    again = json.loads(run("sign", picture, "-o", picture, "--json").stdout)
    report = read(picture.read_bytes(), "image/jpeg")
    assert (report.state, report.label) == ("valid", again["manifest_label"])
    assert first["manifest_label"] != again["manifest_label"]
    assert [one.signed for one in report.ingredients] == [True, False]  # the first credentials are kept, from the newest down


@pytest.mark.parametrize("part", [0.5, 0.9])
def test_a_picture_that_is_cut_short_is_not_signed(run: Run, picture: Path, part: float) -> None:
    whole = picture.read_bytes()
    picture.write_bytes(whole[: int(len(whole) * part)])
    done = run("sign", picture, "-o", picture.with_name("b.jpg"))
    assert done.exit_code == 2
    assert "cut short" in done.stderr
    assert not picture.with_name("b.jpg").exists()


def test_source_types_are_those_of_iptc(run: Run, picture: Path) -> None:
    before = picture.read_bytes()
    done = run("sign", picture, "--source-type", "digitalcapture")
    assert done.exit_code == 2
    assert "digitalCapture" in done.stderr  # the remedy names the terms
    assert picture.read_bytes() == before
    assert run("sign", picture, "--source-type", "http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture").exit_code == 0
    assert read(picture.read_bytes(), "image/jpeg").digital_source_type.endswith("/digitalCapture")


@pytest.mark.parametrize(("passphrase", "code"), [("a secret\n", 0), ("another\n", 2), ("", 2)])
def test_keys_move_under_a_passphrase_from_standard_input(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passphrase: str, code: int
) -> None:
    assert run("keys", "export", tmp_path / "k.json", "--passphrase", stdin="a secret\n").exit_code == 0
    assert b"a secret" not in (tmp_path / "k.json").read_bytes()
    monkeypatch.setenv("PLATEMARK_HOME", str(tmp_path / "other"))
    done = run("keys", "import", tmp_path / "k.json", "--passphrase", stdin=passphrase)
    assert done.exit_code == code, (done.stdout, done.stderr)
    shown = json.loads(run("keys", "show", "--json").stdout)
    assert len(shown["watermark_keys"]) == (1 if code == 0 else 0)
