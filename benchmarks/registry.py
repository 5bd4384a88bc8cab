"""Measures the registry: leases and commits per second, by one thread and by several processes, and searches by perceptual hash.

    python -m benchmarks.registry [--rows 100000 1000000] [--seconds 5]                       SQLite in a temporary folder
    python -m tools.postgres run -- python -m benchmarks.registry ...                          a throwaway PostgreSQL on this machine

Prints a Markdown table with the machine named. Commits are durable (fsync) and hold a 5,000-byte manifest. The rows that are searched are
written in bulk, with uniformly random hashes; queries are copies of stored hashes with 20 bits flipped, and strangers. `--folder` names the
disk that SQLite writes to.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.registry_soak import _record
from benchmarks.whole_process import machine
from platemark.provenance.registry import FILE, Registry
from platemark.provenance.registry.location import configured
from platemark.provenance.registry.search import index_rows

MANIFEST = os.urandom(5000)
_WORKERS = 4
_QUERIES = 50
_BATCH = 10_000


def per_second(work: Callable[[], Any], seconds: float) -> float:
    """How often `work` runs in a second, over so many seconds."""
    work()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        work()
        count += 1
    return count / (time.perf_counter() - began)


def leases(home: Path, url: str | None, issuer: int, seconds: float) -> float:
    with Registry.open(home, url) as registry:
        return per_second(lambda: registry.lease(issuer), seconds)


def blocks(home: Path, url: str | None, issuer: int, seconds: float) -> float:
    """Durable leases of a block, without what is served from memory."""
    with Registry.open(home, url) as registry:
        return per_second(lambda: registry._leases._lease(issuer), seconds)


def commits(home: Path, url: str | None, issuer: int, seconds: float) -> float:
    with Registry.open(home, url) as registry:
        return per_second(lambda: registry.commit(_record(issuer, registry.lease(issuer)), MANIFEST), seconds)


def together(measure: Callable[..., float], home: Path, url: str | None, seconds: float) -> float:
    """The sum of several processes at once."""
    with multiprocessing.get_context("spawn").Pool(_WORKERS) as pool:
        return sum(pool.starmap(measure, [(home, url, issuer, seconds) for issuer in range(_WORKERS)]))


def rows_of(count: int, seed: int) -> Iterator[tuple[int, str]]:
    """Content id and random hash."""
    chance = random.Random(seed)
    for content_id in range(count):
        yield content_id, f"{chance.getrandbits(256):064x}"


def fill(home: Path, registry: Registry, count: int, seed: int) -> None:
    """Writes records in bulk, past the registry's own durable path."""
    model = _record(20_000, 0)
    record = model.model_dump_json()
    fixed = ("2026-08-02T00:00:00Z", "ab" * 32, "cd" * 32, "ef" * 32, "allow")
    rows, words = [], []
    write = _fill_postgres(registry) if registry.database.postgres else _fill_sqlite(home)
    for content_id, looks in rows_of(count, seed):
        rows.append((20_000, content_id, fixed[0], f"{content_id:064x}", looks, f"urn:c2pa:{content_id}", record, MANIFEST, *fixed[1:]))
        words += [tuple(row.values()) for row in index_rows(20_000, content_id, looks)]
        if len(rows) == _BATCH or content_id == count - 1:
            write(rows, words)
            rows, words = [], []
    if registry.database.postgres:  # as autovacuum does within a minute
        with registry.database.autocommit() as connection:
            connection.exec_driver_sql("ANALYZE")


_RECORD_COLUMNS = (
    "issuer, content_id, created, image_sha256, perceptual_hash, manifest_label, record, manifest, model_sha256, bundle_sha256, "
    "request_hmac, decision"
)  # fmt: skip
Writer = Callable[[list[Any], list[Any]], None]


def _fill_sqlite(home: Path) -> Writer:
    raw = sqlite3.connect(home / FILE)
    raw.execute("PRAGMA synchronous=OFF")
    raw.execute("PRAGMA cache_size=-2000000")

    def write(rows: list[Any], words: list[Any]) -> None:
        with raw:
            raw.executemany(f"INSERT INTO records ({_RECORD_COLUMNS}) VALUES ({', '.join('?' * 12)})", rows)
            raw.executemany("INSERT INTO hash_words (slot, issuer, content_id, hash) VALUES (?, ?, ?, ?)", sorted(words))

    return write


