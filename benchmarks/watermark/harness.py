"""Marks, attacks and reads: the exact-payload rate of every named attack, with Wilson intervals, PSNR, SSIM and times.

    python -m benchmarks.watermark.harness --split report --size 512 --psnr 42 --out build/wm512.jsonl --table build/wm512.md

Trials go to `--out` as JSON lines as they are done; the same command again picks up where it stopped, and refuses to mix two versions of
the algorithm. Several runs (`--shard 0/2`, `--shard 1/2`) may write files of their own; `--also` adds them to the table. Times are of CPU,
so that other work on the machine does not count. Needs scikit-image and scipy; pictures: see `images`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.watermark import attacks, images, table
from benchmarks.watermark.table import Record
from benchmarks.watermark.trial import Pair, Setting, pairs, run
from benchmarks.whole_process import machine

CHUNK = 12  # rows a task; the picture is marked anew for each
Task = tuple[Setting, Pair, list[str]]


def chosen(names: str) -> list[str]:
    """Rows by name or group, comma-separated; `all`: every attack but those that need a model; `targets`: those that promise a rate."""
    rows: list[str] = []
    for name in names.split(","):
        group = [attack.name for attack in attacks.ATTACKS.values() if attack.group == name]
        if name == "all":
            group = [*attacks.ATTACKS, *attacks.COLLUSION]
        elif name == "targets":
            group = [*(attack.name for attack in attacks.ATTACKS.values() if attack.target is not None), *attacks.COLLUSION]
        elif name == "collusion":
            group = list(attacks.COLLUSION)
        elif not group and (name in attacks.ATTACKS or name in attacks.COLLUSION or name in attacks.MODEL):
            group = [name]
        if not group:
            raise SystemExit(f"no attack or group is called {name!r}")
        rows += [row for row in group if row not in rows]
    return rows


def stored(path: Path, setting: Setting) -> list[Record]:
    """The records of a file that this run may go on from. Ends the process where the file is of another run."""
    if not path.is_file():
        return []
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    if records and records[0].get("setting") != setting.as_dict():
        raise SystemExit(f"{path} holds trials of another setting or algorithm; name another --out")
    return records


def tasks(setting: Setting, count: int, rows: list[str], done: set[tuple[int, str]], shard: tuple[int, int]) -> list[Task]:
    """What is left to do, in chunks of rows."""
    left = []
    for pair in pairs(setting, count)[shard[0] :: shard[1]]:
        open_rows = [row for row in rows if (pair.number, row) not in done]
        left += [(setting, pair, open_rows[first : first + CHUNK]) for first in range(0, len(open_rows), CHUNK)]
    return left


def _run(task: Task) -> list[Record]:
    return run(*task)


def results(left: list[Task], jobs: int, seconds: float) -> Iterator[list[Record]]:
    """Runs tasks in processes, in their order, until all are done or the seconds are over."""
    end = time.monotonic() + seconds
    if jobs == 1:
        for task in left:
            if time.monotonic() >= end:
                return
            yield _run(task)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for made in pool.imap_unordered(_run, left):
            yield made
            if time.monotonic() >= end:
                return


def measure(setting: Setting, left: list[Task], out: Path, *, jobs: int, seconds: float) -> int:
    """Appends the records of the tasks to `out`; returns how many tasks were done."""
    out.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with out.open("a", encoding="utf-8") as handle:
        if not handle.tell():
            handle.write(json.dumps({"setting": setting.as_dict()}) + "\n")
        for made in results(left, jobs, seconds):
            handle.write("".join(json.dumps(record) + "\n" for record in made))
            handle.flush()
            count += 1
    return count


def written(setting: Setting, records: list[Record], command: str) -> str:
    """The whole text of a table."""
    rows = table.by_row(records)
    kinds = ", ".join(setting.kinds)
    wanted = "its own choice of strength" if setting.psnr is None else f"{setting.psnr:g} dB"
    head = f"{setting.size}×{setting.size}, {wanted}, {kinds}. Pictures: {images.describe(setting.split, setting.size)}."
    lines = [head, f"Algorithm {setting.as_dict()['algorithm']}. `{command}`, on {machine()}.", "", *table.marking(records), ""]
    lines += [*table.attacked(rows, setting.size), "", table.summary(rows)]
    return "\n".join(lines) + "\n"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("tune", "report"), default="tune")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--psnr", type=float, default=42.0, help="dB of every mark; 0: as the algorithm decides")
    parser.add_argument("--kinds", default="photo,mosaic", help=f"of {', '.join(images.KINDS)}")
    parser.add_argument("--pairs", type=int, default=200, help="pictures × keys of each row")
    parser.add_argument("--rows", default="all", help="attacks or groups, comma-separated")
    parser.add_argument("--quick", action="store_true", help="20 pairs, for a first look while tuning")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--shard", default="0/1", help="which part of the pairs, e.g. 0/2")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many seconds; run again to go on")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, appended to")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="further files of the same run, for the table")
    parser.add_argument("--table", type=Path)
    return parser.parse_args()


def main() -> None:
    given = options()
    setting = Setting(given.split, given.size, given.psnr or None, tuple(given.kinds.split(",")))
    records = stored(given.out, setting)
    done = {(record["pair"], record["row"]) for record in records if "row" in record}
    part, parts = (int(number) for number in given.shard.split("/"))
    left = tasks(setting, 20 if given.quick else given.pairs, chosen(given.rows), done, (part, parts))
    count = measure(setting, left, given.out, jobs=given.jobs, seconds=given.seconds)
    print(f"{count} tasks done, {len(left) - count} left", file=sys.stderr)
    command = shlex.join(["python", "-m", "benchmarks.watermark.harness", *sys.argv[1:]])
    text = written(setting, [r for path in (given.out, *given.also) for r in stored(path, setting)], command)
    print(text)
    if given.table:
        given.table.parent.mkdir(parents=True, exist_ok=True)
        given.table.write_text(text, encoding="utf-8")
    sys.exit(0 if count == len(left) else 75)  # 75, EX_TEMPFAIL: run again


if __name__ == "__main__":
    main()
