"""The registry's everyday questions, answered for commands: what is there, what matches, what would be pruned."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from platemark.errors import InputError
from platemark.imaging import decode, perceptual_hash
from platemark.provenance.registry import schema
from platemark.provenance.registry.database import Database
from platemark.provenance.registry.entry import Entry, Filter
from platemark.provenance.registry.location import CONFIGURATION, FILE, VARIABLE, configure, configured, locate
from platemark.provenance.registry.prune import Keep, Pruned
from platemark.provenance.registry.store import Registry


def describe(home: Path, url: str | None = None) -> dict[str, Any]:
    """Where the registry is and what it holds; plain JSON types. Makes no database and migrates none."""
    location = locate(home, url)
    found: dict[str, Any] = {"registry": location.shown, "named_by": _named_by(home, url), "schema": None, "newest": schema.HEAD}
    if location.path is not None and not location.path.exists():
        return found | {"records": 0}
    database = Database(location)
    try:
        found["schema"] = schema.version(database)
    finally:
        database.close()
    if found["schema"] != schema.HEAD:
        return found
    with Registry(location) as registry:
        found["records"] = registry.count()
    return found | ({"bytes": location.path.stat().st_size} if location.path is not None else {})


def use(home: Path, url: str | None) -> str:
    """Makes the database at `url` (None: the file in the state folder) the registry from now on; returns its name, without a password.

    It is opened first, so a database that cannot be used is not chosen. Raises as `Registry.open`.
    """
    if url is not None:
        Registry.open(home, url).close()
    configure(home, url)
    return locate(home, url or str(home / FILE)).shown


def migrate(home: Path, url: str | None = None) -> tuple[str | None, str | None]:
    """The schema's version before (None: there was no registry) and after being brought up to date."""
    before = describe(home, url)["schema"]
    with Registry.open(home, url) as registry:
        return before, registry.version()


def make_filter(*, since: datetime | None = None, until: datetime | None = None, **wanted: Any) -> Filter:
    """A filter from the words of the command line: times without a zone are UTC, hashes may be upper case."""
    names = {"sha256": "image_sha256", "manifest": "manifest_label", "model": "model_sha256"}
    values: dict[str, Any] = {names.get(name, name): value for name, value in wanted.items()}
    for name in ("image_sha256", "model_sha256"):
        if values.get(name) is not None:
            values[name] = values[name].strip().lower()
    return Filter(**values, since=_utc(since), until=_utc(until))


def find(registry: Registry, wanted: Filter, limit: int) -> list[Entry]:
    """The newest matches. Raises `InputError` where the filter asks for nothing in particular."""
    if wanted == Filter():
        raise InputError("nothing to search for", "give --image, --content-id, --sha256, --since, ...; `registry export` gives everything")
    return registry.search(wanted, limit=limit)


def find_alike(registry: Registry, picture: Path, wanted: Filter, max_distance: int, limit: int) -> list[tuple[int, Entry]]:
    """Registered pictures that look like this one, nearest first, with the number of bits that differ; only those that match `wanted`.

    Raises `ImageError` or `InputError` for the file.
    """
    return registry.find_by_hash(perceptual_hash(decode(picture).array), max_distance, limit=limit, wanted=wanted)


def prune(registry: Registry, days: float, *, keep: Keep, issuer: int | None, dry_run: bool = False, compact: bool = False) -> Pruned:
    """Empties what was released more than so many days ago."""
    try:
        before = datetime.now(UTC) - timedelta(days=days)
    except (OverflowError, ValueError) as error:
        raise InputError(f"{days:g} days ago is no time of the calendar", "give fewer days") from error
    done = registry.prune(before, keep=keep, issuer=issuer, dry_run=dry_run)
    if compact and not dry_run:
        registry.compact()
    return done


def _utc(moment: datetime | None) -> datetime | None:
    return moment and moment.replace(tzinfo=moment.tzinfo or UTC)


def _named_by(home: Path, url: str | None) -> str:
    if url is not None:
        return "option"
    if os.environ.get(VARIABLE):
        return f"${VARIABLE}"
    return CONFIGURATION if configured(home) is not None else "default"
