"""Many files: found, verified by several processes in their order, and written out; nothing that one file does stops the others."""

from __future__ import annotations

import csv
import json
import os
import signal
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from jsonschema import Draft202012Validator

from platemark.errors import InputError, MissingExtra
from platemark.provenance.stamp import Stamped
from platemark.provenance.verify import batch
from platemark.provenance.verify.batch import DEEP_FILES, Settings, expand, is_deep, verify_all, verify_one
from platemark.provenance.verify.output import COLUMNS, line_writer


@pytest.fixture(scope="module")
def folder(stamped: dict[str, Stamped], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good ones, bad ones, and one that is no picture though it says so."""
    root = tmp_path_factory.mktemp("batch")
    (root / "b").mkdir()
    (root / "a.png").write_bytes(stamped["png"].data)
    (root / "b" / "c.JPG").write_bytes(stamped["jpeg"].data)
    (root / "b" / "cut.webp").write_bytes(stamped["webp"].data[:4000])
    (root / "b" / "empty.png").write_bytes(b"")
    (root / "b" / "text.gif").write_bytes(b"no picture\n" * 9)
    (root / "notes.txt").write_text("not looked at")
    (root / "z.png").write_bytes(stamped["png"].data[:-12] + b"\0\0\0\3tEXta\0b\0\0\0\0" + stamped["png"].data[-12:])
    (root / "loop").symlink_to(root)
    return root


NAMES = ["a.png", "z.png", "b/c.JPG", "b/cut.webp", "b/empty.png", "b/text.gif"]


def settings(home: Path, **more: Any) -> Settings:
    return Settings(home=str(home), deep=False, **more)


def test_folders_stand_for_their_pictures(folder: Path, tmp_path: Path) -> None:
    assert [str(path.relative_to(folder)) for path in expand([folder])] == NAMES
    assert expand([folder / "notes.txt", Path("-")]) == [folder / "notes.txt", Path("-")]  # what is named is taken as it is
    with pytest.raises(InputError, match="no picture in the folder"):
        expand([tmp_path])


def test_a_folder_below_that_cannot_be_listed_is_an_error_line(folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, listed = next(path for path in sorted(folder.rglob("*")) if path.is_dir()), os.scandir

    def closed(path: Any) -> Any:
        if Path(path) == inside:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", closed)
    found = expand([folder])
    assert found[-1] == inside
    assert 1 < len(found) < len(NAMES) + 1
    assert "error" in verify_one(inside, str(inside), settings(home)).values


def test_the_deep_search_is_for_few_files_or_on_request() -> None:
    assert DEEP_FILES == 16
    assert [is_deep(count, fast=False, deep=False) for count in (1, 16, 17)] == [True, True, False]
    assert [is_deep(count, fast=True, deep=False) for count in (1, 17)] == [False, False]
    assert is_deep(17, fast=False, deep=True)


def test_one_bad_file_stops_nothing_and_order_is_kept(folder: Path, home: Path, schema: Draft202012Validator) -> None:
    files = [*expand([folder]), folder / "gone.png"]
    lines = list(verify_all(files, settings(home), jobs=2))
    assert [line.values["file"] for line in lines] == [str(file) for file in files]
    assert [line.values.get("verdict", "error") for line in lines] == [
        "trusted",
        "tampered",
        "trusted",
        "corrupt",
        "error",
        "error",
        "error",
    ]
    assert [line.code for line in lines] == [0, 6, 0, 6, 2, 2, 2]
    for line in lines:
        schema.validate(line.values)
    alone = list(verify_all(files, settings(home), jobs=1))
    assert [line.values.get("verdict") for line in alone] == [line.values.get("verdict") for line in lines]


def test_a_process_that_dies_costs_one_file(folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [folder / "a.png"] * 6
    heard: list[int] = []
    real = batch._Pool._give

    def give(self: Any, worker: Any) -> None:
        real(self, worker)
        if worker.file == 2 and not heard:  # the third file's process is killed while it works
            heard.append(worker.process.pid)
            os.kill(worker.process.pid, signal.SIGKILL)

    monkeypatch.setattr(batch._Pool, "_give", give)
    lines = list(verify_all(files, settings(home), jobs=2))
    assert heard
    assert [line.values.get("verdict", "error") for line in lines] == ["trusted", "trusted", "error", "trusted", "trusted", "trusted"]
    assert lines[2].values["error"]["code"] == "provenance_unavailable"
    assert lines[2].code == 4


def test_a_file_that_takes_too_long_is_given_up(folder: Path, home: Path) -> None:
    files = [folder / "a.png"] * 5
    lines = list(verify_all(files, settings(home), jobs=2, seconds=0.001))
    assert len(lines) == 5
    slow = [line.values["error"]["message"] for line in lines if "error" in line.values]
    assert slow
    assert all("took longer than 0.001 s" in message for message in slow)


def test_stopping_early_ends_the_processes(folder: Path, home: Path) -> None:
    lines: Iterator[Any] = verify_all([folder / "a.png"] * 8, settings(home), jobs=2)
    assert next(lines).code == 0
    lines.close()  # type: ignore[attr-defined]
    import multiprocessing

    assert multiprocessing.active_children() == []


@pytest.fixture(scope="module")
def lines(folder: Path, home: Path) -> list[dict[str, Any]]:
    return [line.values for line in verify_all([*expand([folder]), folder / "gone.png"], settings(home), jobs=1)]


def test_json_lines(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    with line_writer(tmp_path / "out.jsonl") as writer:
        for line in lines:
            writer.write(line)
        assert not (tmp_path / "out.jsonl").exists()  # whole or not at all
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()] == lines
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_csv_and_parquet_have_the_same_rows(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    for suffix in ("csv", "parquet"):
        with line_writer(tmp_path / f"out.{suffix}") as writer:
            for line in lines:
                writer.write(line)
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    table = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert tuple(rows[0]) == tuple(table[0]) == COLUMNS
    assert [row["verdict"] or None for row in rows] == [row["verdict"] for row in table] == [line.get("verdict") for line in lines]
    assert table[0]["content_id"] == lines[0]["content_id"]
    assert isinstance(table[0]["p_value"], float)
    assert table[0]["integrity"] == "intact"
    assert table[-1]["error"] == "bad_input"
    assert table[0]["summary"].startswith("Signed by 'Test Studio'")


def test_hostile_values_stay_harmless_in_spreadsheets(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    hostile = json.loads(json.dumps(lines[0]))
    hostile["file"] = "=cmd|' /C calc'!A0"
    hostile["layers"]["c2pa"]["signer"] = '@SUM(1)",\n"x'
    with line_writer(tmp_path / "out.csv") as writer:
        writer.write(hostile)
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as handle:
        (row,) = csv.DictReader(handle)
    assert row["file"].startswith("'=cmd")
    assert row["signer"].startswith("'@SUM")


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_broken_run_leaves_no_file(lines: list[dict[str, Any]], tmp_path: Path, suffix: str) -> None:
    def run() -> None:
        with line_writer(tmp_path / f"out.{suffix}") as writer:
            writer.write(lines[0])
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        run()
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_cannot_be_written_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"\.jsonl, \.csv, \.parquet"), line_writer(tmp_path / "out.xlsx"):
        pass
    with pytest.raises(InputError, match="cannot write"), line_writer(tmp_path / "no" / "out.csv"):
        pass
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match="parquet"), line_writer(tmp_path / "out.parquet"):
        pass


def png(width: int, height: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(20_000, 20_000), (8_000, 8_000), (4_000, 4_000)])
def test_bombs_are_refused_before_decoding(size: tuple[int, int], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the bound of pixels, and under it with next to nothing in the file."""
    from platemark.provenance.verify import pixels

    def never(data: bytes) -> Any:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(pixels, "decode", never)
    line = batch.verify_one(png(*size, bytes(1000)), "bomb.png", settings(home))
    assert line.code == 2
    assert line.values["error"]["code"] == "bad_image"
    assert "pixels" in line.values["error"]["message"]
