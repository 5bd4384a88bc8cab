"""What Alembic runs: the migrations on the connection that the registry hands over. There is no offline mode and no configuration file."""

from __future__ import annotations

from alembic import context

from platemark.provenance.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
