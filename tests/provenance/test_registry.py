"""The registry: ids are given once, what is committed stays, and the schema grows by migrations."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from platemark.errors import ProvenanceUnavailable
from platemark.provenance.record import Facts, ProvenanceRecord
from platemark.provenance.registry import BLOCK, FILE, HEAD, Registry

Make = Callable[..., Facts]


def record(make_facts: Make, content_id: int, issuer: int = 5, perceptual_hash: str = "0" * 64) -> ProvenanceRecord:
    return ProvenanceRecord(
        content_id=content_id,
        issuer=issuer,
        created="2026-08-02T00:00:00Z",
        generator="platemark/0.1.0",
        watermark="none",
        watermark_key_id=None,
        watermark_payload=None,
        psnr=None,
        headroom_shift=0,
        identity="Test",
        development_identity=False,
        manifest_label=f"urn:c2pa:{content_id}",
        image_sha256=f"{content_id:064x}",
        perceptual_hash=perceptual_hash,
        facts=make_facts(),
    )


def test_records_come_back_as_they_were(tmp_path: Path, make_facts: Make) -> None:
    one = record(make_facts, 2**42 - 1)
    with Registry.open(tmp_path) as registry:
        registry.commit(one, b"manifest\0\xff")
    with Registry.open(tmp_path) as registry:
        entry = registry.find(2**42 - 1, 5)
        assert entry is not None
        assert (entry.record, entry.manifest) == (one, b"manifest\0\xff")
        assert entry.record.facts.seed == 2**64 - 1
        assert registry.find(2**42 - 1, 6) is None
        assert registry.find(1, 5) is None
        assert registry.find_by_label(one.manifest_label) == entry
        assert registry.all() == [entry]
        assert registry.count() == 1


def test_an_id_is_recorded_once(tmp_path: Path, make_facts: Make) -> None:
    with Registry.open(tmp_path) as registry:
        registry.commit(record(make_facts, 1), b"a")
        with pytest.raises(ProvenanceUnavailable, match="recorded already"):
            registry.commit(record(make_facts, 1), b"b")
        registry.commit(record(make_facts, 1, issuer=6), b"c")
        entry = registry.find(1, 5)
        assert entry is not None
        assert entry.manifest == b"a"


def test_find_by_hash_gives_the_nearest_first(tmp_path: Path, make_facts: Make) -> None:
    with Registry.open(tmp_path) as registry:
        for content_id, bits in ((1, 0), (2, 20), (3, 31), (4, 32), (5, 256)):
            registry.commit(record(make_facts, content_id, perceptual_hash=f"{(1 << bits) - 1:064x}"), b"")
        found = registry.find_by_hash(f"{(1 << 20) - 1:064x}", 20)
        assert [(distance, entry.content_id) for distance, entry in found] == [(0, 2), (11, 3), (12, 4), (20, 1)]
        assert registry.find_by_hash("f" * 64, 0)[0][1].content_id == 5


def test_leases_go_on_where_they_ended_and_differ_by_issuer(tmp_path: Path) -> None:
    with Registry.open(tmp_path) as registry:
        first = [registry.lease(5) for _ in range(BLOCK + 1)]
        other = registry.lease(6)
        assert first == list(range(first[0], first[0] + BLOCK + 1))
        assert first[0] % BLOCK == 0
        assert first[0] > 0
        assert other != first[0]
    with Registry.open(tmp_path) as registry:
        assert registry.lease(5) == first[0] + 2 * BLOCK  # the rest of the second block is lost, never given twice


def test_used_up_ids_are_refused(tmp_path: Path) -> None:
    with Registry.open(tmp_path) as registry:
        registry.lease(5)
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("UPDATE leases SET next_id = ?", (2**42 - BLOCK,))
    connection.close()
    with Registry.open(tmp_path) as registry:
        assert [registry.lease(5) for _ in range(BLOCK)][-1] == 2**42 - 1
        with pytest.raises(ProvenanceUnavailable, match="used up"):
            registry.lease(5)


def test_threads_get_different_ids(tmp_path: Path) -> None:
    ids: list[int] = []
    with Registry.open(tmp_path) as registry:
        threads = [threading.Thread(target=lambda: ids.extend(registry.lease(5) for _ in range(100))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(ids) == len(set(ids)) == 800


def test_processes_that_start_together_get_different_ids(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from platemark.provenance.registry import Registry\n"
        "with Registry.open(Path(sys.argv[1])) as r: print(*[r.lease(5) for _ in range(150)])"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "home")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    ids = [int(word) for process in started for word in process.communicate()[0].split()]
    assert [process.returncode for process in started] == [0] * 4
    assert len(ids) == len(set(ids)) == 600


def test_a_forked_child_gets_its_own_ids(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import os, sys
        from pathlib import Path
        from platemark.provenance.registry import Registry
        registry = Registry.open(Path(sys.argv[1]))
        print(registry.lease(5), flush=True)
        if (child := os.fork()) == 0:
            print(*[registry.lease(5) for _ in range(3)], flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print(*[registry.lease(5) for _ in range(3)])
    """)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(set(done.stdout.split())) == 7


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
from platemark.provenance.record import ProvenanceRecord
from platemark.provenance.registry import Registry
from platemark.provenance.tables import RECORDS  # before the forks, so that a child is at work at once

