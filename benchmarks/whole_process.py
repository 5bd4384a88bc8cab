"""Times `platemark generate` and `verify` as whole processes: from the shell's call to the finished, checked, marked, signed file.

    python -m benchmarks.whole_process [--runs 5]

Prints a Markdown table with the machine named: seconds, peak resident memory, and energy where the machine has a counter (RAPL, NVML; of
the whole package or card, whatever else runs). The first run of a new state folder makes keys, registry and text embeddings, and is given
apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from platemark.bench.energy import Energy, open_meter
from platemark.bench.machine import this_machine

# A small process of its own: the system counts what the parent holds as the child's until the child is a program of its own.
LAUNCHER = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
took = time.perf_counter() - began
print(json.dumps([took, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, done.returncode]))
"""
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss


@dataclass(frozen=True)
class Run:
    """One whole process."""

    seconds: float
    peak_bytes: int
    energy: Energy


def machine() -> str:
    """CPU model and core count, as far as the system tells."""
    found = this_machine()
    return f"{found.cpu}, {found.cores} cores, Python {found.software['python']}"


def timed(arguments: list[str], home: Path) -> Run:
    """One `platemark` process, timed. Raises `CalledProcessError` where it fails."""
    command = [sys.executable, "-m", "platemark", *arguments]
    meter = open_meter()
    meter.start()
    launched = subprocess.run(
        [sys.executable, "-c", LAUNCHER, *command], env=os.environ | {"PLATEMARK_HOME": str(home)}, check=True, capture_output=True
    )
    meter.stop()
    seconds, peak, code = json.loads(launched.stdout)
    if code:
        raise subprocess.CalledProcessError(code, command)
    return Run(seconds, peak * _RSS_UNIT, meter.total())


def row(name: str, runs: list[Run]) -> str:
    """A line of the table."""
    seconds = [run.seconds for run in runs]
    joules = [run.energy.energy_j for run in runs if run.energy.energy_j is not None]
    energy = f"{statistics.median(joules):.1f}" if joules else "unknown"
    peak = max(run.peak_bytes for run in runs) / 2**20
    return f"| {name} | {min(seconds):.2f} | {statistics.median(seconds):.2f} | {peak:.0f} | {energy} | {len(runs)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        home, picture = Path(folder) / "home", Path(folder) / "apple.png"
        generate = ["generate", "a red apple", "--seed", "1", "-o", str(picture)]
        rows = {"generate, first run of a state folder": [timed(generate, home)]}
        rows["generate"] = [timed(generate, home) for _ in range(runs)]
        rows["verify"] = [timed(["verify", str(picture)], home) for _ in range(runs)]
        rows["--help"] = [timed(["--help"], home) for _ in range(runs)]
    print(f"{machine()}\n\n| command | min s | median s | peak MiB | median J | runs |\n|---|---|---|---|---|---|")
    for name, found in rows.items():
        print(row(name, found))
    print(f"\nEnergy: {rows['generate'][0].energy.energy_source}.")


if __name__ == "__main__":
    main()
