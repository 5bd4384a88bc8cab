"""Names the machine that a measurement was made on, as far as the system tells."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from platemark import __version__
from platemark.bench.statistics import Data

CPUINFO = Path("/proc/cpuinfo")


class Machine(Data):
    """`cores`: that this process may use. `software`: name → version of what decides the speed."""

    cpu: str
    cores: int
    system: str
    software: dict[str, str]

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.software.items())
        return f"{self.cpu}, {self.cores} cores, {self.system}, {versions}"


def this_machine(**software: str) -> Machine:
    """`software`: further versions to name, such as the engine library's."""
    versions = {"python": platform.python_version(), "platemark": __version__, **software}
    return Machine(cpu=_cpu(), cores=_cores(), system=f"{platform.system()} {platform.machine()}", software=versions)


def _cpu(cpuinfo: Path = CPUINFO) -> str:
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cores() -> int:
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed is not None else os.cpu_count() or 1
