"""A tiny random Stable Diffusion checkpoint with the traits of the embedded model, exported once per test run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

ALPHABET = "abcdefghijklmnopqrstuvwxyz"
START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = ("r e", "re d</w>", "a p", "ap p", "l e</w>", "app le</w>")
MAX_TOKENS = 12


def write_tokenizer(folder: Path) -> int:
    """A CLIP-style byte pair tokenizer of letters and three words; returns the size of its vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [*ALPHABET, *(letter + "</w>" for letter in ALPHABET), *("".join(m.split()) for m in MERGES), START, END]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
        "model_max_length": MAX_TOKENS,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(tokens)


def randomise(net: Any, seed: int) -> Any:
    """Gives every parameter its own values, so that no two tensors can be taken for each other."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in net.parameters():
            value.add_(torch.randn(value.shape, generator=generator) * 0.05)
    return net.half()


def make_text_encoder(words: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=words,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
        pad_token_id=words - 1,
    )
    return randomise(CLIPTextModel(config), 1)


def make_unet(**changes: Any) -> Any:
    from diffusers import UNet2DConditionModel

    config = {
        "sample_size": 32,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 4,
        "resnet_time_scale_shift": "scale_shift",
    }
    return randomise(UNet2DConditionModel(**(config | changes)), 2)


def make_vae() -> Any:
    from diffusers import AutoencoderKL

    net = AutoencoderKL(
        block_out_channels=[8, 16],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        layers_per_block=1,
        norm_num_groups=1,
        sample_size=64,
        mid_block_add_attention=False,
    )
    return randomise(net, 3)


def write_clip(folder: Path) -> None:
    """A tiny open_clip model in its `local-dir` format."""
    import open_clip
    from safetensors.torch import save_file

    words = write_tokenizer(folder)
    vision = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 8, "mlp_ratio": 2.0}
    text = {"context_length": MAX_TOKENS, "vocab_size": words, "width": 32, "heads": 4, "layers": 1}
    net = randomise(open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text), 4)
    model = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text | {"hf_tokenizer_name": "tokenizer"}}
    preprocess = {
        "size": 16,
        "mode": "RGB",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.5, 0.6, 0.7],
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}))
    state = {name: value.contiguous() for name, value in net.state_dict().items() if name != "attn_mask"}
    save_file(state, folder / "open_clip_model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder: 64×64 pixels, 32×32 latents, v prediction, with a clip/ folder. Do not write into it: copy it."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    root = tmp_path_factory.mktemp("checkpoints") / "tiny"
    source = tmp_path_factory.mktemp("tokenizer")
    words = write_tokenizer(source)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )
    pipeline = StableDiffusionPipeline(
        vae=make_vae(),
        text_encoder=make_text_encoder(words),
        tokenizer=CLIPTokenizer.from_pretrained(source),
        unet=make_unet(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(root)
    shutil.rmtree(root / "tokenizer")
    write_tokenizer(root / "tokenizer")
    write_clip(root / "clip")
    (root / "platemark.json").write_text(
        json.dumps({"name": "tiny", "default_steps": 4, "default_guidance": 2.0, "output_size": [128, 128]})
    )
    return root


@pytest.fixture
def checkpoint_copy(checkpoint_folder: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may spoil."""
    return Path(shutil.copytree(checkpoint_folder, tmp_path / "tiny"))


@pytest.fixture(scope="session")
def opened(checkpoint_folder: Path) -> Any:
    from platemark.optimize.checkpoint import open_checkpoint

    return open_checkpoint(checkpoint_folder)


@pytest.fixture(scope="session")
def modules(opened: Any) -> dict[str, Any]:
    """The torch reference of every component."""
    from platemark.optimize.modules import load_part, wrapped
    from platemark.optimize.specs import specs

    nets = {name: load_part(part) for name, part in opened.parts.items()}
    return {name: wrapped(spec, nets[spec.part], opened.family) for name, spec in specs(opened).items()}


@pytest.fixture(scope="session")
def graphs(opened: Any, modules: dict[str, Any]) -> dict[str, bytes]:
    """The graph file of every component: exporting takes seconds, so once."""
    from platemark.optimize.components import export_linked
    from platemark.optimize.parity import make_cases
    from platemark.optimize.specs import specs

    return {name: export_linked(spec, modules[name], opened.parts[spec.part], make_cases(spec)[0]) for name, spec in specs(opened).items()}


@pytest.fixture(scope="session")
def graph_folder(opened: Any, graphs: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph files beside their weights, as in a bundle."""
    from platemark.optimize.specs import specs

    root = tmp_path_factory.mktemp("graphs")
    for name, spec in specs(opened).items():
        (root / spec.graph).parent.mkdir(exist_ok=True)
        (root / spec.graph).write_bytes(graphs[name])
        for weights in opened.parts[spec.part].weights:
            shutil.copy(weights, root / spec.part)
    return root


@pytest.fixture
def exported_before(graphs: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `build` take the graphs that were exported once: they are the same bytes."""
    monkeypatch.setattr("platemark.optimize.components.export_linked", lambda spec, *rest: graphs[spec.component])


@pytest.fixture(scope="session")
def bundle_folder(checkpoint_folder: Path, graphs: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished bundle. Do not write into it: copy it."""
    from platemark.optimize.build import build

    out = tmp_path_factory.mktemp("bundles") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("platemark.optimize.components.export_linked", lambda spec, *rest: graphs[spec.component])
        build(checkpoint_folder, out)
    return out
