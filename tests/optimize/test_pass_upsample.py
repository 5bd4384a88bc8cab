"""Upsampling and the convolution behind it as four small ones: the same values, and only where the rewrite is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'build'")
pytestmark = pytest.mark.torch

import onnx  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from platemark.optimize.passes.upsample import split_upsampled  # noqa: E402
from platemark.runtime.backends.onnxruntime import compile_graph  # noqa: E402

RESIZE: dict[str, Any] = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
CONV: dict[str, Any] = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}


def network(
    resize: dict[str, Any] | None = None, conv: dict[str, Any] | None = None, *, half: bool = False, bias: bool = True, also: bool = False
) -> onnx.ModelProto:
    """x → Resize → Conv → y with random weights, stored as float16 behind a Cast where `half`. `also`: the resized value is an output."""
    rng = np.random.default_rng(3)
    options = {**RESIZE, **(resize or {})}
    scales = np.array(options.pop("scales", [1, 1, 2, 2]), np.float32)
    settings = {**CONV, **(conv or {})}
    side, group = settings["kernel_shape"][0], settings.get("group", 1)
    kernel = rng.standard_normal((6, 4 // group, side, side)).astype(np.float16 if half else np.float32)
    held = [numpy_helper.from_array(kernel, "w"), numpy_helper.from_array(scales, "scales")]
    nodes = [helper.make_node("Cast", ["w"], ["w/f32"], to=TensorProto.FLOAT)] if half else []
    reads = ["up", "w/f32" if half else "w"]
    if bias:
        held.append(numpy_helper.from_array(rng.standard_normal(6).astype(np.float32), "b"))
        reads.append("b")
    nodes += [
        helper.make_node("Resize", ["x", "", "scales"], ["up"], **options),
        helper.make_node("Conv", reads, ["y"], "conv", **settings),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 6, "H", "W"])]
    outputs += [helper.make_tensor_value_info("up", TensorProto.FLOAT, ["b", 4, "H", "W"])] if also else []
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 4, "h", "w"])], outputs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def values(model: onnx.ModelProto, folder: Path, shape: tuple[int, ...]) -> np.ndarray:
    path = folder / "g.onnx"
    path.write_bytes(model.SerializeToString())
    x = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    return compile_graph(path, threads=1).run({"x": x})["y"]


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (2, 4, 5, 8), (1, 4, 1, 7), (3, 4, 16, 2)])
@pytest.mark.parametrize("options", [{}, {"half": True}, {"bias": False}])
def test_it_computes_the_same(options: dict[str, bool], shape: tuple[int, ...], tmp_path: Path) -> None:
    model = network(**options)
    before = values(model, tmp_path, shape)
    assert split_upsampled(model) == 1
    onnx.checker.check_model(model, full_check=True)
    assert not [node for node in model.graph.node if node.op_type == "Resize"]
    np.testing.assert_allclose(values(model, tmp_path, shape), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"resize": {"scales": [1, 1, 3, 3]}},
        {"resize": {"scales": [1, 1, 2, 1]}},
        {"resize": {"mode": "linear"}},
        {"resize": {"nearest_mode": "ceil"}},
        {"resize": {"coordinate_transformation_mode": "align_corners"}},
        {"conv": {"pads": [0, 0, 0, 0]}},
        {"conv": {"strides": [2, 2]}},
        {"conv": {"dilations": [2, 2], "pads": [2, 2, 2, 2]}},
        {"conv": {"group": 2}},
        {"conv": {"kernel_shape": [1, 1], "pads": [0, 0, 0, 0]}},
        {"conv": {"kernel_shape": [5, 5], "pads": [2, 2, 2, 2]}},
        {"also": True},
    ],
)
def test_what_is_not_that_pair_stays(options: dict[str, Any]) -> None:
    model = network(**options)
    before = model.SerializeToString()
    assert split_upsampled(model) == 0
    assert model.SerializeToString() == before


def test_a_vae_decoder_and_a_unet_have_such_pairs(graph_folder: Path, graphs: dict[str, bytes]) -> None:
    """The exported graphs went through the pass: none is left, and the weights are still those of the checkpoint's file."""
    for name in ("vae_decoder", "unet"):
        model = onnx.load_from_string(graphs[name])
        assert not [node for node in model.graph.node if node.op_type == "Resize"], name
        assert [node for node in model.graph.node if node.op_type == "DepthToSpace"], name
        assert sum(tensor.ByteSize() for tensor in model.graph.initializer if not tensor.external_data) < 64 << 10
        assert split_upsampled(model) == 0
