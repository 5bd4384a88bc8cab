"""Opening checkpoints: what is missing, damaged or a pickle is refused by name, with the remedy, before torch is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from platemark.errors import CheckpointError
from platemark.optimize.checkpoint import open_checkpoint

FILES = {
    "text_encoder/model.safetensors": "text_encoder/config.json",
    "unet/diffusion_pytorch_model.safetensors": "unet/config.json",
    "vae/diffusion_pytorch_model.safetensors": "vae/config.json",
}
UNET = {"sample_size": 8, "block_out_channels": [16, 32], "cross_attention_dim": 32, "in_channels": 4}

VAE = {"block_out_channels": [8, 16, 16], "latent_channels": 4}
CLIP = {"embed_dim": 16, "vision_cfg": {"image_size": 16}, "text_cfg": {"context_length": 12, "vocab_size": 60}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The files of a checkpoint, with one small tensor a network."""
    root = tmp_path / "model"
    configs = {"text_encoder": {"max_position_embeddings": 12, "vocab_size": 60}, "unet": UNET, "vae": VAE}
    for weights in FILES:
        (root / weights).parent.mkdir(parents=True)
        save_file({"w": np.ones(4, np.float16)}, root / weights)
    for name, config in configs.items():
        (root / name / "config.json").write_text(json.dumps(config))
    for name in ("scheduler/scheduler_config.json", "tokenizer/vocab.json"):
        (root / name).parent.mkdir()
        (root / name).write_text("{}")
    index = {"_class_name": "StableDiffusionPipeline", "text_encoder": ["transformers", "CLIPTextModel"]}
    index |= {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    (root / "model_index.json").write_text(json.dumps(index))
    return root


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def add_clip(root: Path, model: object) -> None:
    (root / "clip").mkdir()
    save_file({"w": np.ones(4, np.float16)}, root / "clip" / "open_clip_model.safetensors")
    (root / "clip" / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))


def test_sizes_come_from_the_configs(root: Path) -> None:
    checkpoint = open_checkpoint(root)
    assert checkpoint.native_size == (32, 32)
    assert checkpoint.vae_scale_factor == 4
    assert checkpoint.max_tokens == 12
    assert checkpoint.settings.default_steps == 20


def test_only_configs_tokenizer_and_weights_are_taken(root: Path) -> None:
    for stray in ("README.md", "unet/notes.txt", "unet/training.log", "safety_checker/config.json"):
        (root / stray).parent.mkdir(exist_ok=True)
        (root / stray).write_text("x")
    taken = {name for name, _ in open_checkpoint(root).files()}
    assert taken == {*FILES, *FILES.values(), "model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json"}


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt", ".pth"])
def test_pickles_are_refused_by_name(root: Path, suffix: str) -> None:
    weights = root / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(suffix))
    with pytest.raises(CheckpointError, match="is a pickle") as caught:
        open_checkpoint(root)
    assert f"unet/diffusion_pytorch_model{suffix}" in caught.value.message
    assert "safetensors" in caught.value.remedy


def test_a_stray_pickle_is_refused_and_a_twin_is_left_behind(root: Path) -> None:
    (root / "text_encoder" / "pytorch_model.bin").write_bytes(b"\x80\x02")
    (root / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x02")
    assert not [name for name, _ in open_checkpoint(root).files() if name.endswith(".bin")]
    (root / "unet" / "extra.bin").write_bytes(b"\x80\x02")
    with pytest.raises(CheckpointError, match=r"unet/extra\.bin"):
        open_checkpoint(root)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda root: (root / "model_index.json").unlink(), "model_index.json is missing"),
        (lambda root: (root / "model_index.json").write_text("{"), "not JSON"),
        (lambda root: (root / "model_index.json").write_text("[1]"), "not a JSON table"),
        (lambda root: edit(root / "model_index.json", _class_name="FluxPipeline"), "FluxPipeline"),
        (lambda root: edit(root / "model_index.json", unet=[None, None]), "as unet"),
        (lambda root: (root / "unet" / "config.json").unlink(), r"unet/config\.json"),
        (lambda root: (root / "vae").rename(root / "other"), "vae/ is missing"),
        (
            lambda root: (root / "unet" / "diffusion_pytorch_model.safetensors").unlink(),
            r"unet/diffusion_pytorch_model\.safetensors is missing",
        ),
        (lambda root: edit(root / "unet" / "config.json", in_channels=9), "in_channels = 9"),
        (lambda root: edit(root / "unet" / "config.json", addition_embed_type="text_time"), "text_time"),
        (lambda root: edit(root / "unet" / "config.json", sample_size=None), "sample_size"),
        (lambda root: (root / "tokenizer" / "vocab.json").unlink(), "tokenizer"),
        (lambda root: (root / "scheduler" / "scheduler_config.json").unlink(), "scheduler"),
        (lambda root: (root / "platemark.json").write_text('{"default_steps": 0}'), "default_steps"),
        (lambda root: (root / "platemark.json").write_text('{"steps": 5}'), "steps"),
        (lambda root: (root / "clip").mkdir(), r"clip/open_clip_config\.json"),
    ],
)
def test_what_is_wrong_is_named(root: Path, spoil: Callable[[Path], object], says: str) -> None:
    spoil(root)
    with pytest.raises(CheckpointError, match=says) as caught:
        open_checkpoint(root)
    assert "\n" not in caught.value.message
    assert caught.value.remedy


