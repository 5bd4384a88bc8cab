"""float16: what overflows is found before a GPU does, those nodes stay float32, and the record says so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("torch", reason="needs the extra 'build'")
pytestmark = pytest.mark.torch

from platemark.errors import CheckpointError, ParityError  # noqa: E402
from platemark.optimize.half_graph import half_graph, overflowing  # noqa: E402
from platemark.optimize.parity import make_cases, record  # noqa: E402
from platemark.optimize.passes.half import to_half  # noqa: E402
from platemark.optimize.passes.watch import errors, magnitudes, rounded  # noqa: E402
from platemark.optimize.specs import FLOAT, Spec  # noqa: E402
from platemark.runtime import parity  # noqa: E402
from platemark.runtime.backends import onnxruntime  # noqa: E402
from platemark.runtime.engine import Array, TensorSpec  # noqa: E402
from platemark.runtime.parity import Recorded, check  # noqa: E402

SPEC = Spec("toy", "toy", "toy/m", (TensorSpec("x", FLOAT, ("batch", 4)),), (TensorSpec("y", FLOAT, ("batch", 4)),), {})
CASES = [{"x": np.full((2, 4), 100, np.float32)}, {"x": np.linspace(1, 2, 4, dtype=np.float32)[None]}]


def up_and_down(path: Path, factor: float) -> onnx.ModelProto:
    """x → · factor → / factor → y, whose value in between does not fit float16 where the factor is large."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    held = [numpy_helper.from_array((np.eye(4) * f).astype(np.float32), name) for name, f in (("up", factor), ("down", 1 / factor))]
    nodes = [helper.make_node("MatMul", ["x", "up"], ["a"], "a"), helper.make_node("MatMul", ["a", "down"], ["y"], "b")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ports[:1], ports[1:], held), opset_imports=[helper.make_opsetid("", 23)], ir_version=10
    )
    path.write_bytes(model.SerializeToString())
    return model


def test_values_are_watched_in_the_graph(tmp_path: Path) -> None:
    model = up_and_down(tmp_path / "m.onnx", 1000)
    assert magnitudes(model, tmp_path / "m.onnx", CASES) == pytest.approx({"a": 1e5, "y": 100, "up": 1000, "down": 1e-3})
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    nan = magnitudes(model, tmp_path / "m.onnx", [{"x": np.full((1, 4), np.nan, np.float32)}])
    assert nan["a"] == np.inf


def test_a_rounded_graph_overflows_on_a_cpu_as_on_a_gpu(tmp_path: Path) -> None:
    """ONNX Runtime alone computes the float16 graph in float32, and sees nothing."""
    half = up_and_down(tmp_path / "m.onnx", 1000)
    to_half(half)
    outputs = []
    for model in (half, rounded(half)):
        (tmp_path / "t.onnx").write_bytes(model.SerializeToString())
        outputs.append(onnxruntime.compile_graph(tmp_path / "t.onnx").run(CASES[0])["y"])
    assert np.isfinite(outputs[0]).all()
    assert not np.isfinite(outputs[1]).any()


def test_errors_are_told_value_by_value(tmp_path: Path) -> None:
    model, half = up_and_down(tmp_path / "m.onnx", 1.1), up_and_down(tmp_path / "m.onnx", 1.1)
    to_half(half)
    found = errors(model, half, tmp_path / "m.onnx", CASES)
    assert set(found) == {"a", "y"}
    assert all(0 < error < 2e-3 for error in found.values())
    overflows, narrow = up_and_down(tmp_path / "m.onnx", 1000), up_and_down(tmp_path / "m.onnx", 1000)
    to_half(narrow)
    assert errors(overflows, narrow, tmp_path / "m.onnx", CASES)["a"] == np.inf


def test_nodes_that_overflow_stay_float32(tmp_path: Path) -> None:
    up_and_down(tmp_path / "m.onnx", 1000)
    recorded = [Recorded(case, {"y": case["x"]}) for case in CASES]
    found = half_graph(SPEC, tmp_path / "m.onnx", recorded, "torch")
    assert found.kept == ["a", "b"]
    assert found.tried == ["fp16 throughout: 1 values pass 16376, the largest 1e+05 at a; 2 nodes stay float32"]
    assert "rounded to float16" in found.parity.backend
    up_and_down(tmp_path / "m.onnx", 2)
    assert half_graph(SPEC, tmp_path / "m.onnx", recorded, "torch").kept == []


