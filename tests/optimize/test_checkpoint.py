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
from platemark.optimize.checkpoint import Added, open_checkpoint
from platemark.optimize.fit import recommended
from platemark.runtime.family import load_family

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
    configs = {"text_encoder": {"max_position_embeddings": 12, "vocab_size": 60, "hidden_size": 32}, "unet": UNET, "vae": VAE}
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
    assert checkpoint.settings.default_steps is None


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
        (lambda root: edit(root / "unet" / "config.json", in_channels=8), "in_channels = 8"),
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
    "text_encoder": ("max_position_embeddings", "vocab_size", "hidden_size"),
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


def make_xl(root: Path) -> None:
    """The same files as an SDXL checkpoint."""
    text = json.loads((root / "text_encoder" / "config.json").read_text())
    (root / "text_encoder_2").mkdir()
    save_file({"w": np.ones(4, np.float16)}, root / "text_encoder_2" / "model.safetensors")
    (root / "text_encoder_2" / "config.json").write_text(json.dumps(text | {"hidden_size": 16, "projection_dim": 20}))
    (root / "tokenizer_2").mkdir()
    (root / "tokenizer_2" / "vocab.json").write_text("{}")
    second = {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}
    edit(root / "model_index.json", _class_name="StableDiffusionXLPipeline", **second)
    sizes = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 68}
    edit(root / "unet" / "config.json", cross_attention_dim=48, **sizes)


def test_two_text_encoders_are_parts_with_their_tokenizers(root: Path) -> None:
    make_xl(root)
    checkpoint = open_checkpoint(root)
    assert (checkpoint.family.name, checkpoint.empty_negative_is_zero) == ("sdxl", True)
    assert list(checkpoint.parts) == ["text_encoder", "text_encoder_2", "unet", "vae"]
    assert "tokenizer_2/vocab.json" in {name for name, _ in checkpoint.files()}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda root: edit(root / "model_index.json", text_encoder=[None, None]), "as text_encoder, and a refiner"),
        (
            lambda root: edit(root / "model_index.json", text_encoder_2=["transformers", "CLIPTextModel"]),
            "'CLIPTextModel' as text_encoder_2",
        ),
        (lambda root: (root / "tokenizer_2" / "vocab.json").unlink(), "tokenizer_2/ holds neither"),
        (lambda root: (root / "text_encoder_2" / "model.safetensors").unlink(), r"text_encoder_2/model\.safetensors is missing"),
        (lambda root: edit(root / "unet" / "config.json", cross_attention_dim=32), "unet reads text states 32 wide, and text_encoder and"),
        (lambda root: edit(root / "unet" / "config.json", projection_class_embeddings_input_dim=60), "pooled text is 20 wide"),
        (lambda root: edit(root / "unet" / "config.json", addition_embed_type=None), "addition_embed_type = None"),
        (lambda root: edit(root / "text_encoder_2" / "config.json", max_position_embeddings=16), "different numbers of tokens"),
    ],
)
def test_sdxl_parts_that_do_not_fit_are_named(root: Path, spoil: Callable[[Path], object], says: str) -> None:
    make_xl(root)
    spoil(root)
    with pytest.raises(CheckpointError, match=says) as caught:
        open_checkpoint(root)
    assert caught.value.remedy


def network(folder: Path, kind: str, **config: object) -> Path:
    folder.mkdir()
    save_file({"w": np.ones(4, np.float16)}, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": kind, **config}))
    return folder


CONTROL = {"block_out_channels": [16, 32], "cross_attention_dim": 32, "conditioning_embedding_out_channels": [8, 16, 16]}


def test_networks_are_added_beside_the_checkpoints_own(root: Path, tmp_path: Path) -> None:
    control = network(tmp_path / "control", "ControlNetModel", **CONTROL)
    sides = {"encoder_block_out_channels": [8, 8], "decoder_block_out_channels": [8, 8], "latent_channels": 4}
    tiny = network(tmp_path / "tiny", "AutoencoderTiny", **sides)
    checkpoint = open_checkpoint(root, Added(controlnet=control))
    assert dict(checkpoint.files())["controlnet/config.json"] == control / "config.json"
    small = open_checkpoint(root, Added(tiny_vae=tiny))
    assert (small.vae_scale_factor, small.vae.scaling_factor) == (2, 1.0)
    with pytest.raises(CheckpointError, match=r"vae/config.json is that of a 'ControlNetModel'"):
        open_checkpoint(root, Added(tiny_vae=control))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"block_out_channels": [16, 64]}, "block_out_channels"),
        ({"cross_attention_dim": 64}, "cross_attention_dim"),
        ({"conditioning_embedding_out_channels": None}, "halves its picture 3 times, the vae 2"),
        ({"global_pool_conditions": True}, "global_pool_conditions"),
    ],
)
def test_a_controlnet_of_another_family_is_refused(root: Path, tmp_path: Path, changes: dict[str, object], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint(root, Added(controlnet=network(tmp_path / "control", "ControlNetModel", **(CONTROL | changes))))


def test_a_controlnet_and_an_inpainting_unet_do_not_go_together(root: Path, tmp_path: Path) -> None:
    edit(root / "unet" / "config.json", in_channels=9)
    assert open_checkpoint(root).parts["unet"].config["in_channels"] == 9
    with pytest.raises(CheckpointError, match="inpainting UNet"):
        open_checkpoint(root, Added(controlnet=network(tmp_path / "control", "ControlNetModel", **CONTROL)))
    edit(root / "model_index.json", _class_name="LatentConsistencyModelPipeline")
    with pytest.raises(CheckpointError, match="in_channels = 9"):
        open_checkpoint(root)


EULER = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}


@pytest.mark.parametrize(
    ("scheduler", "unet", "steps"),
    [
        ({}, {}, (20, 7.5)),
        (EULER, {}, (4, 0.0)),
        (EULER | {"prediction_type": "v_prediction"}, {}, (20, 7.5)),
        (EULER | {"timestep_spacing": "leading"}, {}, (20, 7.5)),
        ({"_class_name": "LCMScheduler"}, {"time_cond_proj_dim": 8}, (4, 8.5)),
        ({"_class_name": "LCMScheduler"}, {}, (4, 1.0)),
    ],
)
def test_distilled_checkpoints_are_known_by_their_scheduler(
    scheduler: dict[str, object], unet: dict[str, object], steps: tuple[int, float]
) -> None:
    assert recommended(load_family("sd"), unet, scheduler) == steps
