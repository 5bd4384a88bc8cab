"""`platemark registry` as its users meet it: exit codes, JSON, one-line errors, and nothing half written."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from platemark.cli import main
from platemark.provenance import png
from platemark.provenance.identity import init_keys
from platemark.provenance.record import Facts
from platemark.provenance.registry import FILE, HEAD, Registry
from platemark.provenance.stamp import Stamped, open_stamp

OLD = Path(__file__).parent / "data" / "registry_0001.sql"


def run(*arguments: object, home: Path, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "PLATEMARK_REGISTRY"}
    command = [sys.executable, "-W", "error", "-m", "platemark", "registry", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, input=stdin, env=kept | {"PLATEMARK_HOME": str(home)} | environment)


def said(done: subprocess.CompletedProcess[str], code: int = 0) -> Any:
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def refused(done: subprocess.CompletedProcess[str], code: int = 2) -> str:
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("registry-cli")
    init_keys(folder, name="Test Studio")
    return folder


@pytest.fixture(scope="module")
def released(home: Path, make_picture: Callable[..., np.ndarray], make_facts: Callable[..., Facts]) -> list[Stamped]:
    stamp = open_stamp(home)
    stamped = [stamp.apply(make_picture(seed), make_facts(), stamp.reserve()) for seed in (11, 12)]
    stamp.registry.close()
    return stamped


def test_show(home: Path, released: list[Stamped], tmp_path: Path) -> None:
    shown = said(run("show", "--json", home=home))
    assert shown["registry"] == str(home / FILE)
    assert (shown["named_by"], shown["schema"], shown["newest"], shown["records"]) == ("default", HEAD, HEAD, 2)
    assert shown["bytes"] > 10_000
    empty = said(run("show", "--json", home=tmp_path / "none"))
    assert (empty["records"], empty["schema"]) == (0, None)
    assert not (tmp_path / "none").exists()
    named = said(run("show", "--json", home=home, PLATEMARK_REGISTRY=str(tmp_path / "else.db")))
    assert named["named_by"] == "$PLATEMARK_REGISTRY"
    assert str(home / FILE) in run("show", home=home).stdout


def test_search(home: Path, released: list[Stamped], tmp_path: Path) -> None:
    one, two = (stamped.record for stamped in released)
    Image.open(__import__("io").BytesIO(released[0].data)).save(tmp_path / "copy.jpg", quality=80)
    found = said(run("search", "--image", tmp_path / "copy.jpg", "--json", home=home))
    assert (found["content_id"], found["issuer"]) == (one.content_id, one.issuer)
    assert 0 <= found["distance"] <= 31
    assert found["record"]["facts"]["seed"] == str(2**64 - 1)
    for option, value in (
        ("--content-id", two.content_id), ("--sha256", two.image_sha256.upper()), ("--manifest", two.manifest_label),
    ):  # fmt: skip
        assert said(run("search", option, value, "--json", home=home))["content_id"] == two.content_id
    lines = run("search", "--since", "2020-01-01", "--until", "2100-01-01", home=home).stdout.splitlines()
    assert {line.split()[0] for line in lines} == {str(one.content_id), str(two.content_id)}
    nothing = run("search", "--until", "2020-01-01", home=home)
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (1, "", "nothing found\n")
    assert "nothing to search for" in refused(run("search", home=home))
    assert "cannot read" in refused(run("search", "--image", tmp_path / "missing.png", home=home))


@pytest.mark.parametrize(
    "arguments",
    [
        "search --content-id 99999999999999999999", "search --issuer 4294967296", "search --issuer -1",
        "search --sha256 a --limit 99999999999999999999", "export - --issuer 99999999999999999999",
        "prune --older-than nan --yes", "prune --older-than 1e300 --yes",
        "restore a.png -o b.png --content-id 99999999999999999999 --issuer 1",
    ],
)  # fmt: skip
def test_numbers_that_no_database_takes_are_refused(
    arguments: str, home: Path, released: list[Stamped], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(released[0].pixels).save("a.png")
    monkeypatch.setenv("PLATEMARK_HOME", str(home))
    done = CliRunner().invoke(main, ["registry", *arguments.split()])
    assert done.exit_code == 2, (done.output, done.exception)
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert not Path("b.png").exists()


def test_looking_makes_no_registry(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (64, 64)).save(picture)
    for arguments in (
        ("search", "--content-id", 3), ("export", "-"), ("prune", "--older-than", 3, "--yes"), ("restore", picture, "-o", "x.png"),
        ("skip-ids",), ("serve", "--port", 0),
    ):  # fmt: skip
        assert "there is no registry at" in refused(run(*arguments, home=tmp_path / "home"))
    assert not (tmp_path / "home").exists()


def test_skip_ids(tmp_path: Path) -> None:
    with Registry.open(tmp_path) as registry:
        first = registry.lease(5)
    skipped = said(run("skip-ids", "--json", home=tmp_path))["skipped"]["5"]
    with Registry.open(tmp_path) as registry:
        assert registry.lease(5) == first + 64 + skipped
    assert skipped > 2**35


def test_export(home: Path, released: list[Stamped], tmp_path: Path) -> None:
    ids = {stamped.record.content_id for stamped in released}
    stream = run("export", "-", home=home)
    assert {json.loads(line)["content_id"] for line in stream.stdout.splitlines()} == ids
    assert said(run("export", tmp_path / "out.csv", "--json", home=home)) == {"file": str(tmp_path / "out.csv"), "records": 2}
    with (tmp_path / "out.csv").open(newline="") as handle:
        assert {int(row["content_id"]) for row in csv.DictReader(handle)} == ids
    assert said(run("export", tmp_path / "out.parquet", "--json", "--manifests", home=home))["records"] == 2
    assert (tmp_path / "out.parquet").read_bytes()[:4] == b"PAR1"
    assert "cannot write" in refused(run("export", tmp_path / "no" / "out.csv", home=home))


def test_restore(home: Path, released: list[Stamped], tmp_path: Path) -> None:
    whole = released[0].data
    (tmp_path / "stripped.png").write_bytes(png.without_credentials(whole))
    done = said(run("restore", tmp_path / "stripped.png", "-o", tmp_path / "out.png", "--json", home=home))
    assert (done["state"], done["written"]) == ("restored", [str(tmp_path / "out.png")])
    assert (tmp_path / "out.png").read_bytes() == whole
    said(run("restore", tmp_path / "out.png", "-o", tmp_path / "out.png", "--json", home=home))  # whole already: in place, unharmed
    assert (tmp_path / "out.png").read_bytes() == whole
    with Image.open(tmp_path / "out.png") as picture:
        picture.save(tmp_path / "copy.jpg", quality=85)
    copy = said(run("restore", tmp_path / "copy.jpg", "-o", tmp_path / "no.png", "--json", home=home), 1)
    assert (copy["state"], copy["written"]) == ("re-encoded", [])
    assert not (tmp_path / "no.png").exists()
    text = run("restore", tmp_path / "copy.jpg", "--sidecar", tmp_path / "copy.c2pa", home=home)
    assert text.returncode == 0
    assert text.stdout.startswith("re-encoded: ")
    assert (tmp_path / "copy.c2pa").read_bytes() == next(c.data for c in png.chunks(whole) if c.kind == png.CREDENTIALS)
    key = ("--content-id", released[0].record.content_id, "--issuer", released[0].record.issuer)
    assert said(run("restore", tmp_path / "stripped.png", "-o", tmp_path / "b.png", "--json", *key, home=home))["found_by"] == "content id"
    assert "-o" in refused(run("restore", tmp_path / "copy.jpg", home=home))
    assert "belong together" in refused(run("restore", tmp_path / "copy.jpg", "-o", tmp_path / "x.png", "--issuer", 3, home=home))


def test_prune_asks_first(make_facts: Callable[..., Facts], make_record: Callable[..., Any], tmp_path: Path) -> None:
    with Registry.open(tmp_path) as registry:
        registry.commit(make_record(1, created="2020-01-01T00:00:00Z"), b"m" * 1000)
        registry.commit(make_record(2, created="2099-01-01T00:00:00Z"), b"m" * 1000)
    arguments = ("prune", "--older-than", 365)
    assert said(run(*arguments, "--dry-run", "--json", home=tmp_path)) == {"pruned": 1, "freed_bytes": 1000, "dry_run": True}
    silent = said(run(*arguments, "--json", home=tmp_path), 2)
    assert "--yes" in silent["error"]["message"]
    no = run(*arguments, home=tmp_path, stdin="n\n")
    assert no.returncode == 130
    assert "Empty 1 records" in no.stderr
    assert said(run("search", "--content-id", 1, "--json", home=tmp_path))["pruned"] is None
    yes = run(*arguments, "--compact", home=tmp_path, stdin="y\n")
    assert yes.returncode == 0
    assert said(run(*arguments, "--yes", "--json", home=tmp_path))["pruned"] == 0
    assert "1 records pruned" in yes.stdout
    assert said(run("search", "--content-id", 1, "--json", home=tmp_path))["record"] is None
    assert "pruned 20" in run("search", "--content-id", 1, home=tmp_path).stdout
    assert said(run("search", "--content-id", 2, "--json", home=tmp_path))["record"] is not None
    assert "calendar" in refused(run("prune", "--older-than", "1e9", "--yes", home=tmp_path))


def test_migrate_brings_an_old_file_along(tmp_path: Path) -> None:
    import sqlite3

    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.executescript(OLD.read_text())
    connection.close()
    shown = said(run("show", "--json", home=tmp_path))
    assert (shown["schema"], "records" in shown) == ("0001", False)  # looking changes nothing
    assert said(run("migrate", "--json", home=tmp_path)) == {"from": "0001", "to": HEAD}
    assert said(run("migrate", "--json", home=tmp_path)) == {"from": HEAD, "to": HEAD}
    assert said(run("show", "--json", home=tmp_path))["records"] == 5


def test_use_an_sqlite_file_elsewhere(tmp_path: Path) -> None:
    home, other = tmp_path / "home", tmp_path / "other.db"
    assert said(run("use", other, "--json", home=home)) == {"registry": str(other)}
    assert said(run("show", "--json", home=home))["named_by"] == "registry.toml"
    assert said(run("use", "--default", "--json", home=home)) == {"registry": str(home / FILE)}
    assert said(run("show", "--json", home=home))["named_by"] == "default"
    assert "either" in refused(run("use", home=home))
    assert "mysql" in refused(run("use", "mysql://u:hunter2@h/d", home=home))


@pytest.mark.service
def test_use_postgresql_without_showing_its_password(postgres: Any, tmp_path: Path) -> None:
    url = postgres.create_database()
    done = run("use", "-", home=tmp_path, stdin=url + "\n")
    shown = run("show", "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert said(shown)["registry"] == f"postgresql://platemark@127.0.0.1:{postgres.port}/{url.rpartition('/')[2]}"
    assert said(shown)["records"] == 0
    wrong = run("use", url.replace(postgres.password, "not-the-password"), home=tmp_path)
    line = refused(wrong, 4)
    assert "password authentication failed" in line
    everything = done.stdout + done.stderr + shown.stdout + shown.stderr + wrong.stdout
    assert postgres.password not in everything
    assert "not-the-password" not in line
    assert said(run("show", "--json", home=tmp_path))["records"] == 0  # the wrong one was not chosen
