"""The tool that brings PostgreSQL: it installs where it can, and otherwise says why there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools import postgres

ROOT = Path(__file__).parents[3]


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without the server programs."""

    def programs() -> Path:
        raise postgres.UnavailableError("none")

    monkeypatch.setattr(postgres, "programs", programs)


def fake_apt(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "apt-get").write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\n{text}\n')
    (folder / "apt-get").chmod(0o755)


@pytest.mark.usefixtures("missing")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root installs")
def test_apt_is_asked_and_its_failure_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_apt(tmp_path / "bin", 'case "$1" in install) echo "E: no network" >&2; exit 100;; esac')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    with pytest.raises(postgres.UnavailableError, match="install failed: E: no network"):
        postgres.install()
    calls = (tmp_path / "bin" / "calls").read_text().splitlines()
    assert calls == ["update -qq", "install -y -qq --no-install-recommends postgresql"]


@pytest.mark.usefixtures("missing")
def test_without_apt_or_root_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(postgres.UnavailableError, match="only root on Debian"):
        postgres.install()


@pytest.mark.usefixtures("missing")
def test_a_server_without_programs_is_unavailable() -> None:
    with pytest.raises(postgres.UnavailableError), postgres.server():
        raise AssertionError("there was one")


@pytest.mark.service
def test_a_command_runs_beside_a_fresh_server(postgres: object) -> None:
    code = "import os, psycopg; print(psycopg.connect(os.environ['PLATEMARK_REGISTRY']).execute('SELECT 6 * 7').fetchone()[0])"
    command = [sys.executable, "-m", "tools.postgres", "run", "--", sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr


def test_other_words_are_a_usage_error() -> None:
    assert postgres.main(["bogus"]) == 2
