"""Statistics over trial records, and the Markdown table of them."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.watermark.attacks import ATTACKS, COLLUSION, MODEL

Record = dict[str, Any]  # one line of a run's file: of a marking (`psnr` or `unmarkable`) or of a trial (`row`)
Z95 = 1.959964


def wilson(hits: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """The Wilson score interval of a rate (Wilson 1927), 95 % by default; (0, 1) without trials."""
    if not trials:
        return 0.0, 1.0
    rate, weight = hits / trials, z * z / trials
    middle = (rate + weight / 2) / (1 + weight)
    reach = z * math.sqrt(rate * (1 - rate) / trials + weight / (4 * trials)) / (1 + weight)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def target(row: str, size: int) -> float | None:
    if row in COLLUSION:
        return COLLUSION[row]
    attack = ATTACKS.get(row)
    return attack.target if attack is not None and size >= attack.min_side else None


def order(row: str) -> int:
    """Rows in the order in which the attacks are listed."""
    names = [*ATTACKS, *COLLUSION, *MODEL]
    return names.index(row) if row in names else len(names)


def by_row(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The trials of each row, each pair counted once."""
    rows: dict[str, dict[int, Record]] = defaultdict(dict)
    for record in records:
        if "row" in record:
            rows[record["row"]][record["pair"]] = record
    return {row: list(rows[row].values()) for row in sorted(rows, key=order)}


def marking(records: Iterable[Record]) -> list[str]:
    """The lines on marking: PSNR, SSIM, time, and what could not be marked."""
    marked = {record["pair"]: record for record in records if "psnr" in record}
    failed = {record["pair"]: record for record in records if "unmarkable" in record}
    lines = ["| marking | mean | median | min | max |", "|---|---|---|---|---|"]
    for name, field, digits in (
        ("PSNR dB", "psnr", 2), ("PSNR dB of the flat parts", "flat_psnr", 2), ("SSIM", "ssim", 4), ("embed, ms of CPU", "embed_ms", 0),
    ):  # fmt: skip
        values = [record[field] for record in marked.values() if record[field] is not None]
        if values:
            shown = (statistics.mean(values), statistics.median(values), min(values), max(values))
            lines.append(f"| {name} | " + " | ".join(f"{value:.{digits}f}" for value in shown) + " |")
    return [*lines, "", f"{len(marked)} pictures × keys marked, {len(failed)} refused as unmarkable (these count as lost in every row)."]


def attacked(rows: dict[str, list[Record]], size: int) -> list[str]:
    """One line a row: trials, exact-payload rate with its interval, target, share read without the deep search, times."""
    lines = [
        "| attack | n | exact payload | 95 % interval | target | met | fast | median ms | p95 ms | wrong |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row, trials in rows.items():
        hits, count, wanted = sum(t["exact"] for t in trials), len(trials), target(row, size)
        low, high = wilson(hits, count)
        fast = sum(t["stage"] == "fast" for t in trials) / count
        spent = sorted(t["fast_ms"] + (t["deep_ms"] or 0) for t in trials if "fast_ms" in t) or [0.0]
        met = "" if wanted is None else "yes" if hits / count >= wanted else "no"
        shown = "" if wanted is None else f"{100 * wanted:g} %"
        cells = (
            row, count, f"{100 * hits / count:.1f} %", f"{100 * low:.1f} to {100 * high:.1f}", shown, met, f"{100 * fast:.0f} %",
            f"{statistics.median(spent):.0f}", f"{quantile(spent, 0.95):.0f}", sum(t.get("wrong", False) for t in trials),
        )  # fmt: skip
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return lines


def quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def summary(rows: dict[str, list[Record]]) -> str:
    """One line on the deep search over all rows."""
    deep = sorted(t["deep_ms"] for trials in rows.values() for t in trials if t.get("deep_ms") is not None)
    found = sorted(t["deep_ms"] for trials in rows.values() for t in trials if t.get("deep_ms") is not None and t["stage"] == "deep")
    if not deep:
        return "No row needed the deep search."
    return (
        f"Deep search, ms of CPU: {len(deep)} searches, median {statistics.median(deep):.0f}, worst {deep[-1]:.0f}; where it found it "
        f"({len(found)}), median {statistics.median(found or [0]):.0f}."
    )
