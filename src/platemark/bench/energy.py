"""Energy by the machine's own counters: RAPL of the processor packages, NVML of NVIDIA cards. Never an estimate.

A counter covers its whole package or card, whatever else runs on it. Where no counter can be read the answer is None: containers and
virtual machines mostly have none, and RAPL's files are the superuser's alone on most systems.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platemark.bench.statistics import Data

POWERCAP = Path("/sys/class/powercap")
NONE = "none: no readable RAPL counter, no NVML"


class Energy(Data):
    """`energy_j`: the sum over all `meters` in joules, null where there is none. `energy_source` names them, or says that there is none."""

    energy_j: float | None
    energy_source: str
    energy_meters: dict[str, float]


@dataclass(frozen=True)
class Counter:
    """One running total in joules. `wraps`: at which value it starts over, None where it does not."""

    name: str
    read: Callable[[], float | None]
    wraps: float | None = None


class Meter:
    """Adds up what the counters advance between `start` and `stop`, as often as those are called.

    A counter that wraps must not do so twice between the two; a package at 100 W takes some 40 minutes for one turn. A counter that cannot
    be read once is out for good.
    """

    def __init__(self, counters: list[Counter]) -> None:
        self._counters = counters
        self._before: dict[str, float] = {}
        self._joules = {counter.name: 0.0 for counter in counters}

    def start(self) -> None:
        self._before = {counter.name: value for counter in self._counters if (value := counter.read()) is not None}

    def stop(self) -> None:
        for counter in self._counters:
            after, before = counter.read(), self._before.get(counter.name)
            if after is None or before is None:
                self._joules.pop(counter.name, None)
            elif counter.name in self._joules:
                self._joules[counter.name] += after - before + (counter.wraps or 0.0 if after < before else 0.0)

    def total(self) -> Energy:
        meters = {name: round(joules, 6) for name, joules in self._joules.items()}
        source = "+".join(meters) if meters else NONE
        return Energy(energy_j=round(sum(meters.values()), 6) if meters else None, energy_source=source, energy_meters=meters)


def open_meter(powercap: Path = POWERCAP) -> Meter:
    """A meter over every counter that can be read now; `powercap` is the kernel's folder of that name."""
    return Meter([*rapl(powercap), *nvml()])


def rapl(powercap: Path) -> list[Counter]:
    """The counters of processor packages, and of memory where it is counted apart (Linux powercap, `intel-rapl`; AMD's bear that name too).

    A package's own figure holds its cores and caches already, so those are left out; so is `psys`, which holds the packages.
    """
    found = []
    for zone in sorted(powercap.glob("intel-rapl:*")):
        name, limit = _text(zone / "name"), _number(zone / "max_energy_range_uj")
        if name is None or not (name.startswith("package") or name == "dram") or _number(zone / "energy_uj") is None:
            continue
        label = f"rapl:{name}" if name != "dram" else f"rapl:dram of {zone.name.split(':')[1]}"
        found.append(Counter(label, _joules(zone / "energy_uj"), None if limit is None else limit / 1e6))
    return found


def nvml() -> list[Counter]:
    """The total-energy counters of NVIDIA cards (Volta and later), where the Python module `pynvml` is installed and finds a driver."""
    if importlib.util.find_spec("pynvml") is None:
        return []
    library: Any = importlib.import_module("pynvml")
    try:
        library.nvmlInit()
        handles = [library.nvmlDeviceGetHandleByIndex(i) for i in range(library.nvmlDeviceGetCount())]
    except library.NVMLError:
        return []
    counters = [Counter(f"nvml:{i}", _millijoules(library, handle)) for i, handle in enumerate(handles)]
    return [counter for counter in counters if counter.read() is not None]


def _millijoules(library: Any, handle: Any) -> Callable[[], float | None]:
    def read() -> float | None:
        try:
            return float(library.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
        except library.NVMLError:
            return None

    return read


def _joules(path: Path) -> Callable[[], float | None]:
    def read() -> float | None:
        microjoules = _number(path)
        return None if microjoules is None else microjoules / 1e6

    return read


def _number(path: Path) -> float | None:
    text = _text(path)
    return float(text) if text is not None and text.isdecimal() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
