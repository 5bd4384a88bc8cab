"""What the gate costs: time of a prompt check and of a picture check, by detector, memory, and what is gained by checking while rendering.

    python -m benchmarks.safety_gate [--policy standard] [--repeats 5] [--no-overlap] [--table FILE]

Prompts are those of the development half of the labelled set; pictures are scikit-image's photographs at 512 and 1024 pixels and
pictures of the embedded model. Milliseconds are wall time of one check by a gate that is loaded, one after the other; CPU milliseconds
are what the process used meanwhile over all its threads. Memory is the most that a process held that loaded this gate alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.whole_process import machine
from platemark.models import embedded
from platemark.press import Press, gate_for, load
from platemark.runtime.bundle import open_bundle
from platemark.safety import prompt
from platemark.safety.decision import Decision
from platemark.safety.gate import Gate
from platemark.safety.policy import load_policy

PROMPTS = Path(__file__).parent / "safety" / "prompts" / "develop.jsonl"
PHOTOGRAPHS = ("astronaut", "cat", "chelsea", "coffee", "rocket", "camera", "coins", "page", "immunohistochemistry", "retina")
EXTRAS = ("semantic", "opennsfw")
Picture = NDArray[np.uint8]


@dataclass
class Times:
    """Milliseconds of many checks: wall, CPU, and each detector's own."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    detectors: dict[str, list[float]] = field(default_factory=dict)

    def add(self, check: Callable[[], Decision]) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        decision = check()
        self.wall.append((time.perf_counter() - wall) * 1000)
        self.cpu.append((time.process_time() - cpu) * 1000)
        for name, ms in {entry.detector: entry.ms for entry in decision.entries}.items():
            self.detectors.setdefault(name, []).append(ms)


def percentile(values: list[float], share: float) -> float:
    return float(np.percentile(np.array(values), share * 100))


def row(what: str, bound: str, times: Times) -> str:
    own = ", ".join(f"{name} {statistics.median(ms):.1f}" for name, ms in sorted(times.detectors.items()))
    numbers = [statistics.median(times.wall), percentile(times.wall, 0.95), max(times.wall), percentile(times.cpu, 0.95)]
    return f"| {what} | {len(times.wall)} | {' | '.join(f'{n:.1f}' for n in numbers)} | {bound} | {own} |"


def prompts() -> list[str]:
    return [json.loads(line)["text"] for line in PROMPTS.read_text(encoding="utf-8").splitlines()]


def photographs(side: int) -> list[Picture]:
    from skimage import data

    found = []
    for name in PHOTOGRAPHS:
        picture = Image.fromarray(np.asarray(getattr(data, name)())).convert("RGB")
        found.append(np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS)))
    return found


def timed(checks: list[Callable[[], Decision]], repeats: int) -> Times:
    """Every check `repeats` times, round by round, after one round that does not count."""
    for check in checks:
        check()
    times = Times()
    for _ in range(repeats):
        for check in checks:
            times.add(check)
    return times


