"""The registry's tables as SQLAlchemy sees them; migrations make them, a test holds the two equal. Imported at first use."""

from __future__ import annotations

import sqlalchemy as sa

METADATA = sa.MetaData()

RECORDS = sa.Table(
    "records",
    METADATA,
    sa.Column("issuer", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("content_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("created", sa.String(40), nullable=False),  # RFC 3339 UTC
    sa.Column("image_sha256", sa.String(64), nullable=False),
    sa.Column("perceptual_hash", sa.String(64), nullable=False),
    sa.Column("manifest_label", sa.String(200), nullable=False),
    sa.Column("record", sa.Text, nullable=False),  # JSON; empty once pruned
    sa.Column("manifest", sa.LargeBinary, nullable=False),  # C2PA manifest store; empty once pruned
    sa.Column("model_sha256", sa.String(64)),
    sa.Column("bundle_sha256", sa.String(64)),
    sa.Column("request_hmac", sa.String(64)),
    sa.Column("decision", sa.String(40)),
    sa.Column("skeleton", sa.LargeBinary),
    sa.Column("pruned", sa.String(40)),  # when; RFC 3339 UTC
    sa.Index("records_image_sha256", "image_sha256"),
    sa.Index("records_manifest_label", "manifest_label"),
    sa.Index("records_created", "created"),
    sa.Index("records_model_sha256", "model_sha256"),
    sa.Index("records_request_hmac", "request_hmac"),
)

# Sixteen rows a record, by which near perceptual hashes are found: see `registry.search`. Each has the whole hash, so that the candidates'
# distances are counted without a look at their records.
HASH_WORDS = sa.Table(
    "hash_words",
    METADATA,
    sa.Column("slot", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("issuer", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("content_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

LEASES = sa.Table(
    "leases",
    METADATA,
    sa.Column("issuer", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("next_id", sa.BigInteger, nullable=False),
)
