"""Measures C2PA signing: signatures a second in memory, bytes added, how it scales with processes, and durable writes apart.

Run from the repository root:

    python -m benchmarks.signing [--seconds 4] [--table benchmarks/results/signing.md]

The pictures are 1024 x 1024, synthetic (blobs and grain), JPEG of about 0.3 MB. Prints Markdown; `--table` writes it, under the command and
the machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.whole_process import machine
from platemark.imaging import WRITABLE, encode
from platemark.provenance.certificates import ALGORITHMS
from platemark.provenance.files import write_atomically
from platemark.provenance.identity import Identity, init_keys, load_identity
from platemark.provenance.record import Facts
from platemark.provenance.signing import Signed, sign, verified

SIDE = 1024
QUALITY = 95
_FACTS = {
    "model_name": "benchmark", "model_sha256": "ab" * 32, "bundle_sha256": "cd" * 32, "seed": 2**63, "request_hmac": "ef" * 32,
    "settings": {"num_inference_steps": "20", "guidance_scale": "7.5", "height": "1024", "width": "1024", "scheduler": "euler"},
    "resampled_from": None, "decision": {"action": "allow", "policy_id": "standard", "policy_sha256": "12" * 32},
}  # fmt: skip


def picture() -> NDArray[np.uint8]:
    """Colour ramps, soft blobs and fine grain."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    made = np.stack([80 + 90 * x / SIDE, 170 - 90 * y / SIDE, np.full_like(x, 110)], axis=-1)
    for _ in range(40):
        cy, cx, radius = rng.uniform(0, SIDE), rng.uniform(0, SIDE), rng.uniform(20, 90)
        made += np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * radius**2))[..., None] * rng.uniform(-120, 120, 3)
    return np.clip(made + rng.normal(0, 2.5, made.shape), 0, 255).astype(np.uint8)


def sign_one(data: bytes, file_format: str, identity: Identity) -> Signed:
    facts = Facts.model_validate(_FACTS)
    common = {"created": "2026-08-02T00:00:00Z", "generator": "platemark/0.1.0"}
    return sign(data, f"image/{file_format}", facts, identity, content_id=7, payload="0123456789abcdef", **common)


def rate(work: Callable[[], object], seconds: float) -> tuple[float, float, float]:
    """(calls a second of wall time, calls a second of CPU time, median milliseconds) over `seconds`."""
    work()
    times, cpu, began = [], time.process_time(), time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return len(times) / (time.perf_counter() - began), len(times) / (time.process_time() - cpu), statistics.median(times) * 1000


def worker(home: str, data: bytes, seconds: float, counts: multiprocessing.Queue[tuple[float, float]]) -> None:
    identity = load_identity(Path(home))
    if identity is None:
        raise SystemExit("no identity in the benchmark's folder")
    counts.put(rate(lambda: sign_one(data, "jpeg", identity), seconds)[:2])


def together(processes: int, home: Path, data: bytes, seconds: float) -> tuple[float, float]:
    """Signatures of that many processes at once: a second of wall time, all together, and a second of CPU time, the mean of each."""
    context = multiprocessing.get_context("spawn")
    counts: multiprocessing.Queue[tuple[float, float]] = context.Queue()
    started = [context.Process(target=worker, args=(str(home), data, seconds, counts)) for _ in range(processes)]
    for process in started:
        process.start()
    found = [counts.get() for _ in started]
    for process in started:
        process.join()
    return sum(wall for wall, _ in found), statistics.mean(cpu for _, cpu in found)


def formats(image: NDArray[np.uint8], identity: Identity, seconds: float) -> list[str]:
    rows = [
        "| format | MB | signatures/s | per s of CPU | median ms | bytes added | signed and read anew, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for file_format in WRITABLE:
        data = encode(image, file_format, quality=QUALITY)
        wall, cpu, median = rate(lambda: sign_one(data, file_format, identity), seconds)  # noqa: B023  # called here and now
        twice = rate(lambda: verified(sign_one(data, file_format, identity), f"image/{file_format}"), seconds / 2)[2]  # noqa: B023
        added = len(sign_one(data, file_format, identity).data) - len(data)
        rows.append(f"| {file_format} | {len(data) / 1e6:.2f} | {wall:.0f} | {cpu:.0f} | {median:.2f} | {added} | {twice:.2f} |")
    return rows


def keys(data: bytes, folder: Path, seconds: float) -> list[str]:
    rows = ["| key | signatures/s | median ms |", "|---|---|---|"]
    for algorithm in ALGORITHMS:
        identity = init_keys(folder / algorithm, algorithm=algorithm)
        wall, _, median = rate(lambda: sign_one(data, "jpeg", identity), seconds)  # noqa: B023
        rows.append(f"| {algorithm} | {wall:.0f} | {median:.2f} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    image = picture()
    jpeg = encode(image, "jpeg", quality=QUALITY)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        identity = init_keys(folder / "home")
        signed = sign_one(jpeg, "jpeg", identity).data
        counted = {n: together(n, folder / "home", jpeg, options.seconds) for n in (1, 2)}
        scaling = [f"| {n} | {wall:.0f} | {cpu:.0f} |" for n, (wall, cpu) in counted.items()]
        durable = rate(lambda: write_atomically(folder / "x.jpg", signed), options.seconds)[2]
        lines = [
            "# Signing\n",
            f"`{shlex.join(['python', '-m', 'benchmarks.signing', *sys.argv[1:]])}`, on {machine()}\n",
            "1 MP pictures in memory, ES256, no time stamp; each signature is read back by the library before it counts.\n",
            *formats(image, identity, options.seconds),
            "\nOne thread each, so many processes at once (JPEG):\n",
            "| processes | signatures/s, together | per s of CPU, each |\n|---|---|---|",
            *scaling,
            "\nKeys (JPEG):\n",
            *keys(jpeg, folder, options.seconds / 2),
            f"\nA durable write (temporary file, fsync, rename, fsync of the folder) of the signed JPEG takes {durable:.2f} ms besides.",
        ]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.table:
        options.table.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
