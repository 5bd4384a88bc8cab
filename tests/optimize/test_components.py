"""Exported graphs: free dims stay free, weights stay outside, results equal torch, and the bytes are the same every time."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

import onnx  # noqa: E402
import onnxruntime  # noqa: E402
import torch  # noqa: E402
from onnx import TensorProto  # noqa: E402

from platemark.errors import EngineError  # noqa: E402
from platemark.optimize.components import export_linked, reference  # noqa: E402
from platemark.optimize.export import OPSET, check_contract, export_graph  # noqa: E402
from platemark.optimize.parity import make_cases  # noqa: E402
from platemark.optimize.specs import FLOAT, INT, Spec, specs  # noqa: E402
from platemark.runtime.engine import TensorSpec  # noqa: E402

COMPONENTS = ["text_encoder", "unet", "vae_decoder", "vae_encoder", "clip_image", "clip_text"]
CONTRACT = {
    "text_encoder": ({"input_ids": ("int64", ["batch", "tokens"])}, {"last_hidden_state": ["batch", "tokens", 32]}),
    "unet": (
        {
            "sample": ("float32", ["batch", 4, "height", "width"]),
            "timestep": ("float32", ["batch"]),
            "encoder_hidden_states": ("float32", ["batch", "tokens", 32]),
        },
        {"out_sample": ["batch", 4, "height", "width"]},
    ),
    "vae_decoder": ({"latent_sample": ("float32", ["batch", 4, "height", "width"])}, {"sample": ["batch", 3, "2*height", "2*width"]}),
    "vae_encoder": ({"sample": ("float32", ["batch", 3, "height", "width"])}, {"latent_mean": ["batch", 4, "height/2", "width/2"]}),
    "clip_image": ({"pixel_values": ("float32", ["batch", 3, 16, 16])}, {"image_embeds": ["batch", 16]}),
    "clip_text": ({"input_ids": ("int64", ["batch", 12])}, {"text_embeds": ["batch", 16]}),
}
ELEMENT = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


def session(folder: Path, spec: Spec) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(folder / spec.graph), providers=["CPUExecutionProvider"])


def dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("name", COMPONENTS)
def test_inputs_and_outputs_are_the_contract(graphs: dict[str, bytes], name: str) -> None:
    graph = onnx.load_from_string(graphs[name]).graph
    inputs, outputs = CONTRACT[name]
    assert {v.name: (v.type.tensor_type.elem_type, dims(v)) for v in graph.input} == {k: (ELEMENT[t], d) for k, (t, d) in inputs.items()}
    assert {v.name: dims(v) for v in graph.output} == outputs
    assert all(v.type.tensor_type.elem_type == TensorProto.FLOAT for v in graph.output)


@pytest.mark.parametrize(("changes", "dim"), [({"cross_attention_dim": [32, 32]}, 32), ({"encoder_hid_dim": 48}, 48)])
def test_text_states_are_as_wide_as_the_unet_reads(opened: Any, changes: dict[str, Any], dim: int) -> None:
    unet = dataclasses.replace(opened.parts["unet"], config=opened.parts["unet"].config | changes)
    found = specs(dataclasses.replace(opened, parts=opened.parts | {"unet": unet}))
    assert found["unet"].inputs[2].shape == ("batch", "tokens", dim)


@pytest.mark.parametrize("name", COMPONENTS)
def test_results_equal_torch_at_other_sizes(opened: Any, modules: dict[str, Any], graph_folder: Path, name: str) -> None:
    """Shapes that the exporter never saw, different in every free dim from the example and from one another."""
    spec = specs(opened)[name]
    engine, torch_engine = session(graph_folder, spec), reference(spec, modules[name])
    rng = np.random.default_rng(3)
    for free in ({"batch": 1, "height": 4, "width": 10, "tokens": 1}, {"batch": 5, "height": 14, "width": 6, "tokens": 11}):
        inputs = {}
        for port in spec.inputs:
            shape = [free[dim] if isinstance(dim, str) else dim for dim in port.shape]
            inputs[port.name] = rng.integers(0, spec.vocabulary, shape) if port.dtype == INT else rng.standard_normal(shape, np.float32)
        expected, actual = torch_engine.run(inputs)[spec.outputs[0].name], engine.run(None, inputs)[0]
        assert actual.shape == expected.shape
        assert actual.dtype == np.float32
        assert np.linalg.norm(actual - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_weight_stays_in_the_checkpoint_file(opened: Any, graphs: dict[str, bytes], name: str) -> None:
    model, spec = onnx.load_from_string(graphs[name]), specs(opened)[name]
    external = [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    inside = [t for t in model.graph.initializer if t.data_location != TensorProto.EXTERNAL]
    stored = opened.parts[spec.part].tensors
    assert {t.name.split(".1x")[0] for t in external} <= set(stored) | {t.name for t in external}
    assert all(t.data_type == TensorProto.FLOAT16 for t in external)
    assert {e.value for t in external for e in t.external_data if e.key == "location"} == {spec_file(opened, spec)}
    assert sum(t.ByteSize() for t in inside) < 4096
    assert not [t.name for t in inside if t.data_type == TensorProto.FLOAT and np.prod(t.dims) > 200]


def spec_file(opened: Any, spec: Spec) -> str:
    return str(opened.parts[spec.part].weights[0].name)


def test_every_unet_tensor_is_used(opened: Any, graphs: dict[str, bytes]) -> None:
    model = onnx.load_from_string(graphs["unet"])
    offsets = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "offset"}
    assert offsets == {str(t.offset) for t in opened.parts["unet"].tensors.values()}


def test_attention_and_group_norm_stay_whole(graphs: dict[str, bytes]) -> None:
    model = onnx.load_from_string(graphs["unet"])
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Attention") == 8
    assert kinds.count("GroupNormalization") > 10
    assert "InstanceNormalization" not in kinds
    assert [entry.version for entry in model.opset_import] == [OPSET]


def test_nodes_carry_the_names_of_their_layers(graphs: dict[str, bytes]) -> None:
    names = [node.name for node in onnx.load_from_string(graphs["unet"]).graph.node]
    assert "down_blocks.0.resnets.0.conv1/Conv" in names
    assert len(set(names)) == len(names)


def test_no_local_path_is_in_a_graph(graphs: dict[str, bytes], checkpoint_folder: Path) -> None:
    for data in graphs.values():
        assert b"site-packages" not in data
        assert str(checkpoint_folder.parent).encode() not in data
        assert b".py" not in data


def test_two_exports_are_the_same_bytes(opened: Any, modules: dict[str, Any], graphs: dict[str, bytes]) -> None:
    for name in ("text_encoder", "vae_encoder"):
        spec = specs(opened)[name]
        assert (
            export_linked(spec, modules[name], opened.parts[spec.part], make_cases(spec)[1 if name == "vae_encoder" else 0]) == graphs[name]
        )


class Fixed(torch.nn.Module):
    """A network that ties its answer to the size it is first shown."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, 6) * 2


SMALL = Spec("toy", "toy", "toy/model.onnx", (TensorSpec("x", FLOAT, ("batch", 6)),), (TensorSpec("y", FLOAT, ("batch", 6)),), {})


def test_a_dim_that_the_network_fixes_is_refused() -> None:
    with pytest.raises(EngineError, match="toy cannot be exported") as caught:
        export_graph(SMALL, Fixed().eval(), {"x": torch.zeros(2, 6)})
    assert "\n" not in caught.value.message


def test_a_graph_that_breaks_the_contract_is_refused(graphs: dict[str, bytes], opened: Any) -> None:
    spec = specs(opened)["vae_encoder"]
    for change, says in ((set_fixed, "axis 0 of sample is 2"), (set_double, "another type"), (set_name, "inputs and outputs")):
        model = onnx.load_from_string(graphs["vae_encoder"])
        change(model)
        with pytest.raises(EngineError, match=says):
            check_contract(spec, model)


def set_fixed(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def set_double(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def set_name(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "pixels"
