"""Measures `verify` over a folder: files a second on all cores and on one, by kind of file, with and without the deep search.

Run from the repository root:

    python -m benchmarks.verify [--files 10000] [--deep 64] [--table benchmarks/results/verify.md]

The pictures are 512 x 512, synthetic (blobs and grain), stamped and registered here: as released (PNG, JPEG, WebP), JPEG copies without
credentials, tampered ones, unmarked ones, and one in a hundred that is no picture. Prints Markdown; `--table` writes it, under the command
and the machine.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import shlex
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.whole_process import machine
from platemark.imaging import encode
from platemark.provenance.identity import init_keys
from platemark.provenance.record import Facts
from platemark.provenance.stamp import open_stamp
from platemark.provenance.verify.batch import Line, Settings, expand, verify_all, verify_one
from platemark.provenance.verify.output import line_writer

SIDE = 512
_FACTS = {
    "model_name": "benchmark", "model_sha256": "ab" * 32, "bundle_sha256": "cd" * 32, "seed": 1, "request_hmac": "ef" * 32, "settings": {},
    "resampled_from": None, "decision": {"action": "allow", "policy_id": "standard", "policy_sha256": "12" * 32},
}  # fmt: skip


def picture(seed: int) -> NDArray[np.uint8]:
    """Colour ramps, soft blobs and fine grain."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    made = np.stack([80 + 90 * x / SIDE, 170 - 90 * y / SIDE, np.full_like(x, 110)], axis=-1)
    for _ in range(40):
        cy, cx, radius = rng.uniform(0, SIDE), rng.uniform(0, SIDE), rng.uniform(20, 90)
        made += np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * radius**2))[..., None] * rng.uniform(-120, 120, 3)
    return np.clip(made + rng.normal(0, 2.5, made.shape), 0, 255).astype(np.uint8)


def kinds(home: Path) -> dict[str, bytes]:
    """One file of each kind, by its file name's beginning and suffix."""
    press, out = open_stamp(home), dict[str, bytes]()
    for number, suffix in enumerate(("png", "jpeg", "webp")):
        one = press.apply(picture(number), Facts.model_validate(_FACTS), press.reserve(), suffix)
        out[f"released.{suffix}"] = one.data
    copy = io.BytesIO()
    Image.fromarray(one.pixels).save(copy, "JPEG", quality=80)
    out["copy.jpeg"] = copy.getvalue()
    out["tampered.jpeg"] = out["released.jpeg"] + b"more"
    out["unmarked.jpeg"] = encode(picture(9), "jpeg")
    return out


def folder(root: Path, files: dict[str, bytes], count: int) -> Path:
    """`count` files, hard links to a few, one in a hundred of them no picture."""
    root.mkdir()
    names = sorted(files)
    for name, data in files.items():
        (root.parent / name).write_bytes(data)
    for number in range(count):
        name = names[number % len(names)]
        target = root / f"{number:06d}-{name}"
        if number % 100 == 99:
            target.write_bytes(b"no picture\n" * 50)
        else:
            os.link(root.parent / name, target)
    return root


def over(lines: Iterable[Line], output: Path) -> tuple[float, float, Counter[str]]:
    """Seconds that it took to write all lines out, seconds of processor time of all processes, and the verdicts."""
    counts, began, spent = Counter[str](), time.perf_counter(), _processor()
    with line_writer(output) as writer:
        for line in lines:
            writer.write(line.values)
            counts[line.values.get("verdict", "error")] += 1
    return time.perf_counter() - began, _processor() - spent, counts


def _processor() -> float:
    """Processor time of this process and of those that it has ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def each(files: dict[str, bytes], home: Path, *, deep: bool, repeats: int) -> dict[str, float]:
    """Median milliseconds of processor time of one file of each kind, in this process."""
    times = defaultdict[str, list[float]](list)
    settings = Settings(home=str(home), deep=deep)
    for _ in range(repeats):
        for name, data in files.items():
            began = time.process_time()
            verify_one(data, name, settings)
            times[name].append(time.process_time() - began)
    return {name: statistics.median(values) * 1000 for name, values in times.items()}


def table(home: Path, root: Path, count: int, deep: int) -> list[str]:
    files = kinds(home)
    found = expand([folder(root / "many", files, count)])
    out = ["| run | files | processes | seconds | files/s | files per s of one core | verdicts |", "|---|---|---|---|---|---|---|"]
    cores = len(os.sched_getaffinity(0))
    for label, part, jobs, is_deep in (
        ("fast", found, cores, False), ("fast", found[: max(1, count // 10)], 1, False), ("deep", found[:deep], cores, True),
    ):  # fmt: skip
        seconds, spent, verdicts = over(verify_all(part, Settings(home=str(home), deep=is_deep), jobs=jobs), root / f"{label}.jsonl")
        said = ", ".join(f"{number} {name}" for name, number in verdicts.most_common())
        out.append(f"| {label} | {len(part)} | {jobs} | {seconds:.1f} | {len(part) / seconds:.1f} | {len(part) / spent:.1f} | {said} |")
    fast, slow = each(files, home, deep=False, repeats=5), each(files, home, deep=True, repeats=2)
    out += ["", "| kind | ms of one core, fast | with the deep search |", "|---|---|---|"]
    return [*out, *(f"| {name} | {fast[name]:.0f} | {slow[name]:.0f} |" for name in files)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Verification over a folder.")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--deep", type=int, default=64, help="files of the run with the deep search")
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        home = Path(place) / "home"
        init_keys(home, name="Benchmark")
        lines = [
            "# Verification\n",
            f"`{shlex.join(['python', '-m', 'benchmarks.verify', *sys.argv[1:]])}`, on {machine()}\n",
            "512 x 512 pictures, one in a hundred files no picture; JSONL written; each file asks the registry and one watermark key.\n",
            *table(home, Path(place), options.files, options.deep),
        ]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.table is not None:
        options.table.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
