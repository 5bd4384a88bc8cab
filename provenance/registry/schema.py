"""The schema's version, and bringing a database up to it. Alembic is imported only where something must be done.

A database that a newer Platemark made is refused; going back is not offered. Knows nothing of what the tables hold.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from platemark.errors import ProvenanceUnavailable
from platemark.provenance.home import locked, make_private, unwritable
from platemark.provenance.registry.database import BUSY_SECONDS, SCHEMA, Database

if TYPE_CHECKING:
    from sqlalchemy import Connection

HEAD = "0002"
_LOCK = 0x706C6174656D6B  # of PostgreSQL's advisory locks: any number that is ours


def version(database: Database) -> str | None:
    """The revision of the schema; None where there is none yet. Raises `ProvenanceUnavailable`."""
    import sqlalchemy as sa

    in_file = "SELECT name FROM sqlite_master WHERE name = 'alembic_version'"
    there = "SELECT to_regclass('alembic_version')" if database.postgres else in_file
    with database.begin() as connection:
        if connection.execute(sa.text(there)).scalar() is None:
            return None
        found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
        return None if found is None else str(found)


def ensure(database: Database) -> None:
    """Makes the database where there is none, and brings its schema up to date, one process at a time.

    Raises `ProvenanceUnavailable`: not reachable, not writable, damaged, or made by a newer Platemark.
    """
    path = database.location.path
    if path is None:
        if version(database) != HEAD:
            _migrate(database)
    elif not path.exists() or version(database) != HEAD:
        make_private(path.parent)
        with locked(path.parent, path.stem):
            _touch(path)
            if version(database) != HEAD:
                _migrate(database)


def _touch(path: Path) -> None:
    try:
        if not path.exists():
            path.touch(mode=0o600)
    except OSError as error:
        raise unwritable(path, error) from error


def _migrate(database: Database) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent.parent / "migrations").replace("%", "%%"))
    _prepare(database)
    try:
        with database.begin(write=True) as connection:
            _wait_in_line(database, connection)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except (ValueError, KeyError, TypeError) as error:  # what a migration meets in a damaged record
        remedy = "restore it from a backup; nothing was changed"
        raise ProvenanceUnavailable(f"the registry {database.location.shown!r} cannot be brought up to date", remedy) from error
    except CommandError as error:
        remedy = "upgrade Platemark, or name another registry"
        raise ProvenanceUnavailable(f"the registry {database.location.shown!r} was made by a newer Platemark", remedy) from error
    database.close()  # what its connections learned of the empty database is old now


def _prepare(database: Database) -> None:
    """What cannot be done inside the migrating transaction."""
    path = database.location.path
    if path is not None:
        try:
            with closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as raw:
                raw.execute("PRAGMA journal_mode=WAL")  # stays with the file
        except sqlite3.Error as error:
            raise database.failed(error) from error
    elif "options" not in database.location.url.query:
        with database.begin(write=True) as connection:
            _wait_in_line(database, connection)
            found = connection.exec_driver_sql(f"SELECT to_regnamespace('{SCHEMA}')").scalar()
            if found is None:
                connection.exec_driver_sql(f"CREATE SCHEMA {SCHEMA}")


def _wait_in_line(database: Database, connection: Connection) -> None:
    """PostgreSQL: one migrating process at a time; SQLite's writing transaction is that already."""
    if database.postgres:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
