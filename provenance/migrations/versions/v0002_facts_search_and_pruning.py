"""Facts of the record as columns, the index of perceptual hashes, what restores a stripped PNG, and when an entry was pruned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_BATCH = 1000
_FACTS = {"model_sha256": sa.String(64), "bundle_sha256": sa.String(64), "request_hmac": sa.String(64), "decision": sa.String(40)}
_ADDED: dict[str, sa.types.TypeEngine[Any]] = {**_FACTS, "skeleton": sa.LargeBinary(), "pruned": sa.String(40)}
_RECORDS = sa.table("records", *(sa.column(name) for name in ("issuer", "content_id", "perceptual_hash", "record", *_FACTS)))
_WORDS = sa.table("hash_words", sa.column("slot"), sa.column("issuer"), sa.column("content_id"), sa.column("hash", sa.LargeBinary()))


def upgrade() -> None:
    for name, kind in _ADDED.items():
        op.add_column("records", sa.Column(name, kind))
    for name in ("created", "model_sha256", "request_hmac"):
        op.create_index(f"records_{name}", "records", [name])
    op.create_table(
        "hash_words",
        sa.Column("slot", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("issuer", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("content_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
    _fill(op.get_bind())


def _fill(connection: sa.Connection) -> None:
    """The new columns and the index, for records that are there already."""
    key = (_RECORDS.c.issuer, _RECORDS.c.content_id)
    last: tuple[Any, ...] = ()
    while True:
        query = sa.select(*key, _RECORDS.c.perceptual_hash, _RECORDS.c.record).order_by(*key).limit(_BATCH)
        rows = connection.execute(query.where(sa.tuple_(*key) > sa.tuple_(*(sa.literal(part) for part in last))) if last else query).all()
        if not rows:
            return
        _copy_facts(connection, rows)
        words = [
            {"slot": slot, "issuer": row.issuer, "content_id": row.content_id, "hash": bytes.fromhex(row.perceptual_hash)}
            for row in rows
            for slot in _slots(row.perceptual_hash)
        ]
        connection.execute(sa.insert(_WORDS), words)
        last = (rows[-1].issuer, rows[-1].content_id)


def _slots(perceptual_hash: str) -> list[int]:
    return [(place << 16) | int(perceptual_hash[4 * place : 4 * place + 4], 16) for place in range(16)]


def _copy_facts(connection: sa.Connection, rows: Sequence[Any]) -> None:
    update = (
        sa.update(_RECORDS)
        .where(_RECORDS.c.issuer == sa.bindparam("i"), _RECORDS.c.content_id == sa.bindparam("c"))
        .values({name: sa.bindparam(f"new_{name}") for name in _FACTS})
    )
    values = []
    for row in rows:
        facts = json.loads(row.record)["facts"]
        copied = {f"new_{name}": facts[name] for name in ("model_sha256", "bundle_sha256", "request_hmac")}
        values.append({"i": row.issuer, "c": row.content_id, "new_decision": str(facts["decision"].get("action", "")), **copied})
    connection.execute(update, values)


def downgrade() -> None:
    op.drop_table("hash_words")
    for name in ("created", "model_sha256", "request_hmac"):
        op.drop_index(f"records_{name}", "records")
    for name in _ADDED:
        op.drop_column("records", name)
