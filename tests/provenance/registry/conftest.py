"""The same tests on SQLite and on a real PostgreSQL server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from platemark.provenance.record import Facts, ProvenanceRecord
from platemark.provenance.registry import Registry
from tools.postgres import Server, UnavailableError, server


@dataclass(frozen=True)
class Place:
    """Where the registry of one test lies. `url` is None for the default file of the state folder."""

    home: Path
    url: str | None

    def open(self) -> Registry:
        return Registry.open(self.home, self.url)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A running server. Without one the test is skipped with the reason, or fails where PLATEMARK_REQUIRE_SERVICES is set."""
    try:
        with server() as running:
            yield running
    except UnavailableError as error:
        if os.environ.get("PLATEMARK_REQUIRE_SERVICES"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.service)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        return Place(tmp_path / "home", None)
    return Place(tmp_path / "home", request.getfixturevalue("postgres").create_database())


@pytest.fixture
def registry(place: Place) -> Iterator[Registry]:
    with place.open() as opened:
        yield opened


@pytest.fixture(scope="session")
def make_record(make_facts: Callable[..., Facts]) -> Callable[..., ProvenanceRecord]:
    """`make_record(content_id, issuer=5, perceptual_hash=..., created=..., **facts)`."""

    def make(
        content_id: int, issuer: int = 5, perceptual_hash: str = "0" * 64, created: str = "2026-08-02T00:00:00Z", **facts: object
    ) -> ProvenanceRecord:
        return ProvenanceRecord(
            content_id=content_id,
            issuer=issuer,
            created=created,
            generator="platemark/0.1.0",
            watermark="none",
            watermark_key_id=None,
            watermark_payload=None,
            psnr=None,
            headroom_shift=0,
            identity="Test",
            development_identity=False,
            manifest_label=f"urn:c2pa:{issuer}:{content_id}",
            image_sha256=f"{content_id:064x}",
            perceptual_hash=perceptual_hash,
            facts=make_facts(**facts),
        )

    return make
