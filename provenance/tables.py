"""The registry's tables as SQLAlchemy sees them; migrations make them, a test holds the two equal. Imported at first use."""

from __future__ import annotations

import sqlalchemy as sa

METADATA = sa.MetaData()

RECORDS = sa.Table(
    "records",
    METADATA,
    sa.Column("issuer", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("content_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("created", sa.String(40), nullable=False),
    sa.Column("image_sha256", sa.String(64), nullable=False),
    sa.Column("perceptual_hash", sa.String(64), nullable=False),
    sa.Column("manifest_label", sa.String(200), nullable=False),
    sa.Column("record", sa.Text, nullable=False),
    sa.Column("manifest", sa.LargeBinary, nullable=False),
    sa.Index("records_image_sha256", "image_sha256"),
    sa.Index("records_manifest_label", "manifest_label"),
)

LEASES = sa.Table(
    "leases",
    METADATA,
    sa.Column("issuer", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("next_id", sa.BigInteger, nullable=False),
)
