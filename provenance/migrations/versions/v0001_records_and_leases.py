"""The first schema: records of released pictures, and the next free content id of each issuer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "records",
        sa.Column("issuer", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("content_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("created", sa.String(40), nullable=False),
        sa.Column("image_sha256", sa.String(64), nullable=False),
        sa.Column("perceptual_hash", sa.String(64), nullable=False),
        sa.Column("manifest_label", sa.String(200), nullable=False),
        sa.Column("record", sa.Text, nullable=False),
        sa.Column("manifest", sa.LargeBinary, nullable=False),
    )
    op.create_index("records_image_sha256", "records", ["image_sha256"])
    op.create_index("records_manifest_label", "records", ["manifest_label"])
    op.create_table(
        "leases",
        sa.Column("issuer", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("next_id", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("leases")
    op.drop_table("records")
