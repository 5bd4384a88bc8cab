"""PostgreSQL goes away and comes back: a clear error meanwhile, no lost record and no id twice afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from platemark.errors import ProvenanceUnavailable
from platemark.provenance.record import ProvenanceRecord
from platemark.provenance.registry import Registry
from tools.postgres import Server

pytestmark = pytest.mark.service
Make = Callable[..., ProvenanceRecord]


@pytest.fixture
def own_server(postgres: Server) -> Iterator[Server]:
    """A server that a test may stop. `postgres` says first whether there can be one."""
    made = Server()
    try:
        made.start()
        yield made
    finally:
        made.remove()


def test_a_server_that_stops_midway(own_server: Server, tmp_path: Path, make_record: Make) -> None:
    with Registry.open(tmp_path, own_server.create_database()) as registry:
        ids = [registry.lease(5) for _ in range(3)]
        registry.commit(make_record(ids[0]), b"one")
        own_server.stop(mode="immediate")
        with pytest.raises(ProvenanceUnavailable) as caught:
            registry.commit(make_record(ids[1]), b"two")
        assert "\n" not in str(caught.value)
        assert own_server.password not in str(caught.value)
        with pytest.raises(ProvenanceUnavailable, match="start the server"):
            registry.find(ids[0], 5)
        ids += [registry.lease(5) for _ in range(61)]  # what is left of the block needs no server
        with pytest.raises(ProvenanceUnavailable):
            registry.lease(5)
        own_server.start()
        registry.commit(make_record(ids[1]), b"two")
        ids += [registry.lease(5) for _ in range(70)]
        assert len(ids) == len(set(ids))
        assert [entry.manifest for entry in registry.all()] == [b"one", b"two"]


def test_crashes_of_the_server_lose_no_committed_record(own_server: Server, tmp_path: Path, make_record: Make) -> None:
    url = own_server.create_database()
    Registry.open(tmp_path, url).close()
    leased: list[int] = []
    committed: set[int] = set()
    stop = threading.Event()

    def write() -> None:
        with Registry.open(tmp_path, url) as registry:
            while not stop.is_set():
                try:
                    content_id = registry.lease(5)
                    leased.append(content_id)
                    registry.commit(make_record(content_id), b"m" * 3000)
                    committed.add(content_id)
                except ProvenanceUnavailable:
                    stop.wait(0.02)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        stop.wait(0.4)
        own_server.stop(mode="immediate")
        own_server.start()
    stop.wait(0.3)
    stop.set()
    for thread in threads:
        thread.join()
    with Registry.open(tmp_path, url) as registry:
        stored = {entry.content_id for entry in registry.all()}
    assert committed
    assert committed <= stored <= set(leased)
    assert len(leased) == len(set(leased))


def test_a_killed_connection_is_replaced(postgres: Server, tmp_path: Path) -> None:
    with Registry.open(tmp_path, postgres.create_database()) as registry:
        registry.lease(5)
        with registry.database.begin() as connection:
            mine: Any = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        import psycopg

        with psycopg.connect(postgres.url(), autocommit=True) as raw:
            raw.execute("SELECT pg_terminate_backend(%s)", (mine,))
        assert registry.count() == 0
