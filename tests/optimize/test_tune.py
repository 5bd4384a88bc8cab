"""Tuning: the fastest engine of those that keep their bounds, component by component, and the table of what was tried."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'build'")
pytestmark = pytest.mark.torch

from platemark.cli.build import tuned_lines  # noqa: E402
from platemark.errors import InputError  # noqa: E402
from platemark.models import embedded  # noqa: E402
from platemark.optimize import tune as module  # noqa: E402
from platemark.optimize.engines import EngineRequest, request_for  # noqa: E402
from platemark.optimize.specs import FLOAT, Spec  # noqa: E402
from platemark.optimize.tune import Candidate, candidates, milliseconds, tune  # noqa: E402
from platemark.runtime.bundle import Bundle, open_bundle  # noqa: E402
from platemark.runtime.engine import Array, TensorSpec  # noqa: E402
from platemark.runtime.engines import opener, recorded_precision  # noqa: E402
from platemark.runtime.parity import Recorded  # noqa: E402

SPEC = Spec("toy", "toy", "toy/m", (TensorSpec("x", FLOAT, ("batch", 2)),), (TensorSpec("y", FLOAT, ("batch", 2)),), {})
RECORDED = [Recorded({"x": np.ones((n, 2), np.float32)}, {"y": np.ones((n, 2), np.float32)}) for n in (2, 1)]
WANTED = [Candidate("onnxruntime", "fp32", "1"), Candidate("openvino", "fp32", "2"), Candidate("openvino", "int8", "2")]
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs the extra 'openvino'")


class Toy:
    inputs, outputs = SPEC.inputs, SPEC.outputs

    def __init__(self, error: float) -> None:
        self.error = error

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": inputs["x"] * np.float32(1 + self.error)}


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], tuple[float, float]]:
    """(backend, precision) → (milliseconds, error) of engines that are there in place of the real ones."""
    found: dict[tuple[str, str], tuple[float, float]] = {}

    class Backend:
        def __init__(self, name: str) -> None:
            self.name = name

        def label(self) -> str:
            return f"{self.name} 1 cpu"

        def compile_graph(self, path: Path, precision: str = "fp32") -> Toy:
            toy = Toy(found[self.name, precision][1])
            toy.cost = found[self.name, precision][0]  # type: ignore[attr-defined]
            return toy

    monkeypatch.setattr(module.backends, "find", Backend)
    monkeypatch.setattr(module, "milliseconds", lambda engine, recorded: engine.cost)
    return found


def test_the_fastest_within_its_bound_is_kept(costs: dict[tuple[str, str], tuple[float, float]], tmp_path: Path) -> None:
    costs.update({("onnxruntime", "fp32"): (9, 0), ("openvino", "fp32"): (7, 1e-5), ("openvino", "int8"): (3, 0.5)})
    trials, kept = tune(SPEC, RECORDED, tmp_path, "torch", WANTED)
    assert kept is not None
    assert (kept.backend, kept.precision, kept.version, kept.state) == ("openvino", "fp32", "2", "compared")
    assert kept.parity is not None
    assert [trial.outcome for trial in trials[:2]] == ["slower", "kept"]
    assert trials[2].outcome.startswith("toy differs from its reference")
    assert (trials[2].milliseconds, trials[2].rel_l2_error) == (None, None)
    costs["openvino", "int8"] = (3, 1e-2)
    trials, kept = tune(SPEC, RECORDED, tmp_path, "torch", WANTED)
    assert kept is not None
    assert kept.precision == "int8"
    assert trials[2].rel_l2_error == 0.01


def test_the_portable_graph_needs_no_engine(costs: dict[tuple[str, str], tuple[float, float]], tmp_path: Path) -> None:
    costs.update({("onnxruntime", "fp32"): (1, 0), ("openvino", "fp32"): (7, 0), ("openvino", "int8"): (3, 0)})
    trials, kept = tune(SPEC, RECORDED, tmp_path, "torch", WANTED)
    assert kept is None
    assert [trial.outcome for trial in trials] == ["kept", "slower", "slower"]
    table = list(tuned_lines(trials))
    assert len(table) == 3
    assert "kept" in table[0]
    assert "7 ms" in table[1]


def test_calls_are_timed_after_one_that_warms_up() -> None:
    ticks = iter([0, 5, 5, 8, 8, 12])
    assert milliseconds(Toy(0), RECORDED[0], lambda: float(next(ticks))) == 3000


@needs_openvino
def test_candidates_are_what_this_machine_can_run() -> None:
    found = [(one.backend, one.precision) for one in candidates()]
    assert found[:2] == [("onnxruntime", "fp32"), ("openvino", "fp32")]
    assert ("openvino", "int8") in found
    assert ("openvino", "fp16") not in found


def test_each_component_runs_on_its_own_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_bundle(embedded())
    manifest = opened.manifest.model_copy(update={"backends": {"vae_decoder": "openvino"}})
    bundle, asked = Bundle(opened.root, manifest, ""), dict[str, str]()
    monkeypatch.setattr("platemark.runtime.engines.open_engine", lambda bundle, name, backend, **rest: asked.setdefault(name, backend))
    for chosen in (None, "onnxruntime"):
        opens, _ = opener(bundle, chosen), asked.clear()
        for name in ("unet", "vae_decoder"):
            opens(bundle.file(manifest.components[name].graph))
        assert asked == {"unet": "onnxruntime", "vae_decoder": "openvino" if chosen is None else "onnxruntime"}


def test_tuning_takes_no_backend() -> None:
    assert request_for(None, "fp32", [], [], tune=True) == EngineRequest("onnxruntime", tune=True)
    with pytest.raises(InputError, match="by itself"):
        request_for("openvino", "fp32", [], [], tune=True)


@needs_openvino
def test_a_tuned_bundle_renders_with_what_was_kept(checkpoint_folder: Path, exported_before: None, tmp_path: Path) -> None:
    from platemark.optimize.build import build
    from platemark.runtime.pipeline import Pipeline

    manifest = build(checkpoint_folder, tmp_path / "out", engines=EngineRequest("onnxruntime", tune=True))
    by_component: dict[str, list[Any]] = {}
    for trial in manifest.tuned:
        by_component.setdefault(trial.component, []).append(trial)
    assert set(by_component) == set(manifest.components)
    assert all(sum(trial.outcome == "kept" for trial in trials) == 1 for trials in by_component.values())
    kept = {trial.component: (trial.backend, trial.precision) for trial in manifest.tuned if trial.outcome == "kept"}
    assert manifest.backends == {name: backend for name, (backend, _) in kept.items() if backend != "onnxruntime"}
    assert manifest.engines_end_to_end["tuned"].psnr >= manifest.engines_end_to_end["tuned"].bound_psnr
    bundle = open_bundle(tmp_path / "out")
    pipeline = Pipeline.load(bundle, threads=1)
    for name, (backend, precision) in kept.items():
        assert recorded_precision(bundle, name, backend) == precision
        if name in ("unet", "vae_decoder"):
            assert type(pipeline.engine(name)).__module__.endswith(f"backends.{backend}")
