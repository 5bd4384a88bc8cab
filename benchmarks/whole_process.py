"""Times `platemark generate` and `verify` as whole processes: from the shell's call to the finished, checked, marked, signed file.

    python -m benchmarks.whole_process [--runs 5]

Prints a Markdown table with the machine named. The first run of a new state folder makes keys, registry and text embeddings, and is
given apart.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def machine() -> str:
    """CPU model and core count, as far as the system tells."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":", 1)[1].strip() for line in info.read_text(errors="replace").splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"


def timed(arguments: list[str], home: Path) -> float:
    """Seconds of one process. Raises `CalledProcessError` where it fails."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "platemark", *arguments]
    subprocess.run(command, env=os.environ | {"PLATEMARK_HOME": str(home)}, check=True, capture_output=True)
    return time.perf_counter() - began


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
    print(f"{machine()}\n\n| command | min s | median s | runs |\n|---|---|---|---|")
    for name, seconds in rows.items():
        print(f"| {name} | {min(seconds):.2f} | {statistics.median(seconds):.2f} | {len(seconds)} |")


if __name__ == "__main__":
    main()
