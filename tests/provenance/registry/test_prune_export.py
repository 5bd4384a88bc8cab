"""Export in three formats; pruning by age, after which ids are still taken and traces can say "pruned"."""

from __future__ import annotations

import base64
import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from platemark.errors import InputError, MissingExtra, ProvenanceUnavailable
from platemark.provenance.record import ProvenanceRecord
from platemark.provenance.registry import FILE, Entry, Registry, prune
from platemark.provenance.registry.export import flat, write, write_file

Make = Callable[..., ProvenanceRecord]
JULY = datetime(2026, 7, 1, tzinfo=UTC)


@pytest.fixture
def filled(registry: Registry, make_record: Make) -> Registry:
    """Three entries of June, two of August."""
    for content_id in range(5):
        month = 6 if content_id < 3 else 8
        record = make_record(content_id, created=f"2026-0{month}-02T00:00:00Z", perceptual_hash=f"{content_id:x}" * 64)
        registry.commit(record, b"MANIFEST%d" % content_id * 100, skeleton=b"bones")
    return registry


def test_pruning_keeps_ids_and_hashes(filled: Registry, make_record: Make) -> None:
    before = {entry.content_id: entry for entry in filled.all()}
    assert filled.prune(JULY, dry_run=True) == prune.Pruned(3, 2700)
    assert filled.all() == list(before.values())
    assert filled.prune(JULY) == prune.Pruned(3, 2700)
    assert filled.prune(JULY) == prune.Pruned(0, 0)
    for entry in filled.all():
        whole = before[entry.content_id]
        if entry.content_id >= 3:
            assert entry == whole
            continue
        assert entry.pruned is not None
        assert entry.pruned > "2026-"
        assert (entry.record, entry.manifest, entry.skeleton) == (None, b"", None)
        for kept in ("issuer", "created", "image_sha256", "perceptual_hash", "manifest_label", "model_sha256", "decision"):
            assert getattr(entry, kept) == getattr(whole, kept)
        assert filled.find_by_hash(whole.perceptual_hash, 0) == [(0, entry)]
        assert filled.find_by_label(whole.manifest_label) == entry
    with pytest.raises(ProvenanceUnavailable, match="recorded already"):
        filled.commit(make_record(1), b"again")


def test_pruning_manifests_alone_keeps_the_record(filled: Registry) -> None:
    assert filled.prune(JULY, keep="record").entries == 3
    entry = filled.find(1, 5)
    assert entry is not None
    assert entry.record is not None
    assert entry.manifest == b""
    first = entry.pruned
    assert filled.prune(JULY, keep="record").entries == 0
    assert filled.prune(JULY, keep="hashes").entries == 3
    entry = filled.find(1, 5)
    assert entry is not None
    assert entry.record is None
    assert entry.pruned == first


def test_pruning_goes_in_batches_and_by_issuer(filled: Registry, make_record: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune, "_BATCH", 2)
    filled.commit(make_record(9, issuer=6, created="2026-01-01T00:00:00Z"), b"other")
    assert filled.prune(JULY, issuer=5).entries == 3
    other = filled.find(9, 6)
    assert other is not None
    assert other.pruned is None


def test_compacting_gives_the_space_back_and_leaves_no_trace(tmp_path: Path, make_record: Make) -> None:
    with Registry.open(tmp_path) as registry:
        for content_id in range(50):
            registry.commit(make_record(content_id), b"LOOK-FOR-ME" * 1000)
        assert registry.prune(datetime.now(UTC)).entries == 50
        assert any(b"LOOK-FOR-ME" in file.read_bytes() for file in tmp_path.glob(f"{FILE}*"))
        before = sum(file.stat().st_size for file in tmp_path.glob(f"{FILE}*"))
        registry.compact()
        assert registry.count() == 50
        assert sum(file.stat().st_size for file in tmp_path.glob(f"{FILE}*")) < before / 3
        assert all(b"LOOK-FOR-ME" not in file.read_bytes() for file in tmp_path.glob(f"{FILE}*"))


def test_compacting_works_on_either_database(filled: Registry) -> None:
    filled.prune(JULY)
    filled.compact()
    assert filled.count() == 5
    assert filled.lease(5) >= 64


def test_json_lines_hold_everything(filled: Registry) -> None:
    out = io.BytesIO()
    assert write(filled.entries(), out, "jsonl", manifests=True) == 5
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["content_id"] for line in lines] == list(range(5))
    assert lines[2]["record"]["facts"]["seed"] == str(2**64 - 1)
    assert base64.b64decode(lines[4]["manifest"]) == b"MANIFEST4" * 100
    assert lines[0]["manifest_bytes"] == 900


def test_csv_rows_and_their_gaps(filled: Registry) -> None:
    filled.prune(JULY)
    out = io.BytesIO()
    assert write(filled.entries(), out, "csv") == 5
    rows = list(csv.DictReader(io.StringIO(out.getvalue().decode())))
    assert rows[0]["pruned"] > "2026-"
    assert rows[0]["seed"] == rows[0]["model_name"] == ""
    assert rows[0]["decision"] == "allow"
    assert rows[3]["pruned"] == ""
    assert rows[3]["seed"] == str(2**64 - 1)
    assert rows[3]["policy_id"] == "standard"
    assert "manifest" not in rows[3]


def test_parquet_has_types(filled: Registry, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    assert write_file(filled.entries(), tmp_path / "out.parquet", "parquet", manifests=True) == 5
    table = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["content_id"] for row in table] == list(range(5))
    assert table[1]["manifest"] == b"MANIFEST1" * 100
    assert table[1]["development_identity"] is False
    assert table[1] == flat(filled.all()[1]) | {"manifest": table[1]["manifest"]}


def test_parquet_without_pyarrow_names_the_remedy(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra):
        write_file(registry.entries(), tmp_path / "out.parquet", "parquet")
    assert list(tmp_path.glob("*out*")) == list(tmp_path.glob(".platemark*")) == []


def test_an_export_that_breaks_leaves_the_old_file(filled: Registry, tmp_path: Path) -> None:
    def breaking() -> Iterator[Entry]:
        yield from filled.all()[:2]
        raise ProvenanceUnavailable("the server went away", "start it")

    (tmp_path / "out.jsonl").write_text("old")
    with pytest.raises(ProvenanceUnavailable):
        write_file(breaking(), tmp_path / "out.jsonl", "jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "old"
    assert list(tmp_path.glob(".platemark*")) == []
    with pytest.raises(InputError, match="cannot write"):
        write_file(filled.entries(), tmp_path / "no" / "out.csv", "csv")
