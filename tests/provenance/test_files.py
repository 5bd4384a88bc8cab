"""Whole files or none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from platemark.errors import InputError, ProvenanceUnavailable
from platemark.provenance.files import STALE_SECONDS, require_writable, write_atomically
from platemark.provenance.home import home, locked, make_private, write_secret


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    write_atomically(path, b"one")
    write_atomically(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_place_for_a_file_is_checked_without_writing(tmp_path: Path) -> None:
    require_writable(tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == []
    for bad in (tmp_path, tmp_path / "missing" / "x.json"):
        with pytest.raises(InputError, match="cannot write"):
            require_writable(bad)


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


KILLED = """
import os, signal, sys
from platemark.provenance import files

files._publish = lambda temporary, path: os.kill(os.getpid(), signal.SIGKILL)
files.write_atomically(sys.argv[1], b"new")
"""


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("before", [None, b"old"])
def test_a_kill_before_the_rename_leaves_the_target_as_it_was(tmp_path: Path, before: bytes | None) -> None:
    path = tmp_path / "x.png"
    if before is not None:
        path.write_bytes(before)
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (path.read_bytes() if path.exists() else None) == before
    (left,) = [p for p in tmp_path.iterdir() if p != path]
    assert left.read_bytes() == b"new"
    write_atomically(path, b"newer")
    assert left.exists()  # young: it might be another process's, just now
    age(left)
    write_atomically(path, b"newest")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x.png", b"newest")]


def age(path: Path) -> None:
    old = time.time() - STALE_SECONDS - 60
    os.utime(path, (old, old), follow_symlinks=False)


def test_only_old_regular_files_of_our_name_are_removed(tmp_path: Path) -> None:
    ours = f".platemark-{'ab' * 8}.tmp"
    keep = [tmp_path / name for name in ("a.tmp", ".platemark-notes.tmp", f"{ours}.png", f"x{ours}", ".platemark-ABCDEF0123456789.tmp")]
    for path in keep:
        path.write_bytes(b"precious")
    keep += [tmp_path / f".platemark-{'0' * 16}.tmp", tmp_path / f".platemark-{'1' * 16}.tmp"]
    keep[-2].mkdir()
    keep[-1].symlink_to(tmp_path / "a.tmp")
    (tmp_path / ours).write_bytes(b"left over")
    for path in (*keep, tmp_path / ours):
        age(path)
    write_atomically(tmp_path / "x.png", b"x")
    assert set(tmp_path.iterdir()) == {*keep, tmp_path / "x.png"}


def test_what_cannot_be_removed_does_not_stop_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f".platemark-{'ab' * 8}.tmp").write_bytes(b"")
    age(tmp_path / f".platemark-{'ab' * 8}.tmp")

    def refuse(folder: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        write_atomically(tmp_path / "x.png", b"x")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: refuse(self) if self.read_bytes() == b"" else None)
        write_atomically(tmp_path / "x.png", b"y")
    assert (tmp_path / "x.png").read_bytes() == b"y"


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


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_every_missing_folder_is_private_and_no_existing_one_is_touched(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    state = shared / "data" / "platemark"
    assert make_private(state / "cache" / "texts") == state / "cache" / "texts"
    made = [state / "cache" / "texts", state / "cache", state, state.parent]
    assert {mode(path) for path in made} == {0o700}
    assert mode(shared) == 0o755
    state.chmod(0o750)  # the user's own choice
    make_private(state)
    write_secret(state / "keys" / "x", b"secret")
    assert mode(state) == 0o750


def test_a_relative_home_is_made_where_we_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_private(Path("a") / "b")
    assert [mode(tmp_path / "a"), mode(tmp_path / "a" / "b")] == [0o700, 0o700]


def test_an_unwritable_home_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ProvenanceUnavailable, match="state folder") as caught:
        write_secret(tmp_path / "file" / "keys" / "x", b"")
    assert "PLATEMARK_HOME" in caught.value.remedy
    assert caught.value.exit_code == 4