def test_what_stays_over_its_bound_says_all_that_was_tried(tmp_path: Path) -> None:
    up_and_down(tmp_path / "m.onnx", 1000)
    with pytest.raises(ParityError, match=r"fp16 throughout: .* 2 nodes stay float32; fp16 with them: toy differs .*bound 1e-02"):
        half_graph(SPEC, tmp_path / "m.onnx", [Recorded(case, {"y": case["x"] * 2}) for case in CASES], "torch")


def test_a_mask_s_infinity_keeps_nothing(tmp_path: Path) -> None:
    model = up_and_down(tmp_path / "m.onnx", 2)
    assert overflowing(model, {"up": 3.4e38, "a": 1.0}) == ([], "")
    assert overflowing(model, {"up": 1e5, "a": 1.0})[0] == ["a"]


def scaled_vae(folder: Path) -> tuple[Spec, list[Recorded]]:
    """A tiny VAE's decoder as a graph with one convolution a hundred thousand times too large, which the normalisation behind it undoes."""
    import torch
    from diffusers import AutoencoderKL
    from safetensors.torch import save_file

    from platemark.optimize.components import export_linked, reference
    from platemark.optimize.modules import VaeDecoder
    from platemark.optimize.parts import Part
    from platemark.optimize.weights import read_header

    torch.manual_seed(0)
    net = AutoencoderKL(block_out_channels=[8], norm_num_groups=1, layers_per_block=1, mid_block_add_attention=False).eval()
    with torch.no_grad():
        net.decoder.mid_block.resnets[0].conv1.weight.mul_(1e5)
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, folder / "model.safetensors")
    weights = folder / "model.safetensors"
    part = Part("vae", "AutoencoderKL", folder, {}, (weights,), read_header(weights))
    latent: Any = TensorSpec("latent_sample", FLOAT, ("batch", 4, "height", "width"))
    out = TensorSpec("sample", FLOAT, ("batch", 3, "height", "width"))
    spec = Spec("vae_decoder", "vae", "vae/decoder.onnx", (latent,), (out,), {"height": (1, 8), "width": (1, 8)})
    module = VaeDecoder(net).eval()
    cases = make_cases(spec)
    (folder / "decoder.onnx").write_bytes(export_linked(spec, module, part, cases[0]))
    return spec, record(spec, cases, reference(spec, module))


def test_a_vae_that_overflows_float16_is_saved_by_its_keep_list(tmp_path: Path) -> None:
    from platemark.optimize.engines import EngineRequest, make_engine

    pytest.importorskip("tensorrt_rtx", reason="needs the extra 'tensorrt-rtx'")
    spec, recorded = scaled_vae(tmp_path / "vae")
    whole = onnx.load(tmp_path / spec.graph, load_external_data=False)
    to_half(whole)
    (tmp_path / "vae" / "t.onnx").write_bytes(rounded(whole).SerializeToString())
    with pytest.raises(ParityError, match=r"rel L2 (inf|nan)"):
        check(spec.component, recorded, onnxruntime.compile_graph(tmp_path / "vae" / "t.onnx"), ("torch", "half"), "fp16")
    engine, _ = make_engine(EngineRequest("tensorrt_rtx", "fp16", ("sm_89",)), spec, recorded, tmp_path, "torch")
    assert engine.precision == "fp16"
    assert "decoder.mid_block.resnets.0.conv1/Conv" in engine.kept
    assert len(engine.kept) < len(whole.graph.node) / 4
    assert "at decoder.mid_block.resnets.0.conv1/Conv" in engine.tried[0]
    assert engine.graph_parity is not None
    assert max(one.rel_l2_error for one in engine.graph_parity.comparisons) <= parity.BOUNDS["fp16"]


class Answers:
    inputs, outputs = SPEC.inputs, SPEC.outputs

    def __init__(self, value: Array) -> None:
        self.value = value

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": self.value}


@pytest.mark.parametrize(
    ("value", "said"), [(np.full((2, 4), 3, np.float32), "one value everywhere"), (np.array([1, np.nan]), "not finite")]
)
def test_a_reference_that_is_no_answer_is_refused(value: Array, said: str) -> None:
    with pytest.raises(CheckpointError, match=f"toy: torch itself gives .*{said}"):
        record(SPEC, CASES, Answers(value))


def test_one_table_has_the_bounds_of_every_precision() -> None:
    assert set(parity.PRECISIONS) == {"fp32", "fp16", "bf16", "int8"}
    assert all(parity.BOUNDS[name] == bound.rel_l2 for name, bound in parity.PRECISIONS.items())
    assert parity.PRECISIONS["bf16"].psnr >= 35
    assert parity.PRECISIONS["fp16"].psnr >= 35
