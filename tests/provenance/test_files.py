"""Whole files or none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from platemark.errors import InputError, ProvenanceUnavailable
from platemark.provenance.files import write_atomically
from platemark.provenance.home import home, locked, write_secret


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    write_atomically(path, b"one")
    write_atomically(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "target").read_bytes() == b"precious"
    assert not (tmp_path / "link").is_symlink()


def test_bad_targets_are_named(tmp_path: Path) -> None:
    for bad in (tmp_path / "no" / "x.png", tmp_path, tmp_path / "nul\0"):
        with pytest.raises(InputError) as caught:
            write_atomically(bad, b"x")
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_home_is_named_by_the_environment_and_made_by_nobody(state_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert home() == state_home
    assert home(tmp_path / "x") == tmp_path / "x"
    monkeypatch.delenv("PLATEMARK_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(home()).startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_state_is_private(tmp_path: Path) -> None:
    write_secret(tmp_path / "home" / "keys" / "x", b"secret")
    assert (tmp_path / "home" / "keys" / "x").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "home" / "keys").stat().st_mode & 0o777 == 0o700
    with locked(tmp_path / "home", "keys"):
        assert (tmp_path / "home" / ".keys.lock").stat().st_mode & 0o777 == 0o600


def test_an_unwritable_home_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ProvenanceUnavailable, match="state folder") as caught:
        write_secret(tmp_path / "file" / "keys" / "x", b"")
    assert "PLATEMARK_HOME" in caught.value.remedy
    assert caught.value.exit_code == 4
