"""Config and weights must belong together: the tensor that does not fit is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

from platemark.errors import CheckpointError  # noqa: E402
from platemark.optimize.checkpoint import open_checkpoint  # noqa: E402
from platemark.optimize.modules import load_part  # noqa: E402

Tensors = dict[str, np.ndarray]
PLACES = {
    "text_encoder": ("text_encoder/model.safetensors", "encoder.layers.0.mlp.fc1.bias"),
    "unet": ("unet/diffusion_pytorch_model.safetensors", "conv_in.bias"),
    "vae": ("vae/diffusion_pytorch_model.safetensors", "decoder.conv_in.bias"),
    "clip": ("clip/open_clip_model.safetensors", "ln_final.bias"),
}


def drop(tensors: Tensors, name: str) -> None:
    del tensors[name]


def widen(tensors: Tensors, name: str) -> None:
    tensors[name] = np.ones(len(tensors[name]) + 1, np.float16)


def add(tensors: Tensors, name: str) -> None:
    tensors[f"{name}.surplus"] = np.ones(3, np.float16)


@pytest.mark.parametrize("part", PLACES)
@pytest.mark.parametrize("spoil", [drop, widen, add])
def test_a_tensor_that_does_not_fit_is_named(checkpoint_copy: Path, part: str, spoil: Callable[[Tensors, str], None]) -> None:
    place, name = PLACES[part]
    tensors = load_file(checkpoint_copy / place)
    spoil(tensors, name)
    save_file(tensors, checkpoint_copy / place, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")) as caught:
        load_part(open_checkpoint(checkpoint_copy).parts[part])
    assert part in caught.value.message
    assert "\n" not in caught.value.message


def test_a_config_that_makes_no_network_is_refused(checkpoint_copy: Path) -> None:
    path = checkpoint_copy / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"down_block_types": ["NoSuchBlock", "DownBlock2D"]}))
    with pytest.raises(CheckpointError, match="unet: config and weights do not fit"):
        load_part(open_checkpoint(checkpoint_copy).parts["unet"])


def test_networks_are_float32_and_evaluating(modules: dict[str, Any]) -> None:
    for module in modules.values():
        assert not module.training
        assert {value.dtype for value in module.parameters()} == {torch.float32}
        assert not any(value.requires_grad for value in module.parameters())


def test_loading_leaves_the_libraries_settings_alone(opened: Any) -> None:
    before = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    load_part(opened.parts["text_encoder"])
    assert (transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()) == before
