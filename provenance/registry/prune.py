"""Pruning: empties old entries by policy. What always stays: issuer, content id, time, image sha256, perceptual hash, manifest label, model
hash and the decision's name, so that ids are never given again, copies are still recognised, and a trace can say "pruned".

`keep="record"` drops the manifest alone (most of the bytes); `keep="hashes"` also the record and the keyed hash of the request.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from platemark.provenance.registry.database import BUSY_SECONDS, Database
from platemark.provenance.registry.entry import Filter, timestamp

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection

Keep = Literal["hashes", "record"]
_BATCH = 500  # rows of one transaction: writers wait for milliseconds, not for the whole prune


@dataclass(frozen=True)
class Pruned:
    """How many entries were emptied (or would be), and how many bytes they held."""

    entries: int
    freed_bytes: int


def prune(database: Database, wanted: Filter, *, keep: Keep, dry_run: bool) -> Pruned:
    """Empties the entries that match, a batch a transaction: stopped half way, it goes on where it was. Raises `ProvenanceUnavailable`."""
    conditions = [*wanted.where(), _full(keep)]
    if dry_run:
        with database.begin() as connection:
            return _measure(connection, conditions)
    now, total = timestamp(datetime.now(UTC)), Pruned(0, 0)
    while True:
        with database.begin(write=True) as connection:
            if not database.postgres:
                connection.exec_driver_sql("PRAGMA secure_delete=ON")  # freed pages are zeroed, not just forgotten
            done = _empty(connection, conditions, keep, now)
        total = Pruned(total.entries + done.entries, total.freed_bytes + done.freed_bytes)
        if done.entries < _BATCH:
            return total


def compact(database: Database) -> None:
    """VACUUM; for SQLite also the write-ahead log is emptied. Raises `ProvenanceUnavailable`."""
    path = database.location.path
    if path is None:
        with database.autocommit() as connection:
            for table in ("records", "hash_words"):
                connection.exec_driver_sql(f"VACUUM {table}")
        return
    database.close()
    try:
        with closing(sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)) as raw:
            raw.execute("VACUUM")
            raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except sqlite3.Error as error:
        raise database.failed(error) from error


def _full(keep: Keep) -> ColumnElement[bool]:
    """Entries that still hold what is to go."""
    import sqlalchemy as sa

    from platemark.provenance.tables import RECORDS

    return sa.or_(RECORDS.c.pruned.is_(None), RECORDS.c.record != "") if keep == "hashes" else RECORDS.c.pruned.is_(None)


def _measure(connection: Connection, conditions: list[ColumnElement[bool]]) -> Pruned:
    import sqlalchemy as sa

    from platemark.provenance.tables import RECORDS

    rows = sa.select(sa.func.count(), sa.func.sum(sa.func.length(RECORDS.c.manifest))).select_from(RECORDS).where(*conditions)
    count, size = connection.execute(rows).one()
    return Pruned(int(count), int(size or 0))


def _empty(connection: Connection, conditions: list[ColumnElement[bool]], keep: Keep, now: str) -> Pruned:
    import sqlalchemy as sa

    from platemark.provenance.tables import RECORDS

    key = sa.tuple_(RECORDS.c.issuer, RECORDS.c.content_id)
    chosen = sa.select(RECORDS.c.issuer, RECORDS.c.content_id, sa.func.length(RECORDS.c.manifest).label("size"))
    rows = connection.execute(chosen.where(*conditions).limit(_BATCH)).all()
    gone: dict[str, Any] = {"manifest": b"", "skeleton": None, "pruned": sa.func.coalesce(RECORDS.c.pruned, now)}
    if keep == "hashes":
        gone |= {"record": "", "request_hmac": None}
    if rows:
        connection.execute(sa.update(RECORDS).where(key.in_([(row.issuer, row.content_id) for row in rows])).values(**gone))
    return Pruned(len(rows), sum(row.size for row in rows))
