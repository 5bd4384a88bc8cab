"""Calibrates "by chance": searches unmarked pictures with many keys, fits the tail of the statistic, counts what the check lets through.

    python -m benchmarks.watermark.calibrate --out build/null.jsonl --table benchmarks/results/watermark_calibration.md

Every trial is a whole search of one picture without this key's mark. `fast` and `deep` are the two searches of `detect`; `wrong-key` is the
fast search of a picture that another key marked. The samples of a picture's spectrum serve all keys, which is what makes 100,000 trials
affordable. All pictures of both halves take part: nothing of the mark is tuned on them here. Resumable, as the harness is. The table names
the constants for `platemark.provenance.watermark.calibration`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.watermark import images, table, tail, trial
from benchmarks.watermark.images import Pixels, Spec
from benchmarks.watermark.table import Record
from benchmarks.watermark.tail import Floats
from benchmarks.whole_process import machine
from platemark.errors import ProvenanceUnavailable
from platemark.provenance.watermark import code
from platemark.provenance.watermark.calibration import TAILS
from platemark.provenance.watermark.detect import _READINGS as READINGS
from platemark.provenance.watermark.detect import detect
from platemark.provenance.watermark.key import WatermarkKey
from platemark.provenance.watermark.payload import CHECK_BITS, Payload
from platemark.provenance.watermark.search import open_search

What = Literal["fast", "deep", "wrong-key", "verdicts"]
BLOCK = 60  # keys that share one opening of a picture
SHOWN = (1e-1, 1e-2, 1e-3, 1e-4)  # p-values whose observed rates the table gives
POLICY = 1e-6
_ASIDE = tuple(f".{name}" for name in ("embed", "spread", "mask", "channel", "dither", "detect", "payload", "code", "reading", "report"))


@dataclass(frozen=True)
class Task:
    """One picture under one block of keys."""

    what: What
    spec: Spec
    first: int
    count: int

    @property
    def name(self) -> str:
        return f"{self.what}/{self.spec.name}/{self.spec.size}/{self.first}"


def algorithm() -> str:
    """A hash over the source of all that the pilot statistic depends on."""
    return trial.algorithm(aside=(*trial.ASIDE, *_ASIDE))


def key(number: int) -> WatermarkKey:
    return WatermarkKey.from_secret(hashlib.sha256(f"platemark calibration key {number}".encode()).digest())


def pictures(size: int) -> list[Spec]:
    """All pictures of both halves, mixed in a fixed order."""
    both = [spec for split in ("tune", "report") for spec in images.specs(split, size)]
    return [both[place] for place in np.random.default_rng(9).permutation(len(both))]


def plan(fast: int, deep: int, wrong: int, verdicts: int, size: int) -> list[Task]:
    """Tasks until each kind has its number of trials; every picture comes once before any comes again with further keys."""
    specs, tasks = pictures(size), []
    wanted: tuple[tuple[What, int, int], ...] = (
        ("deep", deep, 3),
        ("fast", fast, BLOCK),
        ("wrong-key", wrong, BLOCK),
        ("verdicts", verdicts, 20),
    )
    for what, total, block in wanted:
        rounds = -(-total // block)
        tasks += [Task(what, specs[n % len(specs)], n // len(specs) * block, block) for n in range(rounds)]
    return tasks


def run(task: Task) -> Record:
    """The highest statistic of each search; for `verdicts`, the verdicts of `detect` itself."""
    keys = [key(number) for number in range(task.first, task.first + task.count)]
    picture = images.load(task.spec)
    if task.what == "wrong-key":
        try:
            picture = trial.mark(picture, Payload(task.spec.seed), trial.keys()[0], 42.0, task.spec.seed)
        except ProvenanceUnavailable:  # a picture that cannot hold a mark has no other key's either
            keys = []
    if task.what == "verdicts":
        found = [detect(picture, one) for one in keys]
        return {"task": task.name, "what": "verdicts", "kind": task.spec.kind, "verdicts": [one.verdict for one in found]}
    scores, planned = _searched(picture, keys, deep=task.what == "deep")
    return {
        "task": task.name, "what": task.what, "picture": task.spec.name, "kind": task.spec.kind, "planned": planned, "scores": scores,
    }  # fmt: skip


def _searched(picture: Pixels, keys: list[WatermarkKey], *, deep: bool) -> tuple[list[float], int]:
    search = open_search(picture)
    best = [max(found.places[0].score for found in search.stages(one, deep=deep)) for one in keys]
    return [round(score, 4) for score in best], search.planned("deep" if deep else "fast")


def results(tasks: list[Task], seconds: float) -> Iterator[Record]:
    end = time.monotonic() + seconds
    for task in tasks:
        if time.monotonic() >= end:
            return
        yield run(task)


def written(records: list[Record], command: str) -> str:
    """The text of the table."""
    lines = ["# Watermark: how likely by chance", "", f"`{command}`, on {machine()}. Algorithm {algorithm()}.", ""]
    lines += [
        "P(max > z) = 1 - exp(-n · ratio · exp(-z² / (2 s²))), fitted to the top 1 % (at least 100) of the pilot statistics; intervals"
    ]
    lines += ["by a bootstrap over pictures (trials of one picture under many keys are not independent).", ""]
    for what in ("fast", "deep", "wrong-key"):
        lines += _fitted(what, [r for r in records if r["what"] == what and r["scores"]])
    return "\n".join([*lines, *_verdicts(records), *_policy()]) + "\n"


def _fitted(what: str, records: list[Record]) -> list[str]:
    if sum(len(record["scores"]) for record in records) < 2 * tail.LEAST:
        return [f"## {what}: too few searches", ""] if records else []
    by_picture: dict[str, list[float]] = {}
    for record in records:
        by_picture.setdefault(record["picture"], []).extend(record["scores"])
    groups = [np.array(scores) for scores in by_picture.values()]
    scores, hypotheses = np.concatenate(groups), float(np.median([r["planned"] for r in records]))
    made = tail.fit(scores, hypotheses)
    (low, high), (least, most) = tail.bootstrap(groups, hypotheses, POLICY)
    used = TAILS["deep" if what == "deep" else "fast"]
    lines = [
        f"## {what}: {len(scores):,} searches of {len(groups)} pictures, {hypotheses:,.0f} hypotheses each", "",
        f"Fit above z = {made.threshold:.2f} ({made.count} searches): ratio {made.ratio:.1f}, s {made.spread:.4f}. Highest seen: "
        f"{scores.max():.2f}. Score at p = 1e-6: {made.score_at(POLICY, hypotheses):.2f} (95 %: {low:.2f} to {high:.2f}); the chance "
        f"at that score over the bootstrap: {least:.1e} to {most:.1e}. In the product: ratio {used.ratio:g}, s {used.spread:g}, so z = "
        f"{tail.Fit(used.ratio, used.spread, 0, 0, 0).score_at(POLICY, hypotheses):.2f} at p = 1e-6.", "",
        "| pictures | searches | mean z | 99 % | " + " | ".join(f"p ≤ {p:g}" for p in SHOWN) + " |", "|---" * (4 + len(SHOWN)) + "|",
    ]  # fmt: skip
    for kind in ("all", *images.KINDS):
        chosen = np.concatenate([np.array(r["scores"]) for r in records if kind in ("all", r["kind"])] or [np.zeros(0)])
        if len(chosen):
            lines.append(_observed(kind, chosen, [used.p_value(float(z), round(hypotheses)) for z in chosen]))
    return [*lines, ""]


def _observed(kind: str, scores: Floats, chances: list[float]) -> str:
    """How often the product's own p-values fall under each bound: the share should be the bound."""
    cells = []
    for bound in SHOWN:
        hits = sum(chance <= bound for chance in chances)
        low, high = table.wilson(hits, len(chances))
        cells.append(f"{hits / len(chances):.2g} ({low:.1g} to {high:.1g})")
    return f"| {kind} | {len(scores)} | {scores.mean():.2f} | {np.quantile(scores, 0.99):.2f} | " + " | ".join(cells) + " |"


