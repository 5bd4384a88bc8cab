"""Backends found by name; ONNX Runtime with weights in safetensors files; torch as a reference behind the same contract."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from platemark.errors import EngineError, InputError
from platemark.runtime import backends
from platemark.runtime.backends.onnxruntime import compile_graph, label
from platemark.runtime.engine import TensorSpec, run_into


def unet_inputs(rows: int = 2, side: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "sample": rng.standard_normal((rows, 4, side, side)).astype(np.float32),
        "timestep": np.full(rows, 500, np.float32),
        "encoder_hidden_states": rng.standard_normal((rows, 5, 8)).astype(np.float32),
    }


def test_names_are_the_files() -> None:
    assert set(backends.names()) >= {"onnxruntime", "torch"}
    assert backends.find("onnxruntime").compile_graph is compile_graph


@pytest.mark.parametrize("name", ["magic", "", "../engine", "onnxruntime.x", "__init__"])
def test_unknown_names_list_the_known(name: str) -> None:
    with pytest.raises(InputError, match="onnxruntime"):
        backends.find(name)


def test_finding_imports_no_library() -> None:
    code = (
        "import sys; from platemark.runtime import backends, pipeline; backends.find('torch'); backends.find('onnxruntime')\n"
        "print(sorted({'torch', 'onnxruntime', 'tokenizers', 'diffusers', 'transformers', 'onnx', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("folder", ["text_encoder", "unet", "vae"])
def test_weights_of_every_precision_load(miniature: Path, folder: str) -> None:
    engine = compile_graph(miniature / folder / "model.onnx", threads=1)
    shapes = {"batch": 2, "tokens": 5, "height": 8, "width": 8}
    inputs = {
        spec.name: np.ones([dim if isinstance(dim, int) else shapes[dim] for dim in spec.shape], dtype=spec.dtype) for spec in engine.inputs
    }
    for value in engine.run(inputs).values():
        assert np.isfinite(value).all()
        assert value.std() > 0


def test_stored_half_precision_is_what_computes(miniature: Path) -> None:
    """The text encoder's table is bf16 in the file: its rows come out as the file has them, through tanh."""
    stored = np.random.default_rng(1).normal(size=(600, 8)).astype("<f4")
    rows = ((stored.view("<u4") >> 16) << 16).view("<f4")[[3, 7]]
    engine = compile_graph(miniature / "text_encoder" / "model.onnx")
    out = engine.run({"input_ids": np.array([[3, 7]])})["last_hidden_state"]
    assert np.allclose(out[0], np.tanh(rows), atol=1e-6)


def test_specs_say_fixed_and_free_dims(miniature: Path) -> None:
    specs = {spec.name: spec for spec in compile_graph(miniature / "unet" / "model.onnx").inputs}
    assert specs["sample"] == TensorSpec("sample", np.dtype(np.float32), ("batch", 4, "height", "width"))
    assert specs["timestep"].shape == ("batch",)


def test_batch_and_size_are_free(miniature: Path) -> None:
    engine = compile_graph(miniature / "unet" / "model.onnx")
    for rows, side in ((1, 8), (3, 16)):
        assert engine.run(unet_inputs(rows, side))["out_sample"].shape == (rows, 4, side, side)


def test_wrong_inputs_are_engine_errors_that_name_them(miniature: Path) -> None:
    engine = compile_graph(miniature / "unet" / "model.onnx")
    good = unet_inputs()
    for bad, said in (
        ({**good, "surprise": good["timestep"]}, "surprise"),
        ({name: value for name, value in good.items() if name != "sample"}, "sample"),
        ({**good, "timestep": good["timestep"].astype(np.int64)}, "timestep"),
        ({**good, "sample": good["sample"].astype(np.float64)}, "float64"),
        ({**good, "sample": good["sample"][0]}, "sample"),
        ({**good, "sample": good["sample"][:, :3]}, "model.onnx"),
        ({**good, "encoder_hidden_states": good["encoder_hidden_states"][..., :3]}, "model.onnx"),
    ):
        with pytest.raises(EngineError, match=said) as caught:
            engine.run(bad)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["no graph", "no weights", "short weights", "garbage", "empty"])