def check_rows(press: Press, repeats: int, most: int) -> list[str]:
    gate: Gate = press.gate

    def pictures(group: list[Picture]) -> list[Callable[[], Decision]]:
        return [lambda one=one: gate.check_output_image(one) for one in group]  # type: ignore[misc]

    own = [np.asarray(press.generate(name, seed=1)[0].image) for name in ("a red apple", "cat", "rocket", "house")]
    texts: list[Callable[[], Decision]] = [
        lambda text=text: gate.check_prompt(text) for text in prompts()[:: max(1, len(prompts()) // most)]
    ]  # type: ignore[misc]
    return [
        row("prompts of the labelled set", "p95 ≤ 20", timed(texts, 1)),
        row("embedded model, 512 × 512", "p95 ≤ 120", timed(pictures(own), repeats)),
        row("photographs, 512 × 512", "p95 ≤ 120", timed(pictures(photographs(512)), repeats)),
        row("photographs, 1024 × 1024", "p95 ≤ 120", timed(pictures(photographs(1024)), repeats)),
    ]


def gate_of(policy: str, extras: bool, home: Path) -> Gate:
    """The gate for the embedded model; without `extras`, what the base install has, whatever is installed here."""
    rules = load_policy(policy)
    if not extras:
        prompt.semantic_detector = lambda: None  # type: ignore[assignment]  # as where its package is not installed
        rules = rules.model_copy(update={"detectors": tuple(one for one in rules.detectors if one.name not in EXTRAS)})
    return gate_for(open_bundle(embedded()), rules, home)


def memory(policy: str, extras: bool) -> float:
    """MiB at most, of a fresh process that loads this gate and looks at a picture and a prompt."""
    command = [sys.executable, "-m", "benchmarks.safety_gate", "--memory", "--policy", policy, *(["--extras"] if extras else [])]
    return float(subprocess.run(command, check=True, capture_output=True).stdout)


def own_memory(policy: str, extras: bool) -> float:
    """What `memory` runs: decisions, then the peak of this process in MiB."""
    with tempfile.TemporaryDirectory() as home:
        gate = gate_of(policy, extras, Path(home))
        picture = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
        gate.check_output_image(picture)
        gate.check_prompt("a red apple")
    # Not ru_maxrss: that of a child begins at what its parent held when it forked.
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def overlap_rows(press: Press, runs: int, n: int = 24) -> list[str]:
    """Seconds of one request of `n` pictures in batches, with the stages side by side and one after the other, by turns."""
    import platemark.press as module

    real, seconds = module.ahead, {"side by side": [], "one after the other": []}  # type: ignore[var-annotated]
    for _ in range(runs):
        for name, how in (("side by side", real), ("one after the other", _one_by_one)):
            module.ahead = how  # type: ignore[assignment]
            began = time.perf_counter()
            press.generate("a red apple", n=n, seed=1, height=256, width=256)
            seconds[name].append(time.perf_counter() - began)
    module.ahead = real
    return [f"| {name} | {min(s):.2f} | {statistics.median(s):.2f} | {len(s)} |" for name, s in seconds.items()]


def _one_by_one(items: Any) -> Any:
    yield from items


def table(policy: str, repeats: int, overlap: bool, most: int, extras: bool) -> str:
    with tempfile.TemporaryDirectory() as home:
        press = load(policy=policy, home=home)
        press.gate = gate_of(policy, extras, Path(home))
        rows = check_rows(press, repeats, most)
        detectors = ", ".join(press.gate.detectors)
        beside = overlap_rows(press, max(2, repeats // 2)) if overlap else []
    parts = [
        f"Policy `{policy}`, detectors {detectors}, one check after the other; load average before: "
        f"{os.getloadavg()[0]:.1f} (what runs beside lengthens wall time, and by its use of the caches CPU time too).",
        "",
        "| what is checked | checks | median ms | p95 ms | max ms | p95 CPU ms | bound | median ms by detector |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"Memory of a process with this gate alone: {memory(policy, extras):.0f} MiB at most (bound 400).",
    ]
    if beside:
        head = ["", "One request of 24 pictures, 256 × 256, from prompt to signed files:", ""]
        parts += [*head, "| checks and stamps | min s | median s | runs |", "|---|---|---|---|", *beside]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="standard")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=1000, help="at most about this many of the labelled set")
    parser.add_argument("--no-overlap", action="store_true", help="leave out the requests of 24 pictures")
    parser.add_argument(
        "--extras", action="store_true", help="with the detectors of the extra `safety`; default: those of the base install"
    )
    parser.add_argument("--memory", action="store_true", help="print the peak of this process with the gate alone, in MiB")
    parser.add_argument("--table", type=Path, help="write the table here, e.g. benchmarks/results/safety_gate.md")
    args = parser.parse_args()
    if args.memory:
        print(own_memory(args.policy, args.extras))
        return
    text = table(args.policy, args.repeats, not args.no_overlap, args.prompts, args.extras)
    print(text)
    if args.table:
        command = shlex.join(["python", "-m", "benchmarks.safety_gate", *sys.argv[1:]])
        args.table.write_text(f"# What the gate costs\n\n`{command}`, on {machine()}\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
