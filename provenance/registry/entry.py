"""What the registry gives back, and what it can be asked for. Data only."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from platemark.errors import InputError, ProvenanceUnavailable
from platemark.provenance.record import ProvenanceRecord

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement


_SHOWN = (
    "content_id", "issuer", "created", "pruned", "image_sha256", "perceptual_hash", "manifest_label", "model_sha256", "decision",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One registered picture.

    `manifest` is its C2PA manifest store; `skeleton` what a PNG holds besides pixels and credentials (see `provenance.png`), None where it
    was not kept. `pruned`: when the entry was emptied (RFC 3339), None where it was not; then `manifest` is empty, `skeleton` None, and
    `record` None unless the prune kept it.
    """

    issuer: int
    content_id: int
    created: str
    image_sha256: str
    perceptual_hash: str
    manifest_label: str
    model_sha256: str
    decision: str
    record: ProvenanceRecord | None = None
    manifest: bytes = field(default=b"", repr=False)
    skeleton: bytes | None = field(default=None, repr=False)
    pruned: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the manifest's bytes."""
        return {
            **{name: getattr(self, name) for name in _SHOWN},
            "manifest_bytes": len(self.manifest),
            "record": self.record.as_dict() if self.record else None,
        }


@dataclass(frozen=True)
class Filter:
    """Which entries; every field that is set must hold. `since` counts, `until` does not any more (aware datetimes).

    Raises `InputError` for a number that no entry can have, which databases answer with errors of their own.
    """

    issuer: int | None = None
    content_id: int | None = None
    image_sha256: str | None = None
    manifest_label: str | None = None
    model_sha256: str | None = None
    request_hmac: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def __post_init__(self) -> None:
        for name, bits in (("issuer", 31), ("content_id", 63)):
            number = getattr(self, name)
            if number is not None and not 0 <= number < 1 << bits:
                raise InputError(f"no {name.replace('_', ' ')} is so large or negative", f"give a number from 0 to {(1 << bits) - 1}")

    def where(self) -> list[ColumnElement[bool]]:
        """As conditions on the records table."""
        from platemark.provenance.tables import RECORDS

        equal = ("issuer", "content_id", "image_sha256", "manifest_label", "model_sha256", "request_hmac")
        conditions: list[ColumnElement[bool]] = [RECORDS.c[name] == value for name in equal if (value := getattr(self, name)) is not None]
        if self.since is not None:
            conditions.append(RECORDS.c.created >= timestamp(self.since))
        if self.until is not None:
            conditions.append(RECORDS.c.created < timestamp(self.until))
        return conditions


def timestamp(moment: datetime) -> str:
    """RFC 3339 UTC in seconds, as records hold it: such texts sort as their times do."""
    return moment.astimezone(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")


def entry_of(row: Any, shown: str) -> Entry:
    """A row of the records table. Raises `ProvenanceUnavailable` where its record cannot be read; `shown` names the registry."""
    try:
        record = ProvenanceRecord.model_validate_json(row.record) if row.record else None
    except ValidationError as error:
        remedy = "restore the registry from a backup, or upgrade Platemark if a newer one wrote it"
        raise ProvenanceUnavailable(f"the record of content id {row.content_id} in {shown!r} is damaged", remedy) from error
    return Entry(
        issuer=row.issuer,
        content_id=row.content_id,
        created=row.created,
        image_sha256=row.image_sha256,
        perceptual_hash=row.perceptual_hash,
        manifest_label=row.manifest_label,
        model_sha256=row.model_sha256 or "",
        decision=row.decision or "",
        record=record,
        manifest=bytes(row.manifest),
        skeleton=None if row.skeleton is None else bytes(row.skeleton),
        pruned=row.pruned,
    )