READ = {
    "text_encoder": ("max_position_embeddings", "vocab_size"),
    "unet": ("sample_size", "block_out_channels", "cross_attention_dim"),
    "vae": ("block_out_channels", "latent_channels"),
}


@pytest.mark.parametrize(("part", "key"), [(part, key) for part, keys in READ.items() for key in keys])
def test_every_key_that_a_build_reads_must_be_there(root: Path, part: str, key: str) -> None:
    path = root / part / "config.json"
    config = json.loads(path.read_text())
    del config[key]
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"{part}/config\.json has no {key} ") as caught:
        open_checkpoint(root)
    assert "save the checkpoint again" in caught.value.remedy


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        *((part, key, value) for part, keys in READ.items() for key in keys for value in (None, 0, "wide", [], {}, [3, None], 1.5)),
        ("unet", "sample_size", [8]),
        ("unet", "sample_size", True),
        ("unet", "cross_attention_dim", [32, 64]),
        ("unet", "encoder_hid_dim", "32"),
        ("vae", "latent_channels", 16),
        ("vae", "scaling_factor", None),
        ("vae", "scaling_factor", float("nan")),
        ("vae", "shift_factor", "0"),
    ],
)
def test_every_key_that_a_build_reads_must_be_usable(root: Path, part: str, key: str, value: object) -> None:
    edit(root / part / "config.json", **{key: value})
    with pytest.raises(CheckpointError, match=rf"{part}/config\.json has {key} = ") as caught:
        open_checkpoint(root)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (None, "has model_cfg = None"),
        (CLIP | {"vision_cfg": None}, r"has model_cfg\.vision_cfg = None"),
        ({key: value for key, value in CLIP.items() if key != "embed_dim"}, r"has no model_cfg\.embed_dim"),
        ({key: value for key, value in CLIP.items() if key != "text_cfg"}, r"has no model_cfg\.text_cfg"),
        (CLIP | {"vision_cfg": {}}, r"has no model_cfg\.vision_cfg\.image_size"),
        (CLIP | {"text_cfg": {"context_length": "77"}}, r"has model_cfg\.text_cfg\.context_length = '77'"),
    ],
)
def test_the_clip_config_is_read_as_strictly(root: Path, model: object, says: str) -> None:
    add_clip(root, model)
    with pytest.raises(CheckpointError, match=says) as caught:
        open_checkpoint(root)
    assert "open_clip" in caught.value.remedy


def test_lists_and_open_clips_defaults_are_taken(root: Path) -> None:
    edit(root / "unet" / "config.json", sample_size=[8, 12], cross_attention_dim=[32, 32])
    edit(root / "vae" / "config.json", scaling_factor=1, shift_factor=None)
    add_clip(root, {"embed_dim": 16, "vision_cfg": {"image_size": [16, 16]}, "text_cfg": {}})
    assert open_checkpoint(root).native_size == (32, 48)


def test_truncated_weights_are_refused(root: Path) -> None:
    path = root / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="truncated"):
        open_checkpoint(root)


def test_shards_are_refused_plainly(root: Path) -> None:
    path = root / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))
    (root / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="shards"):
        open_checkpoint(root)


def test_the_fp16_variant_serves_where_it_is_the_only_one(root: Path) -> None:
    path = root / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert open_checkpoint(root).parts["unet"].weights[0].name == "diffusion_pytorch_model.fp16.safetensors"


def test_a_file_is_not_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="not a folder"):
        open_checkpoint(path)


def test_neither_opening_nor_importing_the_build_needs_torch() -> None:
    code = "import sys; import platemark.optimize.build; sys.exit(any(name in sys.modules for name in ('torch', 'onnx', 'onnxruntime')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
