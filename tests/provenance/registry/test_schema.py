"""The schema grows by migrations: an old file with records comes along, a newer or damaged one is refused."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from platemark.errors import ProvenanceUnavailable
from platemark.provenance.registry import FILE, HEAD, Filter, Registry
from platemark.provenance.registry.schema import version

OLD = Path(__file__).parent / "data" / "registry_0001.sql"  # written by version 0.1.0: five records of two issuers


def old_file(home: Path) -> Path:
    home.mkdir(exist_ok=True)
    with sqlite3.connect(home / FILE) as connection:
        connection.executescript(OLD.read_text())
    connection.close()
    return home


def test_migrations_make_the_tables_that_the_code_uses(registry: Registry) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    import platemark.provenance.migrations as migrations
    from platemark.provenance.tables import METADATA

    assert registry.version() == HEAD
    with registry.database.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_a_file_of_the_first_version_comes_along_with_its_records(tmp_path: Path) -> None:
    with Registry.open(old_file(tmp_path)) as registry:
        assert registry.version() == HEAD
        entries = registry.all()
        assert [entry.issuer for entry in entries] == [5, 5, 5, 12000, 12000]
        assert [entry.manifest for entry in entries] == [bytes([k]) * 40 for k in range(5)]
        assert [entry.decision for entry in entries] == ["allow", "allow", "blur", "allow", "allow"]
        assert all(entry.record is not None and entry.model_sha256 == entry.record.facts.model_sha256 for entry in entries)
        assert all(entry.pruned is entry.skeleton is None for entry in entries)
        for entry in entries:
            assert registry.find_by_hash(entry.perceptual_hash, 0) == [(0, entry)]
            assert entry.record is not None
            assert registry.search(Filter(request_hmac=entry.record.facts.request_hmac)) == [entry]
        taken = {entry.content_id for entry in entries}
        assert registry.lease(5) == 1441686000320  # where the old version's leases ended
        assert registry.lease(12000) not in taken


def test_migrating_in_batches_reaches_every_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic.script import ScriptDirectory

    import platemark.provenance.migrations as migrations

    script = ScriptDirectory(str(Path(migrations.__file__).parent)).get_revision("0002")
    monkeypatch.setattr(script.module, "_BATCH", 2)
    with Registry.open(old_file(tmp_path)) as registry, registry.database.begin() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM hash_words")).scalar() == 5 * 16
        assert connection.execute(sa.text("SELECT count(*) FROM records WHERE model_sha256 IS NULL")).scalar() == 0


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    home = old_file(tmp_path)
    with sqlite3.connect(home / FILE) as connection:
        connection.execute("UPDATE records SET perceptual_hash = 'zz' WHERE issuer = 12000")
    connection.close()
    with pytest.raises(ProvenanceUnavailable, match="cannot be brought up to date"):
        Registry.open(home)
    with sqlite3.connect(home / FILE) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == ("0001",)
        assert connection.execute("SELECT count(*) FROM records").fetchone() == (5,)
        assert "pruned" not in [row[1] for row in connection.execute("PRAGMA table_info(records)")]
    connection.close()


def test_a_newer_registry_is_refused(place: Any) -> None:
    with place.open() as registry, registry.database.begin(write=True) as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ProvenanceUnavailable, match="newer Platemark") as caught:
        place.open()
    assert "\n" not in str(caught.value)
    assert "upgrade" in caught.value.remedy


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"not a database " * 100)
    with pytest.raises(ProvenanceUnavailable, match="not a database") as caught:
        Registry.open(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.service
def test_a_role_that_may_not_make_the_schema_is_told(postgres: Any, tmp_path: Path) -> None:
    import psycopg

    url = postgres.create_database()
    with psycopg.connect(url, autocommit=True) as raw:
        raw.execute("DROP ROLE IF EXISTS poor")
        raw.execute("CREATE ROLE poor LOGIN PASSWORD 'penniless'")
    poor = url.replace(f"platemark:{postgres.password}", "poor:penniless")
    with pytest.raises(ProvenanceUnavailable, match="permission denied") as caught:
        Registry.open(tmp_path, poor)
    assert "penniless" not in str(caught.value)
    with Registry.open(tmp_path, url) as registry:  # made by one who may, then used by the other
        with registry.database.begin(write=True) as connection:
            connection.exec_driver_sql("GRANT USAGE ON SCHEMA platemark TO poor")
            connection.exec_driver_sql("GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA platemark TO poor")
        with Registry.open(tmp_path, poor) as other:
            assert other.lease(5) != registry.lease(5)
            assert version(other.database) == HEAD