def _verdicts(records: list[Record]) -> list[str]:
    found = [verdict for record in records if record["what"] == "verdicts" for verdict in record["verdicts"]]
    if not found:
        return []
    counts = ", ".join(f"{found.count(name)} {name}" for name in ("detected", "inconclusive", "not-detected"))
    return [f"`detect` itself on {len(found):,} unmarked trials, words decoded and checked: {counts}.", ""]


def _policy() -> list[str]:
    fast, deep = (readings * code.LIST * 2.0**-CHECK_BITS for readings in READINGS.values())
    return [
        "## What is reported as detected",
        "",
        f"The keyed check has {CHECK_BITS} bits; at most {code.LIST} words are tried a place and {READINGS['fast']} places (fast) or "
        f"{READINGS['deep']} (deep) a search, so a search with nothing in it passes the check by chance in {fast:.1e} or {deep:.1e} of "
        "cases. "
        "`detected` asks for the check and for a joint p-value (pilots × check) under 1e-6 over the whole search: the check alone nearly "
        "gives that, so the bound does not hang on the extrapolated tail.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", type=int, default=100_000)
    parser.add_argument("--deep", type=int, default=3_000)
    parser.add_argument("--wrong", type=int, default=20_000)
    parser.add_argument("--verdicts", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--also", type=Path, nargs="*", default=[])
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    records = _stored(given.out)
    part, parts = (int(number) for number in given.shard.split("/"))
    done = {record["task"] for record in records}
    left = [task for task in plan(given.fast, given.deep, given.wrong, given.verdicts, given.size)[part::parts] if task.name not in done]
    count = 0
    with given.out.open("a", encoding="utf-8") as handle:
        if not handle.tell():
            handle.write(json.dumps({"algorithm": algorithm()}) + "\n")
        for record in results(left, given.seconds):
            handle.write(json.dumps(record) + "\n")
            handle.flush()
            count += 1
    print(f"{count} tasks done, {len(left) - count} left", file=sys.stderr)
    text = written(
        [r for path in (given.out, *given.also) for r in _stored(path)],
        "python -m benchmarks.watermark.calibrate " + " ".join(sys.argv[1:]),
    )
    print(text)
    if given.table:
        given.table.write_text(text, encoding="utf-8")
    sys.exit(0 if count == len(left) else 75)


def _stored(path: Path) -> list[Record]:
    if not path.is_file():
        return []
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    if records and records[0].get("algorithm") != algorithm():
        raise SystemExit(f"{path} holds trials of another algorithm; name another --out")
    return records[1:]


if __name__ == "__main__":
    main()
