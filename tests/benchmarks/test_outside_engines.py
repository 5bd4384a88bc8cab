"""The benchmarks of what is outside the engines, and of whole processes, in small."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from benchmarks.outside_engines import NEGATIVE, PROMPT, StandIn, measured, sd15_pipeline, table
from benchmarks.whole_process import Run, row
from platemark.bench.energy import Energy
from platemark.runtime.engine import Array
from platemark.runtime.request import GenerationRequest


class _Spy(StandIn):
    """Notes the shapes that a stand-in is asked with."""

    def __init__(self, behind: StandIn) -> None:
        self.inputs, self.outputs, self.behind = behind.inputs, behind.outputs, behind
        self.asked: list[dict[str, tuple[int, ...]]] = []

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.asked.append({name: value.shape for name, value in inputs.items()})
        return self.behind.run(inputs)


def test_the_stand_ins_are_asked_as_stable_diffusion_would_be() -> None:
    pipeline, engines = sd15_pipeline()
    spy = _Spy(engines["unet"])
    pipeline.engines["unet"] = spy
    request = GenerationRequest.make(pipeline.bundle.manifest, prompt=PROMPT, negative_prompt=NEGATIVE, seed=1, num_inference_steps=3)
    output = pipeline.generate(request)
    assert output.images.shape == (1, 512, 512, 3)
    assert output.resampled_from is None
    assert not output.flat[0]
    assert spy.asked == [{"sample": (2, 4, 64, 64), "timestep": (2,), "encoder_hidden_states": (2, 77, 768)}] * 3


def test_the_loop_is_a_part_of_what_is_around_the_networks() -> None:
    ((name, around, loop, png),) = measured(2, 4, ("euler",))
    assert name == "euler"
    assert 0 < loop.min <= around.min
    assert png.min > 0


def test_the_table_gives_the_share_of_the_denoise_time() -> None:
    line = table(1, 2, 1000.0, "made up").splitlines()[-1]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    around, loop, _, png = (float(cell) for cell in cells[1:5])
    assert float(cells[5].removesuffix(" %")) == pytest.approx(100 * (around + png) / (2 * 1000.0 + loop), abs=0.02)


def test_whole_processes_report_memory_and_energy_or_that_it_is_unknown() -> None:
    unknown = Energy(energy_j=None, energy_source="none", energy_meters={})
    known = Energy(energy_j=12.5, energy_source="rapl:package-0", energy_meters={"rapl:package-0": 12.5})
    assert row("a", [Run(2.0, 300 << 20, unknown), Run(1.0, 100 << 20, unknown)]) == "| a | 1.00 | 1.50 | 300 | unknown | 2 |"
    assert row("b", [Run(1.0, 100 << 20, known)]) == "| b | 1.00 | 1.00 | 100 | 12.5 | 1 |"
