"""A whole bundle in miniature: three networks of a few operators as ONNX graphs whose weights lie in safetensors files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

DIM, TOKENS, VOCABULARY = 8, 12, 600
NATIVE = 64  # pixels; 8 x 8 latents


def write_vocabulary(folder: Path, pad_token: str = "<|endoftext|>") -> None:
    """CLIP's files with a vocabulary of single bytes and a few words."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(code) for code in visible] + [chr(256 + i) for i in range(256 - len(visible))]
    merges = ["r e", "re d</w>", "c a", "ca t</w>", "t h", "th e</w>", "a p", "ap p", "l e</w>", "app le</w>", "d o", "do g</w>"]
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(merge.split()) for merge in merges]
    vocabulary = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": pad_token}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", **special}), encoding="utf-8")


@pytest.fixture
def clip_vocabulary() -> Callable[..., None]:
    return write_vocabulary


@pytest.fixture(scope="session")
def shared_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocabulary")
    write_vocabulary(folder)
    return folder


def write_safetensors(path: Path, tensors: dict[str, tuple[str, NDArray[Any]]]) -> dict[str, tuple[int, int]]:
    """Writes the file by hand (bf16 as raw uint16) and gives each tensor's (offset, length) in the file."""
    header: dict[str, Any] = {}
    place, body = 0, b""
    for name, (kind, values) in tensors.items():
        data = values.tobytes()
        header[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": [place, place + len(data)]}
        place, body = place + len(data), body + data
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(len(head).to_bytes(8, "little") + head + body)
    start = 8 + len(head)
    return {name: (start + at["data_offsets"][0], at["data_offsets"][1] - at["data_offsets"][0]) for name, at in header.items()}


class GraphWriter:
    """Collects weights (stored in `precision`) and nodes, and writes graph and weights beside each other."""

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self.weights: dict[str, tuple[str, NDArray[Any]]] = {}
        self.nodes: list[Any] = []

    def weight(self, name: str, values: NDArray[np.float32]) -> str:
        """Stores the weight; the name after its Cast to float32."""
        from onnx import TensorProto, helper

        bits = values.astype("<f4")
        stored = {"F32": bits, "F16": bits.astype("<f2"), "BF16": (bits.view("<u4") >> 16).astype("<u2")}[self.precision]
        self.weights[name] = (self.precision, stored)
        self.nodes.append(helper.make_node("Cast", [name], [name + ".f32"], to=TensorProto.FLOAT))
        return name + ".f32"

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))

    def save(
        self, folder: Path, inputs: list[tuple[str, int, list[Any]]], outputs: list[tuple[str, int, list[Any]]], constants: list[Any]
    ) -> None:
        import onnx
        from onnx import TensorProto, helper

        folder.mkdir(parents=True)
        kind = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16}[self.precision]
        initializers = []
        for name, (offset, length) in write_safetensors(folder / "model.safetensors", self.weights).items():
            tensor = TensorProto(name=name, data_type=kind, dims=self.weights[name][1].shape, data_location=TensorProto.EXTERNAL)
            for key, value in (("location", "model.safetensors"), ("offset", str(offset)), ("length", str(length))):
                tensor.external_data.add(key=key, value=value)
            initializers.append(tensor)
        ports = [[helper.make_tensor_value_info(*port) for port in side] for side in (inputs, outputs)]
        graph = helper.make_graph(self.nodes, folder.name, ports[0], ports[1], initializers + constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        onnx.checker.check_model(str(folder / "model.onnx"))


def write_text_encoder(folder: Path, precision: str) -> None:
    from onnx import TensorProto

    rng, writer = np.random.default_rng(1), GraphWriter(precision)
    writer.node("Gather", [writer.weight("embedding", rng.normal(size=(VOCABULARY, DIM)).astype(np.float32)), "input_ids"], "raw")
    writer.node("Tanh", ["raw"], "last_hidden_state")
    inputs = [("input_ids", TensorProto.INT64, ["batch", "tokens"])]
    writer.save(folder, inputs, [("last_hidden_state", TensorProto.FLOAT, ["batch", "tokens", DIM])], [])


def write_unet(folder: Path, precision: str) -> None:
    from onnx import TensorProto, numpy_helper

    rng, writer = np.random.default_rng(2), GraphWriter(precision)
    kernel = writer.weight("kernel", rng.normal(size=(4, 4, 3, 3)).astype(np.float32) * 0.2)
    project = writer.weight("project", rng.normal(size=(DIM, 4)).astype(np.float32))
    writer.node("Conv", ["sample", kernel], "mixed", pads=[1, 1, 1, 1])
    writer.node("ReduceMean", ["encoder_hidden_states", "axis"], "meaning", keepdims=0)
    writer.node("MatMul", ["meaning", project], "bias4")
    writer.node("Reshape", ["bias4", "to_map"], "bias")
    writer.node("Mul", ["timestep", "thousandth"], "time1")
    writer.node("Reshape", ["time1", "to_scalar"], "time")
    writer.node("Add", ["mixed", "bias"], "with_text")
    writer.node("Add", ["with_text", "time"], "with_time")
    writer.node("Tanh", ["with_time"], "out_sample")
    constants = [
        numpy_helper.from_array(np.array([1], np.int64), "axis"),
        numpy_helper.from_array(np.array([-1, 4, 1, 1], np.int64), "to_map"),
        numpy_helper.from_array(np.array([-1, 1, 1, 1], np.int64), "to_scalar"),
        numpy_helper.from_array(np.array([0.001], np.float32), "thousandth"),
    ]
    latents = ["batch", 4, "height", "width"]
    inputs = [
        ("sample", TensorProto.FLOAT, latents),
        ("timestep", TensorProto.FLOAT, ["batch"]),
        ("encoder_hidden_states", TensorProto.FLOAT, ["batch", "tokens", DIM]),
    ]
    writer.save(folder, inputs, [("out_sample", TensorProto.FLOAT, latents)], constants)


def write_vae_decoder(folder: Path, precision: str) -> None:
    from onnx import TensorProto

    rng, writer = np.random.default_rng(3), GraphWriter(precision)
    writer.node(
        "ConvTranspose", ["latent_sample", writer.weight("paint", rng.normal(size=(4, 3, 8, 8)).astype(np.float32))], "raw", strides=[8, 8]
    )
    writer.node("Tanh", ["raw"], "sample")
    inputs = [("latent_sample", TensorProto.FLOAT, ["batch", 4, "height", "width"])]
    writer.save(folder, inputs, [("sample", TensorProto.FLOAT, ["batch", 3, "rows", "columns"])], [])


COMPONENTS: dict[str, tuple[str, Callable[[Path, str], None], str]] = {
    "text_encoder": ("text_encoder", write_text_encoder, "BF16"),
    "unet": ("unet", write_unet, "F16"),
    "vae_decoder": ("vae", write_vae_decoder, "F32"),
}


def component(folder: str) -> dict[str, Any]:
    comparisons = [{"shapes": {"sample": [1, 4, n, n]}, "max_abs_error": 1e-6, "rel_l2_error": 1e-6, "cosine": 1.0} for n in (8, 16)]
    parity = {"reference": "torch fp32", "backend": "onnxruntime cpu", "bound_rel_l2": 1e-3, "comparisons": comparisons}
    files = {"graph": f"{folder}/model.onnx", "weights": [f"{folder}/model.safetensors"]}
    return {**files, "precision": "fp32", "opset": 20, "parity": parity}


def manifest_of(root: Path) -> dict[str, Any]:
    """A manifest that is right for the files in `root`."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.name != "bundle.json")
    end = {"reference": "torch", "prompt": "cat", "seed": 0, "num_inference_steps": 4, "guidance_scale": 3.0}
    return {
        "format_version": 1,
        "name": "miniature",
        "family": "sd",
        "created_with": "platemark test",
        "source": {"checkpoint": "none", "weights": {"unet/model.safetensors": "0" * 64}},
        "files": {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        "components": {name: component(folder) for name, (folder, _, _) in COMPONENTS.items()},
        "end_to_end": {**end, "height": NATIVE, "width": NATIVE, "psnr": 80.0, "bound_psnr": 60.0},
        "native_size": [NATIVE, NATIVE],
        "output_size": [96, 96],
        "latent_channels": 4,
        "vae_scale_factor": 8,
        "scaling_factor": 0.5,
        "shift_factor": 0.0,
        "max_tokens": TOKENS,
        "default_steps": 4,
        "default_guidance": 3.0,
    }


def write_manifest(root: Path, **changes: Any) -> None:
    (root / "bundle.json").write_text(json.dumps({**manifest_of(root), **changes}), encoding="utf-8")


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that tests only read."""
    root = tmp_path_factory.mktemp("bundles") / "miniature"
    for folder, write, precision in COMPONENTS.values():
        write(root / folder, precision)
    (root / "tokenizer").mkdir()
    write_vocabulary(root / "tokenizer")
    (root / "scheduler").mkdir()
    config = {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    (root / "scheduler" / "scheduler_config.json").write_text(json.dumps(config), encoding="utf-8")
    write_manifest(root)
    return root


@pytest.fixture
def copy(miniature: Path, tmp_path: Path) -> Path:
    """A bundle of the test's own, to damage."""
    import shutil

    return Path(shutil.copytree(miniature, tmp_path / "bundle"))


@pytest.fixture
def rewrite_manifest() -> Callable[..., None]:
    return write_manifest
