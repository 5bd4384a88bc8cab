"""Alembic migrations of the registry, run when it is opened. The schema's history lives here alone; `registry.HEAD` names the newest."""
