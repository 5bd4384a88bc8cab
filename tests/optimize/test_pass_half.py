"""float16 inside, float32 at the borders: the same within float16's precision, and what must not lose bits does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'build'")
pytestmark = pytest.mark.torch

import onnx  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from platemark.optimize.parity import make_cases  # noqa: E402
from platemark.optimize.passes.half import to_half  # noqa: E402
from platemark.optimize.specs import specs  # noqa: E402
from platemark.runtime.backends.onnxruntime import compile_graph  # noqa: E402


def kinds(model: onnx.ModelProto) -> dict[str, int]:
    """Element types as ONNX Runtime's own loader would see them: of each Cast's output."""
    return {node.output[0]: node.attribute[0].i for node in model.graph.node if node.op_type == "Cast"}


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae_decoder", "vae_encoder", "clip_image", "clip_text"])
def test_every_component_still_computes_the_same(component: str, opened: object, graph_folder: Path) -> None:
    spec = specs(opened)[component]  # type: ignore[arg-type]
    path = graph_folder / spec.graph
    model = onnx.load(path, load_external_data=False)
    assert to_half(model) > 5
    halved = path.with_name(f"{component}.half.onnx")
    halved.write_bytes(model.SerializeToString())
    ours, theirs = compile_graph(halved, threads=1), compile_graph(path, threads=1)
    assert (ours.inputs, ours.outputs) == (theirs.inputs, theirs.outputs)
    for case in make_cases(spec):
        expected, actual = theirs.run(case)[spec.outputs[0].name], ours.run(case)[spec.outputs[0].name]
        error = float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
        assert 1e-6 < error < 1e-2  # float16 did happen, and did no harm


def chain(*nodes: onnx.NodeProto, constant: float = 3e4) -> onnx.ModelProto:
    """x (n,) → nodes → y (n,) with the constant `c`."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    held = [numpy_helper.from_array(np.array([constant], np.float32), "c")]
    graph = helper.make_graph(list(nodes), "g", ports[:1], ports[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def run(model: onnx.ModelProto, x: float) -> float:
    """By onnx's own evaluator: ONNX Runtime drops casts to float16 and back on a CPU, so an overflow would not show."""
    with np.errstate(over="ignore", invalid="ignore"):
        (values,) = ReferenceEvaluator(model).run(None, {"x": np.array([x], np.float32)})
    return float(values[0])


def test_an_overflow_shows_and_the_keep_list_heals_it() -> None:
    """60,000 fits float16 and its double does not."""
    nodes = [helper.make_node("Add", ["x", "c"], ["wide"], "wide"), helper.make_node("Sub", ["wide", "c"], ["y"], "back")]
    spoiled, kept = chain(*nodes, constant=6e4), chain(*nodes, constant=6e4)
    to_half(spoiled)
    to_half(kept, keep=["wide", "back"])
    assert not np.isfinite(run(spoiled, 6e4))
    assert run(kept, 6e4) == pytest.approx(6e4, rel=1e-3)


def test_sines_of_timesteps_keep_their_bits() -> None:
    """sin(999 · 0.777): float16 would know the product to half a unit only."""
    nodes = [helper.make_node("Mul", ["x", "c"], ["angle"], "angle"), helper.make_node("Sin", ["angle"], ["y"], "sin")]
    model = chain(*nodes, constant=0.777)
    assert to_half(model) == 0
    assert run(model, 999.0) == pytest.approx(np.sin(999 * 0.777), abs=2e-3)


def test_whole_numbers_shapes_and_comparisons_stay_what_they_are() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], "shape"),
        helper.make_node("Cast", ["shape"], ["count"], "count", to=TensorProto.FLOAT),
        helper.make_node("Greater", ["x", "c"], ["more"], "more"),
        helper.make_node("Where", ["more", "x", "count"], ["y"], "where"),
    ]
    model = chain(*nodes, constant=2.0)
    to_half(model)
    assert (run(model, 5.0), run(model, 1.0)) == (5.0, 1.0)
    assert TensorProto.FLOAT16 in kinds(model).values()
