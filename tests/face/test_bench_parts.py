"""The parts of the benchmark that measure nothing by themselves: percentiles, intervals, clocks, stages, memory, and energy by counters."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from platemark.bench import energy, memory
from platemark.bench.clocks import Stages, TimedEngine
from platemark.bench.energy import Counter, Meter, open_meter, rapl
from platemark.bench.stages import breakdown, run_times
from platemark.bench.statistics import share, spread
from platemark.errors import EngineError
from platemark.results import Result
from platemark.runtime.engine import Array, TensorSpec


def test_percentiles_are_numpys() -> None:
    values = [float(v) for v in np.random.default_rng(1).gamma(2.0, 30.0, 37)]
    found = spread(values)
    for q in (50, 95, 99):
        assert getattr(found, f"p{q}") == pytest.approx(np.percentile(values, q), abs=1e-3)
    assert (found.min, found.max) == (round(min(values), 4), round(max(values), 4))
    assert spread([2.5]).model_dump() == dict.fromkeys(("mean", "min", "p50", "p95", "p99", "max"), 2.5)


@pytest.mark.parametrize(("count", "n"), [(0, 10), (1, 90), (5, 10), (35, 3150), (90, 90)])
def test_intervals_are_wilsons(count: int, n: int) -> None:
    expected = stats.binomtest(count, n).proportion_ci(0.95, method="wilson")
    found = share(count, n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=2e-6)
    assert found.share == pytest.approx(count / n, abs=1e-6)


def test_a_share_of_nothing_is_unknown_and_not_zero() -> None:
    assert share(0, 0).model_dump() == {"count": 0, "n": 0, "share": None, "low": None, "high": None}


class _Doubler:
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    label = "doubler"

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if not inputs:
            raise EngineError("no input", "give one")
        return {"twice": inputs["x"] * 2}


def test_a_timed_engine_gives_what_the_engine_gives_and_counts_its_calls() -> None:
    clock = TimedEngine(_Doubler())
    assert clock.run({"x": np.arange(3)})["twice"].tolist() == [0, 2, 4]
    with pytest.raises(EngineError):
        clock.run({})
    milliseconds, calls = clock.take()
    assert (calls, milliseconds > 0) == (2, True)
    assert clock.take() == (0.0, 0)
    assert clock.label == "doubler"


def _heard(*events: tuple[str, float, int]) -> Stages:
    return Stages(list(events))


ROAD = _heard(
    ("check_prompt", 10.000, 1), ("reserved", 10.002, 1), ("render", 10.003, 1), ("check_image", 10.103, 2), ("stamp", 10.133, 1),
    ("marked", 10.143, 1), ("marked", 10.153, 1), ("signed", 10.173, 1), ("recorded", 10.178, 1), ("release", 10.179, 1),
)  # fmt: skip
TIMINGS = {"text_encoder": 5.0, "denoise": 80.0, "vae_decoder": 10.0, "resize": 3.0, "check_image": 30.0}
ENGINES = {"text_encoder": (4.0, 1), "unet": (76.0, 12), "vae_decoder": (9.0, 1)}


def _result() -> Result:
    return Result(None, b"png", "png", 0, None, None, TIMINGS, (), None)


def test_stages_and_breakdown_add_up() -> None:
    times = run_times(185.0, 2.0, ROAD, [_result()], ENGINES, 8.0)
    expected = {
        "check_prompt": 4, "tokenize": 1, "text": 4, "prepare": 2, "denoise": 80, "decode": 10, "resize": 3, "check_image": 30,
        "mark": 20, "encode": 8, "sign": 12, "record": 5, "other": 6,
    }  # fmt: skip
    assert {name: round(value, 6) for name, value in times.stages.items()} == expected
    assert sum(times.stages.values()) == pytest.approx(times.latency)
    assert {name: round(value, 6) for name, value in times.outside.items()} == {
        "tokenize": 1, "sampler_and_guidance": 4, "noise_and_batching": 2, "around_the_decoder": 1, "resize": 3, "png": 8,
    }  # fmt: skip
    found = breakdown([times, times])
    assert found.share_of_denoise == pytest.approx(19 / 80)
    assert found.checks_and_provenance_ms.p50 == pytest.approx(4 + 30 + 20 + 12 + 5)


def test_several_pictures_overlap_so_that_no_rest_is_told() -> None:
    assert "other" not in run_times(185.0, 2.0, ROAD, [_result(), _result()], ENGINES, 8.0).stages


def test_an_engine_that_runs_past_its_clock_is_an_error_and_not_a_zero() -> None:
    with pytest.raises(EngineError, match="past their clocks"):
        run_times(185.0, 2.0, ROAD, [_result()], {**ENGINES, "unet": (0.0, 0)}, 8.0)


def _zone(folder: Path, zone: str, name: str, microjoules: int, limit: int = 1000_000_000) -> Path:
    place = folder / zone
    place.mkdir(parents=True)
    for file, text in (("name", name), ("energy_uj", str(microjoules)), ("max_energy_range_uj", str(limit))):
        (place / file).write_text(f"{text}\n")
    return place / "energy_uj"


def test_rapl_counts_packages_and_memory_once(tmp_path: Path) -> None:
    first = _zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    second = _zone(tmp_path, "intel-rapl:1", "package-1", 1_000_000)
    core = _zone(tmp_path, "intel-rapl:0:0", "core", 4_000_000)
    dram = _zone(tmp_path, "intel-rapl:0:1", "dram", 2_000_000)
    whole = _zone(tmp_path, "intel-rapl:2", "psys", 9_000_000)
    meter = Meter(rapl(tmp_path))
    meter.start()
    for file, now in ((first, 15_000_000), (second, 2_500_000), (core, 10_000_000), (dram, 2_250_000), (whole, 99_000_000)):
        file.write_text(str(now))
    meter.stop()
    found = meter.total()
    assert found.energy_meters == {"rapl:package-0": 10.0, "rapl:package-1": 1.5, "rapl:dram of 0": 0.25}
    assert found.energy_j == pytest.approx(11.75)
    assert set(found.energy_source.split("+")) == set(found.energy_meters)


def test_a_counter_that_wraps_goes_on(tmp_path: Path) -> None:
    file = _zone(tmp_path, "intel-rapl:0", "package-0", 990_000_000)
    meter = Meter(rapl(tmp_path))
    for before, after in ((990_000_000, 10_000_000), (10_000_000, 13_000_000)):
        file.write_text(str(before))
        meter.start()
        file.write_text(str(after))
        meter.stop()
    assert meter.total().energy_j == pytest.approx(23.0)


def test_where_no_counter_can_be_read_the_energy_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "nvml", list)
    broken = _zone(tmp_path / "broken", "intel-rapl:0", "package-0", 1)
    broken.write_text("not a number")
    for folder in (tmp_path / "absent", tmp_path / "broken"):
        meter = open_meter(folder)
        meter.start()
        meter.stop()
        assert meter.total().model_dump() == {"energy_j": None, "energy_source": energy.NONE, "energy_meters": {}}


def test_a_counter_that_fails_on_the_way_is_left_out_and_not_guessed() -> None:
    values = iter([1.0, None, 3.0, 4.0])
    meter = Meter([Counter("flaky", lambda: next(values)), Counter("sound", lambda: math.pi)])
    for _ in range(2):
        meter.start()
        meter.stop()
    assert meter.total().energy_meters == {"sound": 0.0}


FAKE_NVML = """
class NVMLError(Exception): pass
reads = 0
def nvmlInit():
    if {dead}: raise NVMLError("no driver")
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(i): return i
def nvmlDeviceGetTotalEnergyConsumption(handle):
    global reads
    if handle == 1: raise NVMLError("not supported")
    reads += 1
    return 1000 * reads
