"""Kills registry writers with SIGKILL at random moments, then checks that no committed record is lost and no content id was given twice.

    python -m benchmarks.registry_soak --kills 10000                          SQLite in a temporary folder
    python -m tools.postgres run -- python -m benchmarks.registry_soak --kills 10000       a throwaway PostgreSQL

Writers are forked processes of two issuers; each says on a pipe what it leased before it goes on, and what it committed once the commit has
returned. Prints one JSON object and exits 1 where a promise was broken. The server or the machine is not crashed here, only the writers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from platemark.provenance.record import Facts, ProvenanceRecord
from platemark.provenance.registry import Registry
from platemark.provenance.registry.location import configured

ISSUERS = (5, 12_000)
Key = tuple[int, int]  # issuer, content id


@dataclass
class Said:
    """What the writers said: how often each id was leased, and which were committed. `rest` is a line not yet whole."""

    leased: Counter[Key] = field(default_factory=Counter)
    committed: set[Key] = field(default_factory=set)
    rest: bytes = b""

    def hear(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            what, issuer, content_id = line.split()
            key = (int(issuer), int(content_id))
            if what == b"leased":
                self.leased[key] += 1
            else:
                self.committed.add(key)


def judge(said: Said, stored: dict[Key, bytes]) -> dict[str, int]:
    """Counts, among them the broken promises: `lost`, `reused`, `altered` (another manifest than was written), `unleased`."""
    return {
        "leased": len(said.leased),
        "committed": len(said.committed),
        "stored": len(stored),
        "stored_unsaid": len(stored.keys() - said.committed),  # killed between the commit and the word: allowed
        "lost": len(said.committed - stored.keys()),
        "reused": sum(count > 1 for count in said.leased.values()),
        "altered": sum(data != manifest_of(key) for key, data in stored.items()),
        "unleased": len(stored.keys() - said.leased.keys()),
    }


def manifest_of(key: Key) -> bytes:
    """5,000 bytes that belong to one id."""
    return hashlib.shake_128(repr(key).encode()).digest(5000)


def soak(home: Path, url: str | None, *, kills: int, writers: int, seed: int) -> dict[str, Any]:
    """Runs the writers, kills `kills` of them, and reports."""
    Registry.open(home, url).close()
    import platemark.provenance.tables  # noqa: F401 - before the forks, so that a child is at work at once

    chance, said, began = random.Random(seed), Said(), time.monotonic()
    reading, writing = os.pipe()
    alive = [_start(home, url, writing, number) for number in range(writers)]
    for number in range(kills):
        _listen(reading, said, chance.uniform(0, 0.025))
        victim = alive.pop(chance.randrange(len(alive)))
        _kill(victim)
        alive.append(_start(home, url, writing, number))
    for child in alive:
        _kill(child)
    os.close(writing)
    _listen(reading, said, None)
    os.close(reading)
    with Registry.open(home, url) as registry:
        stored = {(entry.issuer, entry.content_id): entry.manifest for entry in registry.entries()}
        broken_index = _missing_from_index(registry, len(stored))
        kind = "postgresql" if registry.database.postgres else "sqlite"
    return {
        "database": kind,
        "kills": kills + writers,
        "seconds": round(time.monotonic() - began, 1),
        **judge(said, stored),
        "missing_from_index": broken_index,
    }


def _start(home: Path, url: str | None, writing: int, number: int) -> int:
    child = os.fork()
    if child:
        return child
    try:
        _write(home, url, writing, ISSUERS[number % len(ISSUERS)])
    finally:
        os._exit(1)


def _write(home: Path, url: str | None, writing: int, issuer: int) -> None:
    with Registry.open(home, url) as registry:
        while True:
            content_id = registry.lease(issuer)
            os.write(writing, b"leased %d %d\n" % (issuer, content_id))
            registry.commit(_record(issuer, content_id), manifest_of((issuer, content_id)))
            os.write(writing, b"committed %d %d\n" % (issuer, content_id))


def _kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
        raise SystemExit("a writer ended by itself: its error is above")


def _listen(reading: int, said: Said, seconds: float | None) -> None:
    """Takes in what the writers say, for so long; None: until the last one is gone."""
    until = None if seconds is None else time.monotonic() + seconds
    while True:
        left = None if until is None else max(0.0, until - time.monotonic())
        if select.select([reading], [], [], left)[0]:
            data = os.read(reading, 1 << 16)
            if not data:
                return
            said.hear(data)
        elif until is not None:
            return


def _missing_from_index(registry: Registry, records: int) -> int:
    """How many rows the index of perceptual hashes lacks or has too many."""
    import sqlalchemy as sa

    from platemark.provenance.tables import HASH_WORDS

    with registry.database.begin() as connection:
        rows = connection.execute(sa.select(sa.func.count()).select_from(HASH_WORDS)).scalar_one()
    return abs(16 * records - int(rows))


def _record(issuer: int, content_id: int) -> ProvenanceRecord:
    digest = hashlib.sha256(f"{issuer}/{content_id}".encode()).hexdigest()
    facts = Facts(
        model_name="soak",
        model_sha256="ab" * 32,
        bundle_sha256="cd" * 32,
        seed=1,
        request_hmac="ef" * 32,
        settings={},
        resampled_from=None,
        decision={"action": "allow"},
    )
    return ProvenanceRecord(
        content_id=content_id,
        issuer=issuer,
        created="2026-08-02T00:00:00Z",
        generator="platemark/soak",
        watermark="none",
        watermark_key_id=None,
        watermark_payload=None,
        psnr=None,
        headroom_shift=0,
        identity="Soak",
        development_identity=False,
        manifest_label=f"urn:c2pa:{digest[:32]}",
        image_sha256=digest,
        perceptual_hash=digest,
        facts=facts,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10_000)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        report = soak(home, configured(home), kills=arguments.kills, writers=arguments.writers, seed=arguments.seed)
    print(json.dumps(report))
    return 1 if report["lost"] or report["reused"] or report["altered"] or report["unleased"] or report["missing_from_index"] else 0


if __name__ == "__main__":
    sys.exit(main())
