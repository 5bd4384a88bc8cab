"""The CLIP files that picture checks read: preprocessing as open_clip has it, and golden embeddings that the graphs reproduce."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

import open_clip  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from platemark.errors import CheckpointError  # noqa: E402
from platemark.optimize.checkpoint import open_checkpoint  # noqa: E402
from platemark.optimize.clip import GOLDEN_SEED, golden, golden_pixels, normalise, preprocessing  # noqa: E402
from platemark.optimize.modules import load_part  # noqa: E402
from platemark.optimize.parts import Part  # noqa: E402
from platemark.runtime.backends.onnxruntime import compile_graph  # noqa: E402
from platemark.runtime.tokenizer import Tokenizer  # noqa: E402


@pytest.fixture
def part(opened: Any) -> Part:
    found: Part = opened.parts["clip"]
    return found


def test_preprocessing_is_the_models_own(part: Part, modules: dict[str, Any]) -> None:
    found = preprocessing(modules["clip_image"].net, part)
    assert {key: found[key] for key in ("image_size", "context_length", "resize_mode", "interpolation")} == {
        "image_size": 16,
        "context_length": 12,
        "resize_mode": "squash",
        "interpolation": "bicubic",
    }
    assert found["mean"] == [0.5, 0.4, 0.3]
    assert found["std"] == [0.5, 0.6, 0.7]
    assert 0 < found["logit_scale"] <= 100


def test_normalising_is_open_clips(part: Part, modules: dict[str, Any]) -> None:
    net = modules["clip_image"].net
    pixels = golden_pixels(16)
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**open_clip.get_model_preprocess_cfg(net)), is_train=False
    )
    expected = transform(Image.fromarray(pixels)).numpy()
    np.testing.assert_allclose(normalise(pixels, preprocessing(net, part))[0], expected, atol=1e-6)


def test_golden_embeddings_come_from_the_model(part: Part, modules: dict[str, Any]) -> None:
    net = modules["clip_image"].net
    preprocess = preprocessing(net, part)
    found = golden(net, part, preprocess)
    assert found["image"]["seed"] == GOLDEN_SEED
    with torch.no_grad():
        expected = net.encode_image(torch.from_numpy(normalise(golden_pixels(16), preprocess)), normalize=True)[0]
    np.testing.assert_allclose(found["image"]["embedding"], expected.numpy(), atol=1e-6)
    assert np.linalg.norm(found["text"]["embedding"]) == pytest.approx(1, abs=1e-5)


def test_the_graphs_reproduce_the_golden_embeddings(part: Part, modules: dict[str, Any], graph_folder: Path) -> None:
    net = modules["clip_image"].net
    preprocess = preprocessing(net, part)
    expected = golden(net, part, preprocess)
    image = compile_graph(graph_folder / "clip" / "image.onnx").run({"pixel_values": normalise(golden_pixels(16), preprocess)})
    ids = Tokenizer.load(part.folder, preprocess["context_length"]).encode_batch([expected["text"]["prompt"]])
    text = compile_graph(graph_folder / "clip" / "text.onnx").run({"input_ids": ids})
    np.testing.assert_allclose(image["image_embeds"][0], expected["image"]["embedding"], atol=1e-5)
    np.testing.assert_allclose(text["text_embeds"][0], expected["text"]["embedding"], atol=1e-5)


def test_a_text_tower_from_the_hub_is_refused(checkpoint_copy: Path) -> None:
    path = checkpoint_copy / "clip" / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "somebody/model"
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="from the hub"):
        load_part(open_checkpoint(checkpoint_copy).parts["clip"])


def test_a_tokenizer_that_is_not_there_is_refused(checkpoint_copy: Path, modules: dict[str, Any]) -> None:
    (checkpoint_copy / "clip" / "vocab.json").unlink()
    (checkpoint_copy / "clip" / "tokenizer_config.json").unlink()
    net, part = modules["clip_image"].net, open_checkpoint(checkpoint_copy).parts["clip"]
    with pytest.raises(CheckpointError, match="tokenizer"):
        golden(net, part, preprocessing(net, part))
