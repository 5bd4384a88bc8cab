"""The open registry: leases, commits, finds. Knows where records lie, not what they mean."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from platemark.errors import InputError, ProvenanceUnavailable
from platemark.provenance.home import make_private
from platemark.provenance.record import ProvenanceRecord
from platemark.provenance.registry import prune, schema, search
from platemark.provenance.registry.database import Database
from platemark.provenance.registry.entry import Entry, Filter, entry_of
from platemark.provenance.registry.leases import Leases
from platemark.provenance.registry.location import FILE, Location, configured, locate

if TYPE_CHECKING:
    from sqlalchemy import Connection

_COPIED = ("issuer", "content_id", "created", "image_sha256", "manifest_label")


class Registry:
    """Safe to share between threads; a forked child gets its own connections and its own ids."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self.database = Database(location)
        self._leases = Leases(self.database)

    @classmethod
    def open(cls, home: Path, url: str | None = None, *, create: bool = True) -> Self:
        """Opens the registry of a state folder, makes it where there is none (unless `create` is False), and brings its schema up to date.

        `url` (else `$PLATEMARK_REGISTRY`, else `registry.toml` in the folder) names a PostgreSQL database or an SQLite file; without any it
        is `registry.sqlite` in the folder. Raises `ProvenanceUnavailable` (not reachable, not writable, damaged, or made by a newer
        Platemark), `InputError` (no usable URL, or no registry and not to be made) or `MissingExtra` (no PostgreSQL driver).
        """
        location = locate(home, url)
        if not create and location.path is not None and not location.path.is_file():
            raise InputError(f"there is no registry at {location.shown!r}", "make a picture first, or name another registry")
        if location.path is not None and location.path.parent == home:
            make_private(home)
        registry = cls(location)
        schema.ensure(registry.database)
        return registry

    @classmethod
    def exists(cls, home: Path, url: str | None = None) -> bool:
        """Whether there is a registry to ask: a file, or a configured PostgreSQL database (in reach or not). Raises as `locate`."""
        if configured(home, url) is None:
            return (home / FILE).is_file()  # without importing anything
        path = locate(home, url).path
        return path is None or path.is_file()

    @property
    def where(self) -> str:
        """Names the database; never a password."""
        return self.location.shown

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.database.close()

    def lease(self, issuer: int) -> int:
        """A content id that nobody else has or ever gets for this issuer. Raises `ProvenanceUnavailable`."""
        return self._leases.take(issuer)

    def skip_ids(self) -> dict[int, int]:
        """Moves every issuer's next id far ahead; returns how far by issuer.

        For a registry that came back from an older backup: it does not know which ids were given since, and must not give them again.
        Raises `ProvenanceUnavailable`.
        """
        return self._leases.skip()

    def commit(self, record: ProvenanceRecord, manifest: bytes, *, skeleton: bytes | None = None) -> None:
        """Stores a record; it is durable on return. `skeleton`: of `provenance.png`, with which a stripped PNG can be restored whole.

        Raises `ProvenanceUnavailable`, also where its content id is recorded already; then the picture must not be released.
        """
        import sqlalchemy as sa

        from platemark.provenance.tables import HASH_WORDS, RECORDS

        try:
            with self.database.begin(write=True) as connection:
                connection.execute(sa.insert(RECORDS).values(**_row(record), manifest=manifest, skeleton=skeleton))
                connection.execute(sa.insert(HASH_WORDS), search.index_rows(record.issuer, record.content_id, record.perceptual_hash))
        except sa.exc.IntegrityError as error:
            raise ProvenanceUnavailable(f"content id {record.content_id} is recorded already", "reserve a new id") from error

    def find(self, content_id: int, issuer: int) -> Entry | None:
        """The entry of one picture, or None."""
        return self._first(Filter(content_id=content_id, issuer=issuer))

    def find_by_label(self, manifest_label: str) -> Entry | None:
        """The entry whose C2PA manifest has this label, or None."""
        return self._first(Filter(manifest_label=manifest_label))

    def find_by_sha256(self, image_sha256: str) -> Entry | None:
        """The entry of exactly this released file, or None."""
        return self._first(Filter(image_sha256=image_sha256))

    def find_by_hash(
        self, perceptual_hash: str, max_distance: int = 31, *, limit: int = 100, wanted: Filter | None = None
    ) -> list[tuple[int, Entry]]:
        """Entries within `max_distance` of 256 bits (that also match `wanted`), nearest first, as (distance, entry), at most `limit`.

        Up to 47 bits an index answers; beyond, every record is compared. Raises `InputError` unless the hash is 64 hex digits.
        """
        import sqlalchemy as sa

        from platemark.provenance.tables import RECORDS

        looks = search.check_hash(perceptual_hash)
        with self.database.begin() as connection:
            near = search.nearest(connection, looks, max_distance, (wanted or Filter()).where())[:limit]
            keys = sa.tuple_(RECORDS.c.issuer, RECORDS.c.content_id).in_([key[1:] for key in near])
            found = {(entry.issuer, entry.content_id): entry for entry in self._select(connection, keys)} if near else {}
        return [(distance, found[issuer, content_id]) for distance, issuer, content_id in near if (issuer, content_id) in found]

    def search(self, wanted: Filter, *, limit: int = 100) -> list[Entry]:
        """The newest entries that match, at most `limit`."""
        from platemark.provenance.tables import RECORDS

        newest = (RECORDS.c.created.desc(), RECORDS.c.issuer, RECORDS.c.content_id.desc())
        with self.database.begin() as connection:
            return self._select(connection, *wanted.where(), order=newest, limit=limit)

    def entries(self, wanted: Filter | None = None, *, batch: int = 500) -> Iterator[Entry]:
        """All entries that match, in the order of issuer and content id, read in batches: no long transaction, little memory."""
        import sqlalchemy as sa

        from platemark.provenance.tables import RECORDS

        key = (RECORDS.c.issuer, RECORDS.c.content_id)
        last: list[Any] = []
        while True:
            with self.database.begin() as connection:
                found = self._select(connection, *(wanted or Filter()).where(), *last, order=key, limit=batch)
            yield from found
            if len(found) < batch:
                return
            last = [sa.tuple_(*key) > sa.tuple_(sa.literal(found[-1].issuer), sa.literal(found[-1].content_id, sa.BigInteger))]

    def all(self) -> list[Entry]:
        """Every entry, in the order of issuer and content id."""
        return list(self.entries())

    def count(self, wanted: Filter | None = None) -> int:
        import sqlalchemy as sa

        from platemark.provenance.tables import RECORDS

        with self.database.begin() as connection:
            query = sa.select(sa.func.count()).select_from(RECORDS).where(*(wanted or Filter()).where())
            return int(connection.execute(query).scalar_one())

    def prune(self, before: datetime, *, keep: prune.Keep = "hashes", issuer: int | None = None, dry_run: bool = False) -> prune.Pruned:
        """Empties entries created before a moment: see `registry.prune`. Their ids and hashes stay, and no id is ever given again."""
        return prune.prune(self.database, Filter(until=before, issuer=issuer), keep=keep, dry_run=dry_run)

    def compact(self) -> None:
        """Gives the space of pruned entries back to the file system (SQLite), or to later records (PostgreSQL)."""
        prune.compact(self.database)

    def version(self) -> str | None:
        """The revision of the schema; None where there is none yet."""
        return schema.version(self.database)

    def _first(self, wanted: Filter) -> Entry | None:
        with self.database.begin() as connection:
            return next(iter(self._select(connection, *wanted.where(), limit=1)), None)

    def _select(self, connection: Connection, *where: Any, order: Any = (), limit: int | None = None) -> list[Entry]:
        import sqlalchemy as sa

        from platemark.provenance.tables import RECORDS

        rows = connection.execute(sa.select(RECORDS).where(*where).order_by(*order).limit(limit)).all()
        return [entry_of(row, self.where) for row in rows]


def _row(record: ProvenanceRecord) -> dict[str, Any]:
    """The columns of a record. Raises `InputError` where its perceptual hash is none."""
    if not 0 <= record.content_id < 2**63:
        raise InputError(f"content id {record.content_id} does not fit the registry", "lease one")
    return {
        **{name: getattr(record, name) for name in _COPIED},
        "perceptual_hash": search.check_hash(record.perceptual_hash),
        "model_sha256": record.facts.model_sha256,
        "bundle_sha256": record.facts.bundle_sha256,
        "request_hmac": record.facts.request_hmac,
        "decision": str(record.facts.decision.get("action", "")),
        "record": record.model_dump_json(),
    }