"""


@pytest.mark.parametrize(("dead", "names"), [(False, ["nvml:0"]), (True, [])])
def test_nvml_counts_the_cards_that_have_a_counter(dead: bool, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pynvml.py").write_text(FAKE_NVML.format(dead=dead))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    meter = open_meter(tmp_path / "no-rapl")
    meter.start()
    meter.stop()
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    assert list(meter.total().energy_meters) == names
    assert meter.total().energy_j == (1.0 if names else None)


def test_memory_is_read_from_procfs_in_bytes(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t  2048 kB\nVmRSS:\t   512 kB\n")
    assert not memory.reset_peak(tmp_path)  # there is no clear_refs, and none is made
    assert not (tmp_path / "clear_refs").exists()
    assert memory.resident(False, tmp_path).model_dump() == {
        "rss_bytes": 512 << 10, "peak_rss_bytes": 2048 << 10, "since_reset": False, "source": "procfs VmRSS, VmHWM",
    }  # fmt: skip
    (tmp_path / "clear_refs").write_text("")
    assert memory.reset_peak(tmp_path)
    assert (tmp_path / "clear_refs").read_text() == "5"


def test_a_peak_is_at_least_what_was_held() -> None:
    since = memory.reset_peak()
    held = np.ones(8 << 20, np.uint8)
    found = memory.resident(since)
    assert found.peak_rss_bytes is not None
    assert found.peak_rss_bytes >= held.nbytes
    assert memory.resident(since, Path("/nonexistent")).source == "getrusage ru_maxrss"