def _fill_postgres(registry: Registry) -> Writer:
    def write(rows: list[Any], words: list[Any]) -> None:
        with registry.database.begin(write=True) as connection, connection.connection.cursor() as cursor:
            with cursor.copy(f"COPY records ({_RECORD_COLUMNS}) FROM STDIN") as copy:  # type: ignore[attr-defined]
                for row in rows:
                    copy.write_row(row)
            with cursor.copy("COPY hash_words (slot, issuer, content_id, hash) FROM STDIN") as copy:  # type: ignore[attr-defined]
                for row in sorted(words):
                    copy.write_row(row)

    return write


def queries(count: int, seed: int, *, near: bool) -> list[str]:
    """Copies of stored hashes with 20 bits flipped, or strangers."""
    chance = random.Random(seed + 1)
    if not near:
        return [f"{chance.getrandbits(256):064x}" for _ in range(_QUERIES)]
    wanted = set(chance.sample(range(count), _QUERIES))
    found = []
    for content_id, looks in rows_of(count, seed):
        if content_id in wanted:
            value = int(looks, 16)
            for bit in chance.sample(range(256), 20):
                value ^= 1 << bit
            found.append(f"{value:064x}")
    return found


def search_times(registry: Registry, asked: list[str], max_distance: int = 31) -> tuple[list[float], int]:
    """Milliseconds of each search, and how many found something."""
    took, hits = [], 0
    for looks in asked:
        began = time.perf_counter()
        hits += bool(registry.find_by_hash(looks, max_distance))
        took.append((time.perf_counter() - began) * 1000)
    return took, hits


def searches(home: Path, url: str | None, count: int) -> list[str]:
    """Table rows for one size."""
    with Registry.open(home, url) as registry:
        began = time.perf_counter()
        fill(home, registry, count, seed=count)
        filled = time.perf_counter() - began
    rows = [f"| fill {count:,} rows in bulk | {filled:.0f} s |"]
    with Registry.open(home, url) as registry:
        first, _ = search_times(registry, queries(count, count + 7, near=False)[:1])
        rows.append(f"| first search after opening, {count:,} rows | {first[0]:.1f} ms |")
        for name, near in (("copies, 20 bits off", True), ("strangers", False)):
            took, hits = search_times(registry, queries(count, count, near=near))
            if hits != (len(took) if near else 0):
                raise SystemExit(f"{hits} of {len(took)} {name} were found")
            rows.append(f"| search, {name}, {count:,} rows | median {statistics.median(took):.1f} ms, max {max(took):.1f} ms |")
        took, _ = search_times(registry, queries(count, count, near=True)[:3], max_distance=90)
        rows.append(f"| search within 90 bits (compares every record), {count:,} rows | median {statistics.median(took):.0f} ms |")
        began = time.perf_counter()
        for content_id in range(0, count, max(1, count // 1000)):
            if registry.find(content_id, 20_000) is None:
                raise SystemExit("a record is missing")
        rows.append(f"| find by content id, {count:,} rows | {(time.perf_counter() - began):.2f} ms |")
    size = sum(file.stat().st_size for file in home.glob(f"{FILE}*")) if url is None else 0
    return [*rows, *([f"| file with {count:,} rows | {size / 2**30:.2f} GiB |"] if size else [])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[100_000])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--folder", type=Path, help="where SQLite files are made")
    arguments = parser.parse_args()
    rows = []
    for count in [0, *arguments.rows]:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            home, url = Path(folder), configured(Path(folder))
            with Registry.open(home, url) as registry:
                kind = registry.database.postgres
                with registry.database.begin(write=True) as connection:
                    for table in ("records", "hash_words", "leases"):
                        connection.exec_driver_sql(f"DELETE FROM {table}")
            if count:
                rows += searches(home, url, count)
                continue
            for name, measure in (("leases", leases), ("blocks of 64 leased", blocks), ("commits", commits)):
                rows.append(f"| {name}, one thread | {measure(home, url, 5, arguments.seconds):,.0f} /s |")
                rows.append(f"| {name}, {_WORKERS} processes | {together(measure, home, url, arguments.seconds):,.0f} /s |")
    what = "PostgreSQL on the same machine" if kind else f"SQLite {sqlite3.sqlite_version}"
    print(f"{machine()}, {platform.system()}; {what}\n\n| | |\n|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
