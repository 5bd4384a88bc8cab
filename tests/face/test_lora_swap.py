"""LoRAs on a loaded bundle: the weights a build would have merged, put back exactly, and named in the record."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import platemark
from platemark.errors import EngineError, InputError
from platemark.models import embedded
from platemark.optimize.checkpoint import open_checkpoint
from platemark.optimize.lora import Lora, merge
from platemark.optimize.lora_swap import swap
from platemark.optimize.weights import StoredTensor, as_stored, read_float32, read_header
from platemark.press import Press
from platemark.runtime.backends import onnxruntime
from platemark.runtime.bundle import Bundle, open_bundle
from platemark.runtime.parity import Recorded, compare, probes
from platemark.runtime.pipeline import Pipeline
from platemark.runtime.request import GenerationRequest

UNET = embedded() / "unet" / "diffusion_pytorch_model.safetensors"
DIMS = {"batch": 2, "height": 16, "width": 16, "tokens": 32}


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(embedded())


@pytest.fixture(scope="module")
def base(bundle: Bundle) -> Pipeline:
    return Pipeline.load(bundle, threads=1)


def lora(path: Path, seed: int, *, base_layer: bool = False, stray: bool = False) -> Lora:
    """One that changes two attention matrices and a convolution of the UNet, and a matrix of the text encoder."""
    rng, tensors = np.random.default_rng(seed), {}
    held = {"unet": read_header(UNET), "text_encoder": read_header(embedded() / "text_encoder" / "model.safetensors")}
    names = [name for name in held["unet"] if name.endswith(("attn1.to_q.weight", "attn2.to_v.weight"))][:2]
    names += [name for name in held["unet"] if name.endswith("resnets.0.conv1.weight")][:1]
    text = [name for name in held["text_encoder"] if name.endswith("q_proj.weight")][:1]
    for part, chosen in (("unet", names), ("text_encoder", text)):
        for name in chosen:
            shape, module = held[part][name].shape, f"{part}.{name.removesuffix('.weight')}{'.base_layer' if base_layer else ''}"
            tensors[f"{module}.lora_A.weight"] = rng.normal(size=(2, *shape[1:])).astype(np.float32)
            tensors[f"{module}.lora_B.weight"] = rng.normal(size=(shape[0], 2, *[1] * (len(shape) - 2))).astype(np.float32) * 0.05
    if stray:
        tensors |= {f"unet.nowhere.lora_{side}.weight": np.ones((2, 2), np.float32) for side in "AB"}
    save_file(tensors, path)
    return Lora(path, 0.7)


def render(pipeline: Pipeline) -> np.ndarray:
    request = GenerationRequest.make(pipeline.bundle.manifest, prompt="a red apple", seed=3, num_inference_steps=2)
    return pipeline.generate(request).arrays


def test_a_to_b_to_none_is_none_and_a_to_b_to_a_is_a_bit_for_bit(base: Pipeline, bundle: Bundle, tmp_path: Path) -> None:
    a, b = (swap(bundle, [lora(tmp_path / f"{seed}.safetensors", seed)]).weights for seed in (1, 2))
    none = render(base)
    with_a = base.with_weights(a)
    first = render(with_a)
    with_b = with_a.with_weights(b)
    second = render(with_b)
    assert not np.array_equal(first, none)
    assert not np.array_equal(second, first)
    assert np.array_equal(render(with_b.with_weights(a)), first)
    assert np.array_equal(render(with_b.with_weights({})), none)
    assert np.array_equal(render(base), none)
    assert with_b.engine("vae_decoder") is base.engine("vae_decoder")
    assert with_b.engine("unet") is not with_a.engine("unet")


def test_swapped_weights_are_those_of_a_build_that_merges(bundle: Bundle, tmp_path: Path) -> None:
    one, two = lora(tmp_path / "a.safetensors", 1), lora(tmp_path / "b.safetensors", 2, base_layer=True)
    reports = merge(open_checkpoint(embedded()), [one, two], tmp_path / "merged")
    found = swap(bundle, [one, two])
    assert list(found.reports) == reports
    merged = read_header(tmp_path / "merged" / "unet" / UNET.name)
    assert len(found.weights["unet"]) == 3
    assert len(found.weights["text_encoder"]) == 1
    for name, values in found.weights["unet"].items():
        assert np.array_equal(values.astype(np.float32), read_float32(merged[name]))
    graph = bundle.root / bundle.manifest.components["unet"].graph
    (tmp_path / "merged" / "unet" / graph.name).unlink(missing_ok=True)
    (tmp_path / "merged" / "unet" / graph.name).write_bytes(graph.read_bytes())
    built = onnxruntime.compile_graph(tmp_path / "merged" / "unet" / graph.name, threads=1)
    swapped = onnxruntime.compile_graph(graph, threads=1, replaced=found.weights["unet"])
    inputs = probes(built, DIMS)[0]
    assert np.array_equal(swapped.run(inputs)["out_sample"], built.run(inputs)["out_sample"])


def test_openvino_takes_them_too(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs the extra 'openvino'")
    from platemark.runtime.backends import openvino

    found = swap(bundle, [lora(tmp_path / "a.safetensors", 1)]).weights["text_encoder"]
    graph = bundle.root / bundle.manifest.components["text_encoder"].graph
    portable = onnxruntime.compile_graph(graph, threads=1, replaced=found)
    inputs = probes(portable, DIMS)[0]
    recorded = Recorded(inputs, portable.run(inputs))
    plain, changed = (openvino.compile_graph(graph, threads=1, replaced=values) for values in (None, found))
    assert compare(recorded, changed.run(inputs)).rel_l2_error < 1e-4
    assert compare(recorded, plain.run(inputs)).rel_l2_error > 1e-3
    with pytest.raises(EngineError, match="no weight nowhere"):
        openvino.compile_graph(graph, replaced={"nowhere": np.ones(2, np.float16)})


def test_a_weight_that_the_graph_does_not_have_is_refused(bundle: Bundle) -> None:
    graph = bundle.root / bundle.manifest.components["vae_decoder"].graph
    with pytest.raises(EngineError, match=r"cannot load decoder\.onnx"):
        onnxruntime.compile_graph(graph, replaced={"nowhere": np.ones(2, np.float16)})


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_values_are_rounded_as_stored(dtype: str) -> None:
    tensor = StoredTensor("w", dtype, (3,), Path("f"), 0, 6)
    stored = as_stored(tensor, np.array([1, 0.1, -3], np.float32))
    wide = (stored.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else stored.astype(np.float32)
    assert wide == pytest.approx([1, 0.1, -3], rel=1e-2)
    with pytest.raises(platemark.errors.CheckpointError, match="does not fit"):
        as_stored(tensor, np.array([1, np.inf, 0], np.float32))
    if dtype == "BF16":
        with pytest.raises(platemark.errors.CheckpointError, match="does not fit"):
            as_stored(tensor, np.array([1, 3.4e38, 0], np.float32))


def test_a_press_with_loras_names_them_and_one_without_is_as_before(tmp_path: Path) -> None:
    chosen = lora(tmp_path / "a.safetensors", 1, stray=True)
    plain: Press = platemark.load(home=tmp_path / "home", policy="research")
    (before,) = plain.generate("a red apple", seed=1, num_inference_steps=1)
    changed = plain.with_loras([chosen])
    (result,) = changed.generate("a red apple", seed=1, num_inference_steps=1)
    assert result.provenance is not None
    assert result.provenance.facts.settings["loras"].startswith("a.safetensors:0.7 (")
    assert any("no place for" in note and "nowhere" in note for note in result.notes)
    (after,) = changed.with_loras([]).generate("a red apple", seed=1, num_inference_steps=1)
    assert before.provenance is not None
    assert after.provenance is not None
    assert "loras" not in after.provenance.facts.settings
    assert changed.loras[0].applied == 4
    save_file({f"unet.nowhere.lora_{side}.weight": np.ones((2, 2), np.float32) for side in "AB"}, tmp_path / "b.safetensors")
    with pytest.raises(InputError, match="nothing in the LoRA"):
        plain.with_loras([Lora(tmp_path / "b.safetensors")])
