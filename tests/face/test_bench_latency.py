"""The latency benchmark on the embedded model: what it reports, that it measures the whole road, and that it leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from platemark.bench.energy import Counter, Meter
from platemark.bench.latency import LatencyReport, Plan, measure
from platemark.bench.output import latency_lines
from platemark.errors import InputError, PolicyBlocked

STEPS, RUNS = 2, 2
SMALL = {"num_inference_steps": STEPS, "height": 128, "width": 128}


def _ticking() -> Meter:
    """A counter that says 3 J more each time it is read."""
    values = iter(range(0, 3000, 3))
    return Meter([Counter("fake:0", lambda: float(next(values)))])


@pytest.fixture(scope="module")
def measured() -> tuple[LatencyReport, list[tuple[int, int]]]:
    heard: list[tuple[int, int]] = []
    plan = Plan(runs=RUNS, warmup=1, settings=SMALL)
    return measure(plan=plan, meter=_ticking(), on_run=lambda done, total: heard.append((done, total))), heard


def test_every_stage_of_the_road_is_timed(measured: tuple[LatencyReport, list[tuple[int, int]]]) -> None:
    report, heard = measured
    road = ["check_prompt", "tokenize", "text", "prepare", "denoise", "decode", "resize", "check_image", "mark", "encode", "sign", "record"]
    assert list(report.stages_ms) == [*road, "other"]
    for name in ("check_prompt", "text", "denoise", "decode", "check_image", "mark", "encode", "sign", "record"):
        assert report.stages_ms[name].min > 0, name
    assert report.ms_per_step.mean == pytest.approx(report.stages_ms["denoise"].mean / STEPS, rel=1e-3)
    assert report.settings["num_inference_steps"] == str(STEPS)
    assert heard == [(1, 3), (2, 3), (3, 3)]


def test_the_parts_stay_within_the_whole(measured: tuple[LatencyReport, list[tuple[int, int]]]) -> None:
    report, _ = measured
    assert sum(one.mean for one in report.stages_ms.values()) <= report.latency_ms.mean * 1.5  # `encode` is timed apart, and may differ
    assert report.breakdown.denoise_ms == report.stages_ms["denoise"]
    assert report.breakdown.share_of_denoise == pytest.approx(report.breakdown.outside_ms.mean / report.breakdown.denoise_ms.mean, rel=1e-2)
    assert report.images_per_second == pytest.approx(1000 / report.latency_ms.mean, rel=1e-2)
    assert report.first_ms is not None


def test_energy_is_of_the_measured_runs_alone(measured: tuple[LatencyReport, list[tuple[int, int]]]) -> None:
    report, _ = measured
    assert (report.energy_j, report.energy_source) == (3.0 * RUNS, "fake:0")
    assert report.energy_j_per_image == 3.0


def test_memory_is_reported_for_loading_and_for_running(measured: tuple[LatencyReport, list[tuple[int, int]]]) -> None:
    report, _ = measured
    assert report.memory.peak_rss_bytes is not None
    assert report.memory_loaded.peak_rss_bytes is not None
    assert report.memory.peak_rss_bytes > 50 << 20


def test_the_table_names_machine_stages_and_energy(measured: tuple[LatencyReport, list[tuple[int, int]]]) -> None:
    report, _ = measured
    plain, full = list(latency_lines(report)), list(latency_lines(report, breakdown=True))
    assert report.machine.cpu in plain[1]
    assert any(line.startswith("latency") and line.endswith("100.0 %") for line in plain)
    assert any(line.endswith("6.0 J in all (fake:0)") for line in plain)
    assert not any("outside the engines" in line for line in plain)
    assert any(line.startswith("  png") for line in full)


def test_nothing_is_left_in_the_users_state(measured: tuple[LatencyReport, list[tuple[int, int]]], state_home: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("PLATEMARK_REGISTRY", "postgresql://nobody@127.0.0.1:1/none")  # a server that is not there is not asked either
    report = measure(plan=Plan(runs=1, warmup=0, n=2, settings=SMALL), meter=Meter([]))
    assert (report.n, report.first_ms, report.energy_j, report.energy_j_per_image) == (2, None, None, None)
    assert "other" not in report.stages_ms
    assert list(state_home.iterdir()) == []


@pytest.mark.parametrize("bad", [{"runs": 0}, {"warmup": -1}, {"n": 9}, {"n": 0}])
def test_impossible_plans_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(InputError, match="out of range"):
        Plan(**bad)  # type: ignore[arg-type]


def test_a_prompt_that_the_policy_blocks_cannot_be_timed() -> None:
    with pytest.raises(PolicyBlocked):
        measure(plan=Plan(prompt="a hand grenade", runs=1, settings=SMALL), meter=Meter([]))


def test_a_setting_that_saves_time_is_told_with_what_it_costs() -> None:
    plan = Plan(runs=1, warmup=0, settings={**SMALL, "guidance_scale": 4.0, "guidance_interval": (0.0, 1.0)})
    report = measure(plan=plan)
    (one,) = report.savings
    assert (one.setting, one.value) == ("guidance_interval", "0:1")
    assert one.speed_up > 0
    assert 5 < one.psnr < 60
    assert one.clip_with is not None
    assert one.clip_with != one.clip_without
    assert any("guidance_interval 0:1" in line and "times as fast" in line for line in latency_lines(report))


def test_a_setting_that_changes_nothing_costs_nothing() -> None:
    report = measure(plan=Plan(runs=1, warmup=0, settings={**SMALL, "guidance_interval": (0.0, 1e6)}))
    assert report.savings[0].psnr == 120.0
    assert report.savings[0].clip_with == report.savings[0].clip_without
