"""What marking and reading cost: milliseconds of CPU by size, and the peak of memory, each in a process of its own with one thread.

    python -m benchmarks.watermark.speed [--table benchmarks/results/watermark_speed.md]

`fast` reads an unchanged picture, `deep found` one turned by 5°, `deep` searches an unmarked picture to the end: the worst case. Memory is
the peak of the process less what it held before, with the picture itself (12 MB at 2048²) already there.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.watermark import images, trial
from benchmarks.whole_process import machine
from platemark.provenance.watermark.detect import detect
from platemark.provenance.watermark.embed import embed
from platemark.provenance.watermark.payload import Payload

JOBS = ("embed", "fast", "deep found", "deep")
RUNS = {512: 15, 1024: 7, 2048: 3, 4096: 1}
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def scene(size: int) -> NDArray[np.uint8]:
    """A photograph; enlarged where it is smaller than the size."""
    spec = images.ordered("report", min(size, 1024), ("photo",))[0]
    return np.asarray(Image.fromarray(images.load(spec)).resize((size, size), Image.Resampling.BICUBIC))


def job(name: str, size: int) -> Callable[[], object]:
    """The work to time, with all that it needs prepared."""
    picture, key = scene(size), trial.keys()[0]
    if name == "embed":
        return lambda: embed(picture, Payload(1), key)
    if name == "deep":
        return lambda: detect(picture, key, deep=True)
    marked = embed(picture, Payload(1), key).image
    if name == "fast":
        return lambda: detect(marked, key)
    turned = np.asarray(Image.fromarray(marked).rotate(5, Image.Resampling.BICUBIC))
    return lambda: detect(turned, key, deep=True)


def measure(name: str, size: int) -> dict[str, float]:
    """Median milliseconds of CPU over the runs after a first one, and the peak of memory in MB over what was held before it."""
    work = job(name, size)
    before = _peak_mb()
    spent = []
    for _ in range(RUNS[size] + 1):
        began = time.process_time()
        work()
        spent.append(1000 * (time.process_time() - began))
    return {"first_ms": spent[0], "ms": statistics.median(spent[1:]), "mb": _peak_mb() - before}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def apart(name: str, size: int) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.watermark.speed", "--one", name, "--size", str(size)]
    done = subprocess.run(command, env=os.environ | dict.fromkeys(_THREADS, "1"), check=True, capture_output=True, text=True)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", choices=JOBS)
    parser.add_argument("--size", type=int, choices=RUNS, default=512)
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.size)))
        return
    lines = [f"`python -m benchmarks.watermark.speed`, one thread, on {machine()}. Algorithm {trial.algorithm()}.", ""]
    lines += ["| size | work | ms of CPU, median | first call | peak MB above the picture |", "|---|---|---|---|---|"]
    for size in RUNS:
        for name in JOBS:
            found = apart(name, size)
            lines.append(f"| {size}² | {name} | {found['ms']:.0f} | {found['first_ms']:.0f} | {found['mb']:.0f} |")
    text = "# What the watermark costs\n\n" + "\n".join(lines) + "\n"
    print(text)
    if given.table:
        given.table.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
