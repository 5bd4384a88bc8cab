"""Content ids, leased in blocks of 64 by each process. A block is durable before its first id is handed out; what is left of it is lost.

Knows nothing of records: an id may never be used, but is never given again.
"""

from __future__ import annotations

import os
import secrets
import threading
from typing import TYPE_CHECKING

from platemark.errors import ProvenanceUnavailable
from platemark.provenance.registry.database import Database

if TYPE_CHECKING:
    from sqlalchemy import Connection

BLOCK = 64
CONTENT_ID_BITS = 42
_END = 2**CONTENT_ID_BITS
_LEAST_LEFT = 1 << 20  # blocks, below which an eighth is no longer far ahead


class Leases:
    """Safe to share between threads; a forked child leases its own blocks."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._free: dict[int, range] = {}  # issuer → what is left of its leased block

    def take(self, issuer: int) -> int:
        """An id that nobody else has or ever gets for this issuer. Raises `ProvenanceUnavailable`."""
        if self._process != os.getpid():
            self._reset()
        with self._lock:
            free = self._free.get(issuer) or self._lease(issuer)
            self._free[issuer] = free[1:]
            return free[0]

    def skip(self) -> dict[int, int]:
        """Jumps over an eighth to a quarter of what each issuer has left, and forgets the blocks held here; returns the jumps by issuer.

        Raises `ProvenanceUnavailable`, also where an issuer has too little left.
        """
        import sqlalchemy as sa

        from platemark.provenance.tables import LEASES

        jumps: dict[int, int] = {}
        with self._database.begin(write=True) as connection:
            for row in connection.execute(sa.select(LEASES).with_for_update()).all():
                left = (_END - row.next_id) // BLOCK
                if left < _LEAST_LEFT:
                    raise _used_up(row.issuer)
                jumps[row.issuer] = BLOCK * (left // 8 + secrets.randbelow(left // 8 + 1))
                moved = sa.update(LEASES).where(LEASES.c.issuer == row.issuer)
                connection.execute(moved.values(next_id=row.next_id + jumps[row.issuer]))
        with self._lock:
            self._free.clear()
        return jumps

    def _lease(self, issuer: int) -> range:
        with self._database.begin(write=True) as connection:
            start = _advance(connection, issuer)
            if start is None:
                _introduce(connection, issuer)
                start = _advance(connection, issuer)
        if start is None:
            raise _used_up(issuer)
        return range(start, start + BLOCK)


def _used_up(issuer: int) -> ProvenanceUnavailable:
    return ProvenanceUnavailable(f"issuer {issuer} has used up its content ids", "run `platemark keys init` in a new state folder")


def _advance(connection: Connection, issuer: int) -> int | None:
    """Moves the issuer's next id on by a block; None where the issuer is new, or at its end."""
    import sqlalchemy as sa

    from platemark.provenance.tables import LEASES

    moved = (
        sa.update(LEASES)
        .where(LEASES.c.issuer == issuer, LEASES.c.next_id <= _END - BLOCK)
        .values(next_id=LEASES.c.next_id + BLOCK)
        .returning(LEASES.c.next_id)
    )
    after = connection.execute(moved).scalar()
    return None if after is None else int(after) - BLOCK


def _introduce(connection: Connection, issuer: int) -> None:
    """A first block at a random place keeps a lost registry from giving its old ids again."""
    from sqlalchemy.dialects import postgresql, sqlite

    from platemark.provenance.tables import LEASES

    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    start = BLOCK * (1 + secrets.randbelow(_END // 2 // BLOCK))
    connection.execute(insert(LEASES).values(issuer=issuer, next_id=start).on_conflict_do_nothing())
