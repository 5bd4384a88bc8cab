"""What a build will take: estimated from headers, refused where it cannot fit, with the smaller option named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("torch", reason="needs the extra 'build'")
pytestmark = pytest.mark.torch

from platemark.cli.build import command  # noqa: E402
from platemark.errors import InputError  # noqa: E402
from platemark.models import embedded  # noqa: E402
from platemark.optimize import plan as module  # noqa: E402
from platemark.optimize.build import build  # noqa: E402
from platemark.optimize.checkpoint import Checkpoint, open_checkpoint  # noqa: E402
from platemark.optimize.engines import EngineRequest  # noqa: E402
from platemark.optimize.plan import FACTORS, Limits, check_fits, lines, make_plan  # noqa: E402

PLENTY = Limits(1 << 40, 1 << 40)
RTX = EngineRequest("tensorrt_rtx", "fp32", ("sm_89",))


@pytest.fixture(scope="module")
def emoji() -> Checkpoint:
    return open_checkpoint(embedded())


def test_sizes_are_those_of_the_headers(emoji: Checkpoint, tmp_path: Path) -> None:
    found = make_plan(emoji, tmp_path / "out", None, False, PLENTY)
    weights = 4 * sum(tensor.size for tensor in emoji.parts["unet"].tensors.values())
    export = next(step for step in found.steps if step.what == "unet: export")
    assert export.memory == FACTORS["export"].base + int(FACTORS["export"].weights * weights)
    files = sum(path.stat().st_size for _, path in emoji.files())
    assert files <= found.disk <= files + (24 << 20)
    halves = {name: 4 * sum(t.size for t in emoji.parts["vae"].tensors.values() if t.name.startswith(name)) for name in ("enc", "dec")}
    assert halves["enc"] != halves["dec"]
    assert found.fits
    assert {step.what.split(":")[0] for step in found.steps} >= {"unet", "vae_decoder", "clip_text", "the whole pipeline"}


def test_what_is_asked_for_is_in_the_plan(emoji: Checkpoint, tmp_path: Path) -> None:
    plain = make_plan(emoji, tmp_path / "out", None, False, PLENTY)
    merged = make_plan(emoji, tmp_path / "out", None, True, PLENTY)
    wide, narrow = (make_plan(emoji, tmp_path / "out", replace(RTX, precision=precision), False, PLENTY) for precision in ("fp32", "fp16"))
    assert merged.disk > 1.8 * plain.disk
    assert plain.disk < narrow.disk < wide.disk
    assert plain.seconds < narrow.seconds < wide.seconds
    assert any("openvino" in step.what for step in make_plan(emoji, tmp_path / "o", EngineRequest("openvino"), False, PLENTY).steps)


@pytest.mark.parametrize(
    ("limits", "request_", "said", "remedy"),
    [
        (Limits(1 << 28, 1 << 40), None, r"whole pipeline: .* needs about .* of memory, and 0\.2 GiB are available", "smaller checkpoint"),
        (Limits(1 << 40, 1 << 20), None, "on disk, and 1 MiB are free", "another output folder"),
        (Limits(1 << 28, 1 << 40), RTX, "of memory", "--precision fp16"),
        (Limits(1 << 28, 1 << 40), EngineRequest("openvino"), "of memory", "leave --backend out"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_smaller_option(
    emoji: Checkpoint, tmp_path: Path, limits: Limits, request_: Any, said: str, remedy: str
) -> None:
    found = make_plan(emoji, tmp_path / "out", request_, False, limits)
    assert not found.fits
    with pytest.raises(InputError, match=said) as caught:
        check_fits(found, request_)
    assert remedy in caught.value.remedy
    assert "\n" not in str(caught.value)
    check_fits(replace(found, limits=Limits(None, None)), request_)  # a machine that does not tell refuses nothing


def test_every_build_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "limits_here", lambda out: Limits(1 << 40, 1 << 10))
    with pytest.raises(InputError, match="on disk"):
        build(embedded(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_limits_are_this_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = module.limits_here(tmp_path / "not" / "there")
    assert found.disk is not None
    assert found.disk > 1 << 20
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:     100 kB\n")
    monkeypatch.setattr(module, "_MEMINFO", tmp_path / "meminfo")
    for name, text in (("max", "90000"), ("current", "80000")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(module, "_LIMITS", (tmp_path / "max", tmp_path / "current"))
    assert module.limits_here(tmp_path / "out").memory == 9500
    (tmp_path / "max").write_text("max\n")
    assert module.limits_here(tmp_path / "out").memory == int(100 * 1024 * 0.95)
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "x").write_bytes(b"0" * 5000)
    assert module.limits_here(tmp_path / "out").disk is not None


def test_the_command_shows_a_table_or_json_and_makes_nothing(tmp_path: Path) -> None:
    told = CliRunner().invoke(command, [str(embedded()), "-o", str(tmp_path / "out"), "--plan", "--json"], standalone_mode=False)
    value = json.loads(told.output)
    assert value["memory"] == max(step["memory"] for step in value["steps"])
    assert value["fits"] is True
    shown = CliRunner().invoke(command, [str(embedded()), "-o", str(tmp_path / "out"), "--plan"], standalone_mode=False)
    assert "peak and sums" in shown.output
    assert "available here" in shown.output
    assert not list(tmp_path.iterdir())


def test_a_table_says_too_little(emoji: Checkpoint, tmp_path: Path) -> None:
    *_, last = lines(make_plan(emoji, tmp_path, None, False, Limits(1 << 20, 1 << 20)))
    assert last.endswith("too little")
