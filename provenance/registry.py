"""The registry: what was released, and which content ids are taken. SQLite (WAL, synchronous FULL) at `$PLATEMARK_HOME/registry.sqlite`.

A content id is unique per issuer. Ids are leased in blocks of 64; a lease is durable before its first id is used, so an id is never given
twice, also after a kill or a power cut: what is left of a block is lost instead. Records are never changed once committed.
Knows nothing of pictures. SQLAlchemy and Alembic are imported at first use, Alembic only where the schema is not the newest.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError

from platemark.errors import ProvenanceUnavailable
from platemark.imaging import hash_distance
from platemark.provenance.home import locked, make_private
from platemark.provenance.record import ProvenanceRecord

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

FILE = "registry.sqlite"
HEAD = "0001"
BLOCK = 64
CONTENT_ID_BITS = 42
_BUSY_SECONDS = 30.0
_REMEDY = "make it readable and writable, free some disk space, or restore it from a backup"


@dataclass(frozen=True)
class Entry:
    """One committed record with its C2PA manifest store."""

    record: ProvenanceRecord
    manifest: bytes

    @property
    def content_id(self) -> int:
        return self.record.content_id


class Registry:
    """An open registry. Safe to share between threads; a forked child gets its own connection and its own ids."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._process = 0
        self._engine: Engine | None = None
        self._free: dict[int, range] = {}  # issuer → what is left of its leased block

    @classmethod
    def open(cls, home: Path) -> Self:
        """Opens the registry of a state folder, makes it where there is none, and brings its schema up to date under a file lock.

        Raises `ProvenanceUnavailable`: not writable, damaged, or made by a newer Platemark.
        """
        make_private(home)
        registry = cls(home / FILE)
        if not registry.path.exists() or registry.version() != HEAD:
            with locked(home, "registry"):
                if not registry.path.exists():
                    registry.path.touch(mode=0o600)
                if registry.version() != HEAD:
                    registry._migrate()
        return registry

    @classmethod
    def exists(cls, home: Path) -> bool:
        return (home / FILE).is_file()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._engine is not None:
            _dispose(self._engine, self._process)
        self._engine = None

    def lease(self, issuer: int) -> int:
        """A content id that nobody else has or ever gets for this issuer. Raises `ProvenanceUnavailable`."""
        with self._lock:
            self._check_process()
            free = self._free.get(issuer) or self._lease_block(issuer)
            self._free[issuer] = free[1:]
            return free[0]

    def commit(self, record: ProvenanceRecord, manifest: bytes) -> None:
        """Stores a record; it is durable on return. Raises `ProvenanceUnavailable`, also where its content id is recorded already."""
        import sqlalchemy as sa

        from platemark.provenance.tables import RECORDS

        columns = ("issuer", "content_id", "created", "image_sha256", "perceptual_hash", "manifest_label")
        values = {name: getattr(record, name) for name in columns}
        try:
            with self._begin(write=True) as connection:
                connection.execute(sa.insert(RECORDS).values(**values, record=record.model_dump_json(), manifest=manifest))
        except sa.exc.IntegrityError as error:
            raise ProvenanceUnavailable(f"content id {record.content_id} is recorded already", "reserve a new id") from error

    def find(self, content_id: int, issuer: int) -> Entry | None:
        """The record of one picture, or None."""
        from platemark.provenance.tables import RECORDS

        return next(iter(self._select(RECORDS.c.content_id == content_id, RECORDS.c.issuer == issuer)), None)

    def find_by_label(self, manifest_label: str) -> Entry | None:
        """The record whose C2PA manifest has this label, or None."""
        from platemark.provenance.tables import RECORDS

        return next(iter(self._select(RECORDS.c.manifest_label == manifest_label)), None)

    def find_by_hash(self, perceptual_hash: str, max_distance: int = 31) -> list[tuple[int, Entry]]:
        """Records within `max_distance` of 256 bits, nearest first, as (distance, entry). Compares with every record."""
        import sqlalchemy as sa

        from platemark.provenance.tables import RECORDS

        with self._begin() as connection:
            rows = connection.execute(sa.select(RECORDS.c.issuer, RECORDS.c.content_id, RECORDS.c.perceptual_hash)).all()
        near = sorted((hash_distance(perceptual_hash, row.perceptual_hash), row.issuer, row.content_id) for row in rows)
        hits = [(distance, self.find(content_id, issuer)) for distance, issuer, content_id in near if distance <= max_distance]
        return [(distance, entry) for distance, entry in hits if entry is not None]

    def all(self) -> list[Entry]:
        """Every record, in the order of issuer and content id."""
        return self._select()

    def count(self) -> int:
        import sqlalchemy as sa

        from platemark.provenance.tables import RECORDS

        with self._begin() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(RECORDS)).scalar_one())

    def version(self) -> str | None:
        """The revision of the schema; None where there is none yet."""
        import sqlalchemy as sa

        with self._begin() as connection:
            if not connection.execute(sa.text("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'")).first():
                return None
            found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
            return None if found is None else str(found)

    def _select(self, *where: Any) -> list[Entry]:
        import sqlalchemy as sa

        from platemark.provenance.tables import RECORDS

        query = sa.select(RECORDS.c.record, RECORDS.c.manifest).where(*where).order_by(RECORDS.c.issuer, RECORDS.c.content_id)
        with self._begin() as connection:
            rows = connection.execute(query).all()
        try:
            return [Entry(ProvenanceRecord.model_validate_json(row.record), bytes(row.manifest)) for row in rows]
        except ValidationError as error:
            raise ProvenanceUnavailable(f"a record in {str(self.path)!r} is damaged", "restore it from a backup") from error

    def _lease_block(self, issuer: int) -> range:
        import sqlalchemy as sa

        from platemark.provenance.tables import LEASES

        with self._begin(write=True) as connection:
            found = connection.execute(sa.select(LEASES.c.next_id).where(LEASES.c.issuer == issuer)).scalar()
            # A first block at a random place keeps a lost registry from giving its old ids again.
            start = int(found) if found is not None else BLOCK * (1 + secrets.randbelow(2 ** (CONTENT_ID_BITS - 1) // BLOCK))
            if start + BLOCK > 2**CONTENT_ID_BITS:
                raise ProvenanceUnavailable(
                    f"issuer {issuer} has used up its content ids", "run `platemark keys init` in a new state folder"
                )
            if found is None:
                connection.execute(sa.insert(LEASES).values(issuer=issuer, next_id=start + BLOCK))
            else:
                connection.execute(sa.update(LEASES).where(LEASES.c.issuer == issuer).values(next_id=start + BLOCK))
        return range(start, start + BLOCK)

    def _check_process(self) -> None:
        """A forked child must neither use its parent's connections nor its ids."""
        if self._process != os.getpid():
            if self._engine is not None:
                self._engine.dispose(close=False)
            self._process, self._engine, self._free = os.getpid(), None, {}

    @contextmanager
    def _begin(self, *, write: bool = False) -> Iterator[Connection]:
        """A transaction; a writing one takes SQLite's write lock at once, so that it never fails half way for want of it."""
        import sqlalchemy as sa

        self._check_process()
        if self._engine is None:
            self._engine = _connect(self.path)
            weakref.finalize(self, _dispose, self._engine, os.getpid())
        try:
            with self._engine.execution_options(begin="IMMEDIATE" if write else "DEFERRED").begin() as connection:
                yield connection
        except sa.exc.IntegrityError:
            raise
        except sa.exc.DBAPIError as error:
            raise ProvenanceUnavailable(f"the registry {str(self.path)!r} failed: {error.orig}", _REMEDY) from error

    def _migrate(self) -> None:
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        try:
            with closing(sqlite3.connect(self.path, timeout=_BUSY_SECONDS)) as raw:
                raw.execute("PRAGMA journal_mode=WAL")  # stays with the file; cannot be set inside a transaction
            with self._begin(write=True) as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except CommandError as error:
            remedy = "upgrade Platemark, or set PLATEMARK_HOME to another folder"
            raise ProvenanceUnavailable(f"the registry {str(self.path)!r} was made by a newer Platemark", remedy) from error
        except sqlite3.Error as error:
            raise ProvenanceUnavailable(f"the registry {str(self.path)!r} failed: {error}", _REMEDY) from error


def _dispose(engine: Engine, process: int) -> None:
    if process == os.getpid():  # a forked child must not close what is its parent's
        engine.dispose()


def _connect(path: Path) -> Engine:
    import sqlalchemy as sa

    engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": _BUSY_SECONDS})

    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say so, below
        connection.execute("PRAGMA synchronous=FULL")

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('begin', 'DEFERRED')}")

    sa.event.listen(engine, "connect", prepare)
    sa.event.listen(engine, "begin", begin)
    return engine
