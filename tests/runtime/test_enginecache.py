"""The cache of compiled engines: found by everything that decides, whole or not there, healed, and compiled once by many."""

from __future__ import annotations

import errno
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from platemark.runtime import enginecache
from platemark.runtime.enginecache import DamagedEntryError, EngineCache, EngineKey, Entry, get_or_make, state

KEY = EngineKey("a" * 64, "b" * 64, "openvino", "2026.4", "fp32", "x86_64 avx2")
OTHERS = {
    "graph": "c" * 64,
    "weights": "c" * 64,
    "backend": "tensorrt",
    "version": "2026.5",
    "precision": "bf16",
    "device": "x86_64 avx512f",
    "driver": "13.0",
    "profile": {"height": [8, 16, 32]},
}


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache" / "engines")


def load(blob: bytes) -> bytes:
    if blob == b"refused":
        raise ValueError("the library refuses it")
    return blob


def made(blob: bytes, key: EngineKey = KEY) -> tuple[Entry, bytes]:
    return Entry(key, blob, {"bound_rel_l2": 1e-4}), blob


@pytest.mark.parametrize("field", OTHERS)
def test_everything_that_decides_is_in_the_key(field: str, cache: EngineCache) -> None:
    assert cache.write(made(b"one")[0])
    other = replace(KEY, **{field: OTHERS[field]})
    assert other.digest != KEY.digest
    assert cache.read(other) is None
    assert cache.read(KEY) is not None


def test_an_engine_comes_back_as_it_was_with_its_parity(cache: EngineCache) -> None:
    entry = Entry(replace(KEY, profile={"height": [8, 16, 32]}), os.urandom(1000), {"bound_rel_l2": 1e-4})
    assert cache.write(entry)
    assert cache.read(entry.key) == entry


def test_the_folder_is_its_owners_alone(cache: EngineCache) -> None:
    cache.write(made(b"one")[0])
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(cache.path(KEY).stat().st_mode) == 0o600


def test_a_second_use_compiles_nothing(cache: EngineCache) -> None:
    assert get_or_make(cache, KEY, load, lambda: made(b"one")) == b"one"
    assert get_or_make(cache, KEY, load, lambda: pytest.fail("compiled twice")) == b"one"


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "garbage", "no header", "refused", "another key", "folder"])
def test_a_wrong_engine_is_compiled_anew(damage: str, cache: EngineCache) -> None:
    cache.write(made(b"refused" if damage == "refused" else b"old" * 100)[0])
    path = cache.path(KEY)
    data = path.read_bytes()
    spoiled = {
        "cut": data[:-1],
        "changed": data[:-1] + b"X",
        "empty": b"",
        "garbage": os.urandom(500),
        "no header": (2).to_bytes(8, "little") + b"{}" + data,
    }
    if damage == "another key":
        other = replace(KEY, version="2026.3")
        cache.write(made(b"another", other)[0])
        path.write_bytes(cache.path(other).read_bytes())
        with pytest.raises(DamagedEntryError, match=r"version 2026\.3, here 2026\.4"):
            cache.read(KEY)
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    elif damage != "refused":
        path.write_bytes(spoiled[damage])
    assert get_or_make(cache, KEY, load, lambda: made(b"new")) == b"new"
    if damage != "folder":
        assert get_or_make(cache, KEY, load, lambda: pytest.fail("not healed")) == b"new"


def test_a_full_disk_leaves_the_old_engine_and_nothing_else(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write(made(b"old")[0])
    before = sorted(path.name for path in cache.folder.rglob("*"))

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(enginecache.os, "fsync", full)
    assert not cache.write(made(b"new" * 1000)[0])
    assert cache.read(KEY) == made(b"old")[0]
    assert sorted(path.name for path in cache.folder.rglob("*")) == before


def test_where_nothing_can_be_stored_the_engine_is_used_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    assert get_or_make(EngineCache(tmp_path / "file" / "engines"), KEY, load, lambda: made(b"one")) == b"one"


def test_builds_of_one_key_wait_for_the_first(cache: EngineCache) -> None:
    compiled = []
    start = threading.Barrier(8)

    def slow() -> tuple[Entry, bytes]:
        compiled.append(threading.get_ident())
        threading.Event().wait(0.3)
        return made(b"one")

    def want() -> bytes:
        start.wait()
        found: bytes = get_or_make(cache, KEY, load, slow)
        return found

    with ThreadPoolExecutor(8) as pool:
        assert [future.result() for future in [pool.submit(want) for _ in range(8)]] == [b"one"] * 8
    assert len(compiled) == 1


def test_an_older_version_makes_way_and_another_precision_stays(cache: EngineCache) -> None:
    old, other = replace(KEY, version="2026.3"), replace(KEY, precision="bf16")
    for key in (old, other, KEY):
        assert cache.write(made(b"one", key)[0])
    assert cache.read(old) is None
    assert cache.read(other) is not None


def test_the_state_says_why(cache: EngineCache) -> None:
    assert state(cache, KEY) == "will be compiled at first use"
    cache.write(made(b"one", replace(KEY, version="2026.3", device="x86_64 avx512f"))[0])
    assert "version 2026.3, here 2026.4; device x86_64 avx512f, here x86_64 avx2: it will be compiled anew" in state(cache, KEY)
    cache.write(made(b"one")[0])
    assert state(cache, KEY) == "in the cache"
    cache.path(KEY).write_bytes(cache.path(KEY).read_bytes()[:-1])
    assert "damaged" in state(cache, KEY)
