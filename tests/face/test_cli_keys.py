"""`platemark keys` and `platemark sign`, as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from platemark.cli import keys as keys_cli
from platemark.cli import sign as sign_cli
from platemark.errors import PlatemarkError
from platemark.imaging import encode
from platemark.provenance.certificates import ALGORITHMS, make_authority, make_leaf
from platemark.provenance.credentials import read
from platemark.provenance.identity import authorities, init_keys


def keys(*arguments: str, **options: str) -> Result:
    return CliRunner().invoke(keys_cli.command, arguments, standalone_mode=False, **options)  # type: ignore[arg-type]


def sign(*arguments: str) -> Result:
    return CliRunner().invoke(sign_cli.command, arguments, standalone_mode=False)


@pytest.fixture
def company(tmp_path: Path) -> Path:
    authority, authority_key = make_authority("Company")
    leaf, key = make_leaf("Company", authority, authority_key)
    (tmp_path / "chain.pem").write_bytes(leaf + authority)
    (tmp_path / "key.pem").write_bytes(key)
    return tmp_path


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_init_with_each_algorithm(state_home: Path, algorithm: str) -> None:
    done = keys("init", "--name", "Studio", "--algorithm", algorithm, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["signing"]["algorithm"] == algorithm
    assert set(keys_cli.ALGORITHMS) == set(ALGORITHMS)


def test_import_of_a_certificate_and_its_key(state_home: Path, company: Path) -> None:
    done = keys("import", str(company / "chain.pem"), "--key", str(company / "key.pem"))
    assert done.exit_code == 0, done.output
    assert "signs as Company" in done.stdout
    assert "es256, key here" in done.stdout
    again = keys("import", str(company / "chain.pem"), "--key", str(company / "key.pem"))
    assert isinstance(again.exception, PlatemarkError)
    assert "--force" in again.exception.remedy
    forced = keys("import", str(company / "chain.pem"), "--key", str(company / "key.pem"), "--force")
    assert forced.exit_code == 0


def test_import_still_takes_watermark_keys(state_home: Path, tmp_path: Path) -> None:
    assert keys("init").exit_code == 0
    assert keys("export", str(tmp_path / "wm.json")).exit_code == 0
    done = keys("import", str(tmp_path / "wm.json"))
    assert done.exit_code == 0, done.output
    assert "imported 0 watermark key(s)" in done.stdout


def test_a_certificate_without_its_key_says_what_is_missing(state_home: Path, company: Path) -> None:
    done = keys("import", str(company / "chain.pem"))
    assert isinstance(done.exception, PlatemarkError)
    assert "no private key" in done.exception.message


def test_sign_in_place_and_elsewhere(state_home: Path, tmp_path: Path) -> None:
    init_keys(state_home, name="Studio")
    path = tmp_path / "x.webp"
    path.write_bytes(encode(np.full((32, 32, 3), 90, np.uint8), "webp"))
    done = sign(str(path), "--source-type", "digitalCapture", "--json")
    assert done.exit_code == 0, done.output
    first = json.loads(done.stdout)["manifest_label"]
    report = read(path.read_bytes(), "image/webp", authorities(state_home))
    assert (report.label, report.trust, report.actions) == (first, "trusted", ("c2pa.created",))
    assert report.digital_source_type.endswith("/digitalCapture")
    done = sign(str(path), "-o", str(tmp_path / "y.webp"))
    assert done.exit_code == 0, done.output
    assert read((tmp_path / "y.webp").read_bytes(), "image/webp", b"").actions == ("c2pa.opened",)
    assert read(path.read_bytes(), "image/webp", b"").label == first


def test_a_time_stamp_that_is_asked_for_is_required(state_home: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(data := encode(np.full((32, 32, 3), 90, np.uint8)))
    done = sign(str(path), "--timestamp", "http://127.0.0.1:9/tsa")
    assert isinstance(done.exception, PlatemarkError)
    assert "cannot be reached" in done.exception.message
    assert path.read_bytes() == data
