"""Content ids: given once, by every thread, process and issuer, also when writers are killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from benchmarks.registry_soak import Said, judge, manifest_of
from platemark.errors import ProvenanceUnavailable
from platemark.provenance.registry import BLOCK, Registry
from platemark.provenance.tables import LEASES

ROOT = Path(__file__).parents[3]


def test_leases_go_on_where_they_ended_and_differ_by_issuer(place: Any) -> None:
    with place.open() as registry:
        first = [registry.lease(5) for _ in range(BLOCK + 1)]
        other = registry.lease(6)
        assert first == list(range(first[0], first[0] + BLOCK + 1))
        assert first[0] % BLOCK == 0
        assert first[0] > 0
        assert other != first[0]
    with place.open() as registry:
        assert registry.lease(5) == first[0] + 2 * BLOCK  # the rest of the second block is lost, never given twice


def test_a_block_is_durable_before_its_first_id_is_out(registry: Registry) -> None:
    first = registry.lease(5)
    with registry.database.begin() as connection:
        assert connection.execute(sa.select(LEASES.c.next_id).where(LEASES.c.issuer == 5)).scalar() == first + BLOCK


def test_a_registry_from_a_backup_can_leave_out_what_was_given_since(place: Any) -> None:
    with place.open() as registry:
        given = [registry.lease(issuer) for issuer in (5, 6)]
        jumps = registry.skip_ids()
        after = [registry.lease(issuer) for issuer in (5, 6)]
        for issuer, before, now in zip((5, 6), given, after, strict=True):
            assert now == before + BLOCK + jumps[issuer]
            assert now % BLOCK == 0
            assert (2**42 - before) // 9 < jumps[issuer] <= (2**42 - before) // 4
        with pytest.raises(ProvenanceUnavailable, match="used up"):  # rather than a jump that is none
            all(registry.skip_ids() for _ in range(200))
        assert after[0] < registry.lease(5) <= 2**42 - BLOCK


def test_used_up_ids_are_refused(place: Any) -> None:
    with place.open() as registry:
        registry.lease(5)
        with registry.database.begin(write=True) as connection:
            connection.execute(sa.update(LEASES).values(next_id=2**42 - BLOCK))
    with place.open() as registry:
        assert [registry.lease(5) for _ in range(BLOCK)][-1] == 2**42 - 1
        with pytest.raises(ProvenanceUnavailable, match="used up"):
            registry.lease(5)
        assert registry.lease(6) >= BLOCK


def test_threads_get_different_ids(registry: Registry) -> None:
    ids: list[tuple[int, int]] = []

    def take(issuer: int) -> None:
        ids.extend((issuer, registry.lease(issuer)) for _ in range(100))

    threads = [threading.Thread(target=take, args=(k % 2,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == len(set(ids)) == 800


def test_processes_that_start_together_get_different_ids(place: Any) -> None:
    """Also who makes the registry is settled between them."""
    code = (
        "import sys; from pathlib import Path; from platemark.provenance.registry import Registry\n"
        "with Registry.open(Path(sys.argv[1])) as r: print(*[r.lease(5) for _ in range(150)])"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(place.home)]
    environment = os.environ | ({"PLATEMARK_REGISTRY": place.url} if place.url else {})
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(4)]
    ids = [int(word) for process in started for word in process.communicate()[0].split()]
    assert [process.returncode for process in started] == [0] * 4
    assert len(ids) == len(set(ids)) == 600


def test_a_forked_child_gets_its_own_ids(place: Any) -> None:
    code = textwrap.dedent("""
        import os, sys
        from pathlib import Path
        from platemark.provenance.registry import Registry
        registry = Registry.open(Path(sys.argv[1]), sys.argv[2] or None)
        print(registry.lease(5), flush=True)
        if (child := os.fork()) == 0:
            print(*[registry.lease(5) for _ in range(3)], flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print(*[registry.lease(5) for _ in range(3)])
    """)
    done = subprocess.run([sys.executable, "-c", code, str(place.home), place.url or ""], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(set(done.stdout.split())) == 7


def test_killed_writers_lose_no_record_and_reuse_no_id(place: Any) -> None:
    """300 kills here; `make soak` does 10,000."""
    command = [sys.executable, "-W", "error", "-m", "benchmarks.registry_soak", "--kills", "300"]
    environment = {name: value for name, value in os.environ.items() if name != "PLATEMARK_REGISTRY"}
    environment |= {"PLATEMARK_REGISTRY": place.url} if place.url else {}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["database"] == ("postgresql" if place.url else "sqlite")
    assert report["kills"] >= 300
    assert report["committed"] >= 100
    assert report["stored"] >= report["committed"]
    assert [report[promise] for promise in ("lost", "reused", "altered", "unleased", "missing_from_index")] == [0] * 5


def test_the_soak_sees_broken_promises() -> None:
    said = Said()
    said.hear(b"leased 5 1\nleased 5 2\ncommitted 5 1\nleased 5 2\nleased 6 2\ncommit")
    said.hear(b"ted 5 2\nleas")
    assert said.leased == Counter({(5, 1): 1, (5, 2): 2, (6, 2): 1})
    assert said.committed == {(5, 1), (5, 2)}
    report = judge(said, {(5, 1): b"other", (7, 7): manifest_of((7, 7))})
    assert (report["lost"], report["reused"], report["altered"], report["unleased"], report["stored_unsaid"]) == (1, 1, 1, 1, 1)
