"""Records: what is committed comes back as it was, and is found by id, label, file hash and filter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from platemark.errors import InputError, ProvenanceUnavailable
from platemark.provenance.record import ProvenanceRecord
from platemark.provenance.registry import FILE, Filter, Registry

Make = Callable[..., ProvenanceRecord]


def test_records_come_back_as_they_were(place: Any, make_record: Make) -> None:
    one = make_record(2**42 - 1, prompt="a \0 cat \u2028 \U0001f431")
    with place.open() as registry:
        registry.commit(one, b"manifest\0\xff", skeleton=b"\0bones")
    with place.open() as registry:
        entry = registry.find(2**42 - 1, 5)
        assert entry is not None
        assert (entry.record, entry.manifest, entry.skeleton, entry.pruned) == (one, b"manifest\0\xff", b"\0bones", None)
        assert entry.record is not None
        assert entry.record.facts.seed == 2**64 - 1
        assert (entry.model_sha256, entry.decision) == ("ab" * 32, "allow")
        assert registry.find(2**42 - 1, 6) is None
        assert registry.find(1, 5) is None
        assert registry.find_by_label(one.manifest_label) == entry
        assert registry.find_by_sha256(one.image_sha256) == entry
        assert registry.find_by_sha256("0" * 64) is None
        assert registry.all() == [entry]
        assert registry.count() == 1


def test_an_id_is_recorded_once(registry: Registry, make_record: Make) -> None:
    registry.commit(make_record(1), b"a")
    with pytest.raises(ProvenanceUnavailable, match="recorded already"):
        registry.commit(make_record(1), b"b")
    registry.commit(make_record(1, issuer=6), b"c")
    entry = registry.find(1, 5)
    assert entry is not None
    assert entry.manifest == b"a"


def test_a_record_that_does_not_fit_changes_nothing(registry: Registry, make_record: Make) -> None:
    with pytest.raises(InputError, match="64 hex digits"):
        registry.commit(make_record(1, perceptual_hash="nonsense"), b"")
    with pytest.raises(InputError, match="does not fit"):
        registry.commit(make_record(2**63), b"")
    assert registry.count() == 0


def test_filters(registry: Registry, make_record: Make) -> None:
    for day in range(1, 6):
        facts = {"model_sha256": f"{day % 2:064x}", "request_hmac": f"{day:064x}"}
        registry.commit(make_record(day, issuer=5 + day % 2, created=f"2026-08-0{day}T12:00:00Z", **facts), b"")

    def ids(**wanted: Any) -> list[int]:
        return [entry.content_id for entry in registry.search(Filter(**wanted))]

    assert ids() == [5, 4, 3, 2, 1]  # the newest first
    assert ids(issuer=5) == [4, 2]
    assert ids(model_sha256=f"{1:064x}") == [5, 3, 1]
    assert ids(request_hmac=f"{4:064x}") == [4]
    assert ids(image_sha256=f"{2:064x}") == [2]
    assert ids(since=datetime(2026, 8, 3, 12, tzinfo=UTC)) == [5, 4, 3]
    assert ids(until=datetime(2026, 8, 3, 12, tzinfo=UTC)) == [2, 1]
    assert ids(since=datetime(2026, 8, 2, tzinfo=UTC), until=datetime(2026, 8, 4, tzinfo=UTC), issuer=6) == [3]
    assert [entry.content_id for entry in registry.search(Filter(), limit=2)] == [5, 4]
    assert registry.count(Filter(issuer=6)) == 3


def test_entries_stream_in_order_over_batches(registry: Registry, make_record: Make) -> None:
    keys = sorted((issuer, content_id) for issuer in (5, 6) for content_id in (2**41, 1, 7, 2**42 - 1, 3))
    for issuer, content_id in keys:
        registry.commit(make_record(content_id, issuer=issuer), b"")
    assert [(entry.issuer, entry.content_id) for entry in registry.entries(batch=3)] == keys
    assert [entry.content_id for entry in registry.entries(Filter(issuer=6), batch=2)] == [key[1] for key in keys if key[0] == 6]


def test_the_file_is_private_durable_and_in_wal_mode(tmp_path: Path) -> None:
    with Registry.open(tmp_path / "home") as registry:
        registry.lease(5)
        assert (tmp_path / "home" / FILE).stat().st_mode & 0o777 == 0o600
        with registry.database.begin() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700


@pytest.mark.service
def test_postgresql_commits_durably_whatever_its_default(postgres: Any, tmp_path: Path) -> None:
    import psycopg

    url = postgres.create_database()
    with psycopg.connect(url, autocommit=True) as raw:
        raw.execute(f"ALTER DATABASE {url.rpartition('/')[2]} SET synchronous_commit TO off")
        assert raw.execute("SELECT setting FROM pg_settings WHERE name = 'fsync'").fetchone() == ("on",)
    with Registry.open(tmp_path, url) as registry, registry.database.begin() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
        assert connection.exec_driver_sql("SELECT to_regclass('platemark.records')").scalar() is not None
        assert connection.exec_driver_sql("SELECT to_regclass('public.records')").scalar() is None


def test_a_damaged_record_is_named(tmp_path: Path, make_record: Make) -> None:
    import sqlite3

    with Registry.open(tmp_path) as registry:
        registry.commit(make_record(1), b"")
        registry.commit(make_record(2), b"")
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute('UPDATE records SET record = \'{"content_id": "SECRET"}\' WHERE content_id = 2')
    connection.close()
    with Registry.open(tmp_path) as registry:
        assert registry.find(1, 5) is not None
        with pytest.raises(ProvenanceUnavailable, match=r"content id 2 .* is damaged") as caught:
            registry.find(2, 5)
    assert "SECRET" not in str(caught.value)


def test_importing_needs_no_sqlalchemy_and_opening_no_alembic(tmp_path: Path) -> None:
    Registry.open(tmp_path).close()
    code = (
        "import sys; from pathlib import Path; from platemark.provenance.registry import Registry\n"
        "print('sqlalchemy' in sys.modules); Registry.open(Path(sys.argv[1])).close(); print('alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_an_unwritable_home_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ProvenanceUnavailable) as caught:
        Registry.open(tmp_path / "file" / "home")
    assert "PLATEMARK_HOME" in caught.value.remedy


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_home_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o500)
    with pytest.raises(ProvenanceUnavailable, match="state folder"):
        Registry.open(tmp_path / "home")


def test_a_full_disk_loses_nothing_that_was_committed(tmp_path: Path, make_record: Make) -> None:
    """The file-size limit of the process stands in for a full disk."""
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from platemark.errors import ProvenanceUnavailable; from platemark.provenance.record import ProvenanceRecord\n"
        "from platemark.provenance.registry import Registry\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))\n"
        "model = ProvenanceRecord.model_validate_json(Path(sys.argv[2]).read_text())\n"
        "registry = Registry.open(Path(sys.argv[1]))\n"
        "for i in range(1, 1000):\n"
        "    try: registry.commit(model.model_copy(update={'content_id': i}), b'm' * 5000)\n"
        "    except ProvenanceUnavailable as error: print(i - 1, error); break\n"
    )
    (tmp_path / "model.json").write_text(make_record(0).model_dump_json())
    Registry.open(tmp_path / "home").close()
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "home"), str(tmp_path / "model.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, _, message = done.stdout.partition(" ")
    assert "disk" in message
    assert 0 < int(count) < 500
    with Registry.open(tmp_path / "home") as registry:
        assert registry.count() == int(count)
        registry.commit(make_record(5000), b"")
