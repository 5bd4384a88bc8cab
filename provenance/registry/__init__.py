"""The registry: what was released, and which content ids are taken. SQLite by default, PostgreSQL by URL.

A content id is unique per issuer. Ids are leased in blocks of 64; a lease is durable before its first id is used, so an id is never given
twice, also after a kill or a power cut: what is left of a block is lost instead. A committed record is never changed; pruning empties it,
but its id and hashes stay. SQLAlchemy and Alembic are imported at first use, Alembic only where the schema is not the newest.

    location.py  which database: option, environment, configuration file    schema.py  versions and migrations
    database.py  connections, transactions, errors                          leases.py  content ids
    entry.py     what comes out; filters                                    search.py  near perceptual hashes
    store.py     the open registry                                          export.py, prune.py

Knows nothing of pictures.
"""

from __future__ import annotations

from platemark.provenance.registry.entry import Entry, Filter
from platemark.provenance.registry.leases import BLOCK, CONTENT_ID_BITS
from platemark.provenance.registry.location import FILE
from platemark.provenance.registry.schema import HEAD
from platemark.provenance.registry.store import Registry

__all__ = ["BLOCK", "CONTENT_ID_BITS", "FILE", "HEAD", "Entry", "Filter", "Registry"]
