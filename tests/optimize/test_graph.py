"""Graph passes leave what a graph computes as it was: each is run through ONNX Runtime before and after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytestmark = pytest.mark.torch

import onnx  # noqa: E402
import onnxruntime  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

from platemark.errors import EngineError  # noqa: E402
from platemark.optimize import graph as passes  # noqa: E402
from platemark.optimize.weights import StoredTensor, read_header  # noqa: E402

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((4, 3)).astype(np.float16)
SQUARE = RNG.standard_normal((3, 3)).astype(np.float16)
BIAS = RNG.standard_normal(3).astype(np.float32)
X = RNG.standard_normal((2, 3)).astype(np.float32)


def make_model() -> onnx.ModelProto:
    """relu(x·Wᵀ)·W reshaped·S + b: W once transposed and once under other dims, plus dead ends and metadata to strip."""
    f32 = WEIGHT.astype(np.float32)
    initializers = {
        "val_1": np.ascontiguousarray(f32.T),
        "net.flat": f32.reshape(12, 1),
        "net.square": SQUARE.astype(np.float32),
        "net.bias": BIAS,
        "shape": np.array([4, 3], np.int64),
        "unused": np.ones(9, np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "val_1"], ["a"], doc_string="/home/somebody/model.py"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Reshape", ["net.flat", "shape"], ["c"]),
        helper.make_node("MatMul", ["b", "c"], ["d"]),
        helper.make_node("Exp", ["d"], ["dead"]),
        helper.make_node("MatMul", ["d", "net.square"], ["e"]),
        helper.make_node("Add", ["e", "net.bias"], ["y"]),
    ]
    nodes[0].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'net', 'net.blocks.0.proj', 'linear']")
    nodes[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value="/home/somebody/model.py")
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["s1", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["s1", 3])],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, StoredTensor]:
    path = tmp_path / "weights.safetensors"
    save_file({"weight": WEIGHT, "square": SQUARE, "bias": BIAS, "other": np.ones(5, np.float16)}, path)
    return read_header(path)


def run(model: onnx.ModelProto, folder: Path) -> np.ndarray:
    """What the model makes of X, loaded from a file so that external data is found."""
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": X})[0])


@pytest.mark.parametrize(
    "change",
    [
        passes.remove_dead,
        passes.name_nodes,
        passes.name_values,
        passes.name_constants,
        passes.strip,
        lambda model: passes.set_shapes(model, {"x": ("batch", 3), "y": ("batch", 3)}),
    ],
    ids=["remove_dead", "name_nodes", "name_values", "name_constants", "strip", "set_shapes"],
)
def test_passes_change_no_value(change: Callable[[onnx.ModelProto], None], tmp_path: Path) -> None:
    model = make_model()
    before = run(model, tmp_path)
    original = model.SerializeToString()
    change(model)
    assert model.SerializeToString() != original
    np.testing.assert_array_equal(run(model, tmp_path), before)


def test_dead_ends_go() -> None:
    model = make_model()
    passes.remove_dead(model)
    assert "Exp" not in [node.op_type for node in model.graph.node]
    assert "unused" not in [tensor.name for tensor in model.graph.initializer]
    assert len(model.graph.node) == 6


def test_nodes_are_named_after_their_module() -> None:
    model = make_model()
    passes.name_nodes(model)
    names = [node.name for node in model.graph.node]
    assert names[0] == "blocks.0.proj/MatMul"
    assert names[3] == "MatMul"
    assert len(set(names)) == len(names)


def test_no_local_path_stays() -> None:
    model = make_model()
    passes.strip(model)
    assert b"somebody" not in model.SerializeToString()


def test_linked_weights_compute_the_same(tmp_path: Path, stored: dict[str, StoredTensor]) -> None:
    model = make_model()
    passes.remove_dead(model)
    before = run(model, tmp_path)
    linked = passes.link_weights(model, stored.values(), "net.")
    np.testing.assert_array_equal(run(model, tmp_path), before)
    assert linked.tensors == ("bias", "square", "weight", "weight.12x1")
    assert set(linked.leftovers) == {"shape"}


def test_linked_weights_point_at_the_stored_bytes(tmp_path: Path, stored: dict[str, StoredTensor]) -> None:
    model = make_model()
    passes.remove_dead(model)
    passes.link_weights(model, stored.values(), "net.")
    external = {
        t.name: {e.key: e.value for e in t.external_data} for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL
    }
    raw = (tmp_path / "weights.safetensors").read_bytes()
    for name, array in {"weight": WEIGHT, "square": SQUARE, "bias": BIAS}.items():
        place = external[name]
        assert place["location"] == "weights.safetensors"
        assert raw[int(place["offset"]) :][: int(place["length"])] == array.tobytes()
    assert WEIGHT.tobytes() not in model.SerializeToString()


def test_float32_weights_need_no_cast(stored: dict[str, StoredTensor]) -> None:
    model = make_model()
    passes.remove_dead(model)
    passes.link_weights(model, stored.values(), "net.")
    cast = {node.input[0] for node in model.graph.node if node.op_type == "Cast"}
    assert cast == {"weight", "weight.12x1", "square"}


def test_the_name_decides_between_equal_values(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"aaa": SQUARE, "square": SQUARE, "weight": WEIGHT, "bias": BIAS}, path)
    model = make_model()
    passes.remove_dead(model)
    linked = passes.link_weights(model, read_header(path).values(), "net.")
    assert "square" in linked.tensors
    assert "aaa" not in linked.tensors


def test_a_weight_that_differs_in_one_bit_is_not_linked(tmp_path: Path, stored: dict[str, StoredTensor]) -> None:
    model = make_model()
    passes.remove_dead(model)
    for tensor in model.graph.initializer:
        if tensor.name == "net.square":
            values = numpy_helper.to_array(tensor).copy()
            values[2, 2] = np.nextafter(values[2, 2], np.float32(9))
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    linked = passes.link_weights(model, stored.values(), "net.")
    assert "square" not in linked.tensors
    assert "net.square" in linked.leftovers


def test_large_leftovers_are_refused(stored: dict[str, StoredTensor]) -> None:
    model = make_model()
    model.graph.initializer.append(numpy_helper.from_array(np.ones((200, 100), np.float32), "mystery"))
    with pytest.raises(EngineError, match="mystery"):
        passes.link_weights(model, stored.values(), "net.")


def test_transposed_matches_need_the_shape(stored: dict[str, StoredTensor], tmp_path: Path) -> None:
    """A matrix whose values in row order equal another's transpose, but not its shape, must not be read transposed."""
    model = make_model()
    passes.remove_dead(model)
    for tensor in model.graph.initializer:
        if tensor.name == "net.flat":
            values = WEIGHT.astype(np.float32).T.reshape(12, 1)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
    before = run(model, tmp_path)
    linked = passes.link_weights(model, stored.values(), "net.")
    assert "net.flat" in linked.leftovers
    np.testing.assert_array_equal(run(model, tmp_path), before)
