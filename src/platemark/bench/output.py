"""Reports as text for people: tables of fixed columns. The reports themselves hold more, and `--json` shows all of it."""

from __future__ import annotations

from collections.abc import Iterator

from platemark.bench.latency import LatencyReport
from platemark.bench.memory import Memory
from platemark.bench.statistics import Spread

_WIDTH = 22


def latency_lines(report: LatencyReport, *, breakdown: bool = False) -> Iterator[str]:
    """The table of `platemark bench`."""
    yield f"{report.bundle}, policy {report.policy}, {report.n} picture(s) a request, {report.runs} runs after {report.warmup} to warm up"
    yield str(report.machine)
    yield ", ".join(f"{name} {value}" for name, value in report.settings.items())
    first = "" if report.first_ms is None else f", first request {report.first_ms:.0f} ms"
    yield f"loaded in {report.load_ms:.0f} ms{first}"
    yield ""
    yield f"{'milliseconds':{_WIDTH}} {'p50':>9} {'p95':>9} {'p99':>9} {'share':>7}"
    yield _row("latency", report.latency_ms, 1.0)
    for name, one in report.stages_ms.items():
        yield _row(f"  {name}", one, one.mean / report.latency_ms.mean)
    yield _row("denoise, one step", report.ms_per_step)
    yield ""
    if breakdown:
        yield from _breakdown(report)
    yield f"{'images/s':{_WIDTH}} {report.images_per_second:9.2f}"
    yield f"{'memory':{_WIDTH}} {_memory(report.memory)}; loading {_memory(report.memory_loaded)} ({report.memory.source})"
    for kept in report.savings:
        clip = "" if kept.clip_with is None else f", CLIP {kept.clip_with:.3f} against {kept.clip_without:.3f}"
        said = (
            f"denoise {kept.speed_up:.2f} times as fast, {kept.psnr:.1f} dB from the pictures without it{clip} ({kept.pictures} pictures)"
        )
        yield f"{kept.setting + ' ' + kept.value:{_WIDTH}} {said}"
    energy = "unknown" if report.energy_j is None else f"{report.energy_j_per_image:.2f} J an image, {report.energy_j:.1f} J in all"
    yield f"{'energy':{_WIDTH}} {energy} ({report.energy_source})"


def _breakdown(report: LatencyReport) -> Iterator[str]:
    parts, denoise = report.breakdown, report.breakdown.denoise_ms.mean
    yield f"{'outside the engines':{_WIDTH}} {'p50':>9} {'p95':>9} {'p99':>9} {'of denoise':>10}"
    for name, one in parts.parts_ms.items():
        yield _row(f"  {name}", one, one.mean / denoise, 10)
    yield _row("  all of it", parts.outside_ms, parts.share_of_denoise, 10)
    yield _row("checks and provenance", parts.checks_and_provenance_ms, parts.checks_and_provenance_ms.mean / denoise, 10)
    yield ""


def _row(name: str, one: Spread, share: float | None = None, width: int = 7) -> str:
    figures = f"{name:{_WIDTH}} {one.p50:9.2f} {one.p95:9.2f} {one.p99:9.2f}"
    return figures if share is None else f"{figures} {100 * share:{width - 2}.1f} %"


def _memory(one: Memory) -> str:
    if one.peak_rss_bytes is None:
        return "unknown"
    return f"peak {one.peak_rss_bytes / 2**20:.0f} MiB resident" + ("" if one.since_reset else " since the process began")