def test_files_that_do_not_load_are_engine_errors(copy: Path, damage: str) -> None:
    graph, weights = copy / "unet" / "model.onnx", copy / "unet" / "model.safetensors"
    if damage == "no graph":
        graph.unlink()
    elif damage == "no weights":
        weights.unlink()
    elif damage == "short weights":
        weights.write_bytes(weights.read_bytes()[:100])
    else:
        graph.write_bytes(b"" if damage == "empty" else b"not a graph" * 20)
    with pytest.raises(EngineError, match=r"model\.onnx") as caught:
        compile_graph(graph)
    assert "\n" not in str(caught.value)


def test_it_loads_through_a_linked_folder_read_only_from_anywhere(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in copy.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    link = tmp_path / "link"
    link.symlink_to(copy)
    monkeypatch.chdir(os.sep)
    assert compile_graph(link / "unet" / "model.onnx").run(unet_inputs())["out_sample"].shape == (2, 4, 8, 8)


def test_sixteen_threads_on_one_engine(miniature: Path) -> None:
    engine = compile_graph(miniature / "unet" / "model.onnx")
    alone = [engine.run(unet_inputs(seed=seed))["out_sample"] for seed in range(64)]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda seed: engine.run(unet_inputs(seed=seed))["out_sample"], range(64)))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_the_label_has_the_version() -> None:
    import onnxruntime

    assert onnxruntime.__version__ in label()


@pytest.mark.torch
def test_torch_modules_keep_the_same_contract() -> None:
    import torch

    from platemark.runtime.backends.torch import wrap

    class Scale(torch.nn.Module):
        def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            return sample * timestep.reshape(-1, 1)

    specs = [TensorSpec("sample", np.dtype(np.float32), ("batch", 3)), TensorSpec("timestep", np.dtype(np.float32), ("batch",))]
    engine = wrap("scale", Scale(), specs, [TensorSpec("out_sample", np.dtype(np.float32), ("batch", 3))])
    out = engine.run({"sample": np.ones((2, 3), np.float32), "timestep": np.array([2, 3], np.float32)})
    assert out["out_sample"].tolist() == [[2, 2, 2], [3, 3, 3]]
    assert [spec.name for spec in engine.inputs] == ["sample", "timestep"]
    with pytest.raises(EngineError, match="scale"):
        engine.run({"sample": np.ones((2, 3), np.float32)})


def test_outputs_are_written_where_the_caller_says(miniature: Path) -> None:
    engine = compile_graph(miniature / "unet" / "model.onnx")
    inputs = unet_inputs(3)
    room = np.full_like(inputs["sample"], np.nan)
    engine.run_into(inputs, {"out_sample": room})
    assert np.array_equal(room, engine.run(inputs)["out_sample"])
    wide = np.zeros((3, 4, 8, 16), np.float32)
    engine.run_into({**inputs, "sample": wide[..., ::2]}, {"out_sample": room})  # inputs need not lie together
    assert np.array_equal(room, engine.run({**inputs, "sample": np.zeros_like(room)})["out_sample"])
    with pytest.raises(EngineError, match=r"model\.onnx"):
        engine.run_into(inputs, {"out_sample": room[:2]})
    with pytest.raises(EngineError, match=r"model\.onnx"):
        engine.run_into(inputs, {"nothing": room})


def test_an_engine_that_cannot_write_elsewhere_has_its_answer_copied() -> None:
    class Plain:
        inputs = outputs = ()

        def run(self, inputs: Any) -> dict[str, np.ndarray]:
            return {"out": np.arange(4.0)}

    room = np.zeros(4)
    run_into(Plain(), {}, {"out": room})
    assert room.tolist() == [0, 1, 2, 3]
    with pytest.raises(EngineError, match="out"):
        run_into(Plain(), {}, {"out": np.zeros(5)})
