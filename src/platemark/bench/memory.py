"""Resident memory of this process, now and at its peak, as the system counts it. Knows nothing of graphics memory."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

from platemark.bench.statistics import Data

PROC = Path("/proc/self")


class Memory(Data):
    """Bytes; null where this system does not tell. `since_reset`: whether the peak is since `reset_peak`, or of the whole process."""

    rss_bytes: int | None
    peak_rss_bytes: int | None
    since_reset: bool
    source: str


def reset_peak(proc: Path = PROC) -> bool:
    """Lets the peak start anew from what is resident now (Linux: 5 into `clear_refs`, see proc(5)); False where that cannot be had."""
    try:
        with (proc / "clear_refs").open("r+") as file:  # the kernel's file: opened only where it is there
            file.write("5")
    except OSError:
        return False
    return True


def resident(since_reset: bool, proc: Path = PROC) -> Memory:
    """Memory as it is now. `since_reset`: what `reset_peak` said."""
    now, peak = _kibibytes(proc / "status", "VmRSS"), _kibibytes(proc / "status", "VmHWM")
    if peak is not None:
        return Memory(rss_bytes=now, peak_rss_bytes=peak, since_reset=since_reset, source="procfs VmRSS, VmHWM")
    peak = _getrusage()
    source = "none: this system tells no resident size" if peak is None else "getrusage ru_maxrss"
    return Memory(rss_bytes=now, peak_rss_bytes=peak, since_reset=False, source=source)


def _kibibytes(status: Path, field: str) -> int | None:
    try:
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith(f"{field}:")]
    return int(found[0][1]) * 1024 if found and len(found[0]) > 1 and found[0][1].isdecimal() else None


def _getrusage() -> int | None:
    if importlib.util.find_spec("resource") is None:  # Windows
        return None
    resource = importlib.import_module("resource")
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