model = ProvenanceRecord.model_validate_json(Path(sys.argv[2]).read_text())
chance = random.Random(4)

def write():
    with Registry.open(Path(sys.argv[1])) as registry:
        while True:
            i = registry.lease(5)
            os.write(1, f"leased {i}\\n".encode())
            registry.commit(model.model_copy(update={"content_id": i}), b"m" * 5000)
            os.write(1, f"committed {i}\\n".encode())

for _ in range(10):
    writers = []
    for _ in range(4):
        if (child := os.fork()) == 0:
            write()
        writers.append(child)
    time.sleep(0.1)
    for child in writers:
        time.sleep(chance.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
"""


def test_killed_writers_lose_no_record_and_reuse_no_id(tmp_path: Path, make_facts: Make) -> None:
    (tmp_path / "model.json").write_text(record(make_facts, 0).model_dump_json())
    Registry.open(tmp_path / "home").close()
    command = [sys.executable, "-c", KILLER, str(tmp_path / "home"), str(tmp_path / "model.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    leased = [int(number) for what, number in lines if what == "leased"]
    committed = {int(number) for what, number in lines if what == "committed"}
    assert committed
    assert len(leased) == len(set(leased))
    with Registry.open(tmp_path / "home") as registry:
        entries = registry.all()
    assert committed <= {entry.content_id for entry in entries} <= set(leased)
    assert all(entry.manifest == b"m" * 5000 for entry in entries)


def test_the_file_is_private_durable_and_in_wal_mode(tmp_path: Path) -> None:
    with Registry.open(tmp_path / "home") as registry:
        registry.lease(5)
        assert registry.path.stat().st_mode & 0o777 == 0o600
        with registry._begin() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700


def test_migrations_make_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    import platemark.provenance.migrations as migrations
    from platemark.provenance.tables import METADATA

    with Registry.open(tmp_path) as registry:
        assert registry.version() == HEAD
        with registry._begin() as connection:
            assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_opening_an_up_to_date_registry_needs_no_alembic(tmp_path: Path) -> None:
    Registry.open(tmp_path).close()
    code = (
        "import sys; from pathlib import Path; from platemark.provenance.registry import Registry\n"
        "print('sqlalchemy' in sys.modules); Registry.open(Path(sys.argv[1])).close(); print('alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_newer_or_damaged_registry_is_refused(tmp_path: Path) -> None:
    Registry.open(tmp_path / "a").close()
    with sqlite3.connect(tmp_path / "a" / FILE) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(ProvenanceUnavailable, match="newer"):
        Registry.open(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / FILE).write_bytes(b"not a database " * 100)
    with pytest.raises(ProvenanceUnavailable, match="not a database") as caught:
        Registry.open(tmp_path / "b")
    assert "\n" not in str(caught.value)


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
