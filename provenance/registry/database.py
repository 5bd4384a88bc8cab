"""Connections and transactions of one registry database, SQLite or PostgreSQL. Errors come out as ours, in one line, without secrets.

SQLite: WAL, synchronous FULL, writers take the lock when they begin. PostgreSQL: synchronous_commit on, tables in the schema `platemark`
(or where the URL's own `options` point), dead connections noticed within half a minute and replaced. Knows no table.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from platemark.errors import ProvenanceUnavailable
from platemark.provenance.registry.location import Location

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

SCHEMA = "platemark"
BUSY_SECONDS = 30.0
_CONNECT_SECONDS = 5
_CONNECTIONS, _EXTRA_CONNECTIONS = 8, 24
_FILE_REMEDY = "make it readable and writable, free some disk space, or restore it from a backup"
_SERVER_REMEDY = "start the server or correct the registry's URL; nothing was released"
# A server that vanished without a word is noticed by the kernel, not waited for.
_KEEPALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20_000}


class Database:
    """Safe to share between threads; a forked child gets connections of its own. Connects at first use."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self._process = os.getpid()
        self._engine: Engine | None = None

    @property
    def postgres(self) -> bool:
        return self.location.path is None

    def close(self) -> None:
        if self._engine is not None:
            _dispose(self._engine, self._process)
        self._engine = None

    @contextmanager
    def begin(self, *, write: bool = False) -> Iterator[Connection]:
        """A transaction. Raises `ProvenanceUnavailable`; an `IntegrityError` of SQLAlchemy is the caller's to understand."""
        import sqlalchemy as sa

        try:
            with self._ready().execution_options(begin="IMMEDIATE" if write else "DEFERRED").begin() as connection:
                yield connection
        except sa.exc.IntegrityError:
            raise
        except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
            raise self.failed(getattr(error, "orig", None) or "all connections are busy") from error

    @contextmanager
    def autocommit(self) -> Iterator[Connection]:
        """A connection outside of transactions, for what must not run in one (VACUUM). Raises as `begin`."""
        import sqlalchemy as sa

        try:
            with self._ready().execution_options(isolation_level="AUTOCOMMIT", begin=None).connect() as connection:
                yield connection
        except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
            raise self.failed(getattr(error, "orig", None) or "all connections are busy") from error

    def failed(self, why: object) -> ProvenanceUnavailable:
        """The error that names this database and the cause."""
        remedy = _SERVER_REMEDY if self.postgres else _FILE_REMEDY
        first = next((line for line in str(why).splitlines() if line.strip()), type(why).__name__)  # further lines may quote a row
        return ProvenanceUnavailable(f"the registry {self.location.shown!r} failed: {self.location.scrub(first)}", remedy)

    def _ready(self) -> Engine:
        if self._process != os.getpid():  # a forked child must not use its parent's connections
            if self._engine is not None:
                self._engine.dispose(close=False)
            self._process, self._engine = os.getpid(), None
        if self._engine is None:
            self._engine = _postgres(self.location) if self.postgres else _sqlite(self.location)
            weakref.finalize(self, _dispose, self._engine, os.getpid())
        return self._engine


def _dispose(engine: Engine, process: int) -> None:
    if process == os.getpid():  # a forked child must not close what is its parent's
        engine.dispose()


def _sqlite(location: Location) -> Engine:
    import sqlalchemy as sa

    engine = sa.create_engine(
        location.url,
        connect_args={"timeout": BUSY_SECONDS},
        pool_size=_CONNECTIONS,
        max_overflow=_EXTRA_CONNECTIONS,
        hide_parameters=True,
    )

    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say so, below
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA fullfsync=ON")  # macOS: fsync alone does not reach the disk

    def begin(connection: Connection) -> None:
        if mode := connection.get_execution_options().get("begin", "DEFERRED"):
            connection.exec_driver_sql(f"BEGIN {mode}")

    sa.event.listen(engine, "connect", prepare)
    sa.event.listen(engine, "begin", begin)
    return engine


def _postgres(location: Location) -> Engine:
    import sqlalchemy as sa

    own = {} if "options" in location.url.query else {"options": f"-csearch_path={SCHEMA}"}
    engine = sa.create_engine(
        location.url,
        connect_args={"connect_timeout": _CONNECT_SECONDS, "application_name": "platemark", **_KEEPALIVE, **own},
        pool_size=_CONNECTIONS,
        max_overflow=_EXTRA_CONNECTIONS,
        pool_pre_ping=True,
        hide_parameters=True,
    )

    def prepare(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET synchronous_commit TO on")  # whatever the server's default: a commit must outlive a crash
            cursor.execute(f"SET lock_timeout TO '{int(BUSY_SECONDS)}s'")
        connection.commit()

    sa.event.listen(engine, "connect", prepare)
    return engine
