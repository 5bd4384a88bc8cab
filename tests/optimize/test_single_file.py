"""Single files: taken apart exactly, by shapes alone; diffusers' own converter agrees; what is wrong with one is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from platemark.errors import CheckpointError, InputError  # noqa: E402
from platemark.optimize.build import build  # noqa: E402
from platemark.optimize.checkpoint import open_checkpoint  # noqa: E402
from platemark.optimize.single_file import Reading, SingleFile, plan, read_single_file, write_folder  # noqa: E402
from platemark.optimize.single_file_keys import UnetLayout, VaeLayout  # noqa: E402
from platemark.optimize.weights import StoredTensor, read_header  # noqa: E402
from platemark.runtime.bundle import open_bundle  # noqa: E402
from platemark.runtime.pipeline import Pipeline  # noqa: E402
from platemark.runtime.request import GenerationRequest  # noqa: E402
from tests.optimize import ldm  # noqa: E402

WORDS = 49408
V, EPSILON = Reading("v_prediction"), Reading("epsilon")
SMALL = {"modelspec.resolution": "64x64"}

# What Stability AI and CompVis published, as far as a build reads it.
SD1_UNET: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "use_linear_projection": False,
}
SD2_UNET: dict[str, Any] = SD1_UNET | {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2,
    "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "transformer_layers_per_block": [1, 2, 10],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
FULL = UnetLayout((320, 640, 1280, 1280), (1, 1, 1, 0), 2, 1)
FULL_XL = UnetLayout((320, 640, 1280), (0, 2, 10), 2, 10, added=True)
FULL_VAE = VaeLayout((128, 256, 512, 512), 2)
TINY, TINY_VAE = UnetLayout((32, 64), (0, 1), 1, 1), VaeLayout((32, 64), 1)
TINY_XL = UnetLayout((32, 64), (0, 2), 1, 2, added=True)


def text_config(width: int, layers: int, inner: int, **more: Any) -> Any:
    from transformers import CLIPTextConfig

    heads = {"num_attention_heads": width // 64, "max_position_embeddings": 77, "bos_token_id": WORDS - 2, "eos_token_id": WORDS - 1}
    return CLIPTextConfig(vocab_size=WORDS, hidden_size=width, num_hidden_layers=layers, intermediate_size=inner, **heads, **more)


def unet(config: dict[str, Any]) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**config)


def vae(config: dict[str, Any]) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(**config)


def headers(state: dict[str, Any]) -> dict[str, StoredTensor]:
    """Tensors that are known by name and shape alone."""
    return {name: StoredTensor(name, "F16", tuple(v.shape), Path("x.safetensors"), 0, 2 * v.numel()) for name, v in state.items()}


def read(state: dict[str, Any], reading: Reading | None = None, metadata: dict[str, str] | None = None) -> SingleFile:
    return plan(Path("x.safetensors"), headers(state), metadata or {}, reading or Reading())


def shapes(net: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


def meta_sd1(unet_config: dict[str, Any], layout: UnetLayout = FULL) -> tuple[dict[str, Any], Any, Any]:
    import torch
    from transformers import CLIPTextModel

    with torch.device("meta"):
        net, coder, text = unet(unet_config), vae(VAE), CLIPTextModel(text_config(768, 12, 3072))
    state = ldm.unet_state(net, layout) | ldm.vae_state(coder, FULL_VAE) | ldm.clip_state(text, ldm.SD1[0])
    return state, net, coder


def agrees(single: SingleFile, part: str, config: dict[str, Any], net: Any) -> None:
    plan_of = single.parts[part]
    assert {name: plan_of.config[name] for name in config} == config
    assert {piece.name: piece.shape for piece in plan_of.pieces} == shapes(net)


def test_sd1_is_known_by_its_shapes() -> None:
    state, net, coder = meta_sd1(SD1_UNET)
    single = read(state)
    agrees(single, "unet", SD1_UNET, net)
    agrees(single, "vae", VAE | {"scaling_factor": 0.18215, "sample_size": 512}, coder)
    text = single.parts["text_encoder"].config
    assert (text["num_hidden_layers"], text["num_attention_heads"], text["hidden_act"]) == (12, 12, "quick_gelu")
    assert single.index["_class_name"] == "StableDiffusionPipeline"
    assert single.scheduler["prediction_type"] == "epsilon"


@pytest.mark.parametrize("changes", [{"in_channels": 9}, {"time_cond_proj_dim": 256}])
def test_inpainting_and_guidance_embeddings_are_seen(changes: dict[str, Any]) -> None:
    layout = UnetLayout((320, 640, 1280, 1280), (1, 1, 1, 0), 2, 1, guided="time_cond_proj_dim" in changes)
    state, net, _ = meta_sd1(SD1_UNET | changes, layout)
    single = read(state)
    agrees(single, "unet", SD1_UNET | changes, net)
    assert ("Inpaint" in single.index["_class_name"]) == ("in_channels" in changes)


def test_sd2_is_known_but_for_what_it_predicts() -> None:
    import torch
    from transformers import CLIPTextModel

    with torch.device("meta"):
        net, coder, text = unet(SD2_UNET), vae(VAE), CLIPTextModel(text_config(1024, 23, 4096, hidden_act="gelu"))
    state = ldm.unet_state(net, FULL) | ldm.vae_state(coder, FULL_VAE) | ldm.open_clip_state(text, ldm.SD2[1], projection=False)
    with pytest.raises(CheckpointError, match="predict") as caught:
        read(state)
    assert "--prediction-type" in caught.value.remedy
    agrees(read(state, V), "unet", SD2_UNET, net)
    assert read(state, V).scheduler["prediction_type"] == "v_prediction"
    assert read(state, EPSILON).parts["unet"].config["sample_size"] == 64
    assert read(state, None, {"modelspec.prediction_type": "v"}).scheduler["prediction_type"] == "v_prediction"
    config = read(state, V).parts["text_encoder"].config
    assert (config["num_hidden_layers"], config["num_attention_heads"], config["hidden_act"]) == (23, 16, "gelu")
    assert not read(state, V).ignored


def meta_sdxl() -> tuple[dict[str, Any], Any, Any]:
    import torch
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        net, coder, first = unet(SDXL_UNET), vae(VAE), CLIPTextModel(text_config(768, 12, 3072))
        second = CLIPTextModelWithProjection(text_config(1280, 32, 5120, hidden_act="gelu", projection_dim=1280))
    state = ldm.unet_state(net, FULL_XL) | ldm.vae_state(coder, FULL_VAE) | ldm.clip_state(first, ldm.SDXL[0])
    return state | ldm.open_clip_state(second, ldm.SDXL[1], projection=True), net, second


def test_sdxl_is_known_by_its_shapes() -> None:
    state, net, second = meta_sdxl()
    single = read(state)
    agrees(single, "unet", SDXL_UNET, net)
    assert single.index["_class_name"] == "StableDiffusionXLPipeline"
    assert single.parts["vae"].config["scaling_factor"] == 0.13025
    found = single.parts["text_encoder_2"]
    assert {piece.name: piece.shape for piece in found.pieces} == shapes(second)
    wanted = {"num_hidden_layers": 32, "num_attention_heads": 20, "projection_dim": 1280, "architectures": ["CLIPTextModelWithProjection"]}
    assert {name: found.config[name] for name in wanted} == wanted
    assert single.scheduler["prediction_type"] == "epsilon"
    import torch

    marked = read(state | {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)}).scheduler
    assert (marked["prediction_type"], marked["rescale_betas_zero_snr"], marked["timestep_spacing"]) == ("v_prediction", True, "trailing")


# Tiny networks with values.


def tiny_unet(**changes: Any) -> dict[str, Any]:
    config = {
        "sample_size": 32,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 64,
        "attention_head_dim": 8,
    }
    return config | changes


TINY_VAE_CONFIG = {
    "block_out_channels": [32, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "sample_size": 64,
}


def random(net: Any, seed: int) -> Any:
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in net.parameters():
            value.add_(torch.randn(value.shape, generator=generator) * 0.03)
    return net.half().eval()


@pytest.fixture(scope="module")
def sd1() -> dict[str, Any]:
    """Networks by folder."""
    from transformers import CLIPTextModel

    text = CLIPTextModel(text_config(64, 2, 128))
    return {"unet": random(unet(tiny_unet()), 1), "vae": random(vae(TINY_VAE_CONFIG), 2), "text_encoder": random(text, 3)}


@pytest.fixture(scope="module")
def sd1_state(sd1: dict[str, Any]) -> dict[str, Any]:
    text = ldm.clip_state(sd1["text_encoder"], ldm.SD1[0])
    return ldm.unet_state(sd1["unet"], TINY) | ldm.vae_state(sd1["vae"], TINY_VAE) | text


@pytest.fixture(scope="module")
def sd1_file(sd1_state: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    usual = {"betas": torch.zeros(10), "sqrt_alphas_cumprod": torch.zeros(10), "cond_stage_model.logit_scale": torch.ones(())}
    state = sd1_state | usual | {"embedding_manager.note": torch.ones(1)}
    return ldm.save(tmp_path_factory.mktemp("single") / "tiny-sd1.safetensors", state, SMALL)


def unpack(path: Path, folder: Path, reading: Reading | None = None) -> Path:
    write_folder(read_single_file(path, reading or Reading()), folder)
    return folder


def same(folder: Path, net: Any) -> None:
    """The weights file holds the network's very values."""
    from safetensors.torch import load_file

    (path,) = folder.glob("*.safetensors")
    found, wanted = load_file(path), net.state_dict() if "text" not in folder.name else ldm.text_state(net)
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        assert np.array_equal(found[name].numpy(), value.numpy()), name


def test_every_value_comes_back(sd1: dict[str, Any], sd1_file: Path, tmp_path: Path) -> None:
    folder = unpack(sd1_file, tmp_path / "out")
    for name, net in sd1.items():
        same(folder / name, net)
    opened = open_checkpoint(folder)
    assert opened.native_size == (64, 64)
    for name, net in sd1.items():
        if name != "text_encoder":
            written = json.loads((folder / name / "config.json").read_text())
            assert all(json.loads(json.dumps(net.config[key])) == value for key, value in written.items() if key != "_class_name"), name


def test_diffusers_converter_agrees(sd1: dict[str, Any], sd1_state: dict[str, Any]) -> None:
    """A second opinion on the key map that wrote the test's file."""
    import torch
    from diffusers.loaders import single_file_utils as theirs

    found = theirs.convert_ldm_unet_checkpoint(dict(sd1_state), dict(sd1["unet"].config))
    assert set(found) == set(sd1["unet"].state_dict())
    assert all(torch.equal(found[name], value) for name, value in sd1["unet"].state_dict().items())
    coder = theirs.convert_ldm_vae_checkpoint(dict(sd1_state), dict(sd1["vae"].config))
    assert all(torch.equal(coder[name], value) for name, value in sd1["vae"].state_dict().items())
    assert set(coder) == set(sd1["vae"].state_dict())


def test_a_bundle_of_the_file_renders_what_diffusers_renders(sd1: dict[str, Any], sd1_file: Path, tmp_path: Path) -> None:
    import diffusers
    import torch
    from transformers import CLIPTokenizer

    manifest = build(sd1_file, tmp_path / "bundle", settings={"default_steps": 3, "default_guidance": 3.0})
    origin = manifest.source.origin
    assert origin is not None
    assert (origin.kind, origin.name, origin.left_out) == ("file", "tiny-sd1.safetensors", ["embedding_manager.note"])
    assert (manifest.name, manifest.native_size) == ("tiny-sd1", (64, 64))
    assert not list((tmp_path / "bundle").glob(".*"))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    bundle = open_bundle(tmp_path / "bundle")
    request = GenerationRequest.make(bundle.manifest, prompt="a red apple", seed=5)
    ours = Pipeline.load(bundle).generate(request).arrays[0]
    pipe = diffusers.StableDiffusionPipeline(
        vae=sd1["vae"].float(),
        text_encoder=sd1["text_encoder"].float(),
        tokenizer=CLIPTokenizer.from_pretrained(bundle.root / "tokenizer"),
        unet=sd1["unet"].float(),
        scheduler=diffusers.DDIMScheduler.from_config({**manifest_scheduler(bundle.root), "clip_sample": False}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(5)
    made = pipe("a red apple", height=64, width=64, num_inference_steps=3, guidance_scale=3.0, generator=generator, output_type="np")
    for net in sd1.values():
        net.half()
    error = float(np.mean(np.square(made.images[0].astype(np.float64) - ours)))
    assert -10 * np.log10(error) > 60


def manifest_scheduler(root: Path) -> dict[str, Any]:
    return dict(json.loads((root / "scheduler" / "scheduler_config.json").read_text()))


def test_sd2_and_sdxl_values_come_back(sd1: dict[str, Any], tmp_path: Path) -> None:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    linear = {"use_linear_projection": True, "attention_head_dim": [1, 1]}
    net = random(unet(tiny_unet(**linear)), 4)
    text = random(CLIPTextModel(text_config(64, 2, 128, hidden_act="gelu")), 5)
    state = ldm.unet_state(net, TINY) | ldm.vae_state(sd1["vae"], TINY_VAE) | ldm.open_clip_state(text, ldm.SD2[1], projection=False)
    folder = unpack(ldm.save(tmp_path / "sd2.safetensors", state, SMALL), tmp_path / "sd2", V)
    same(folder / "unet", net)
    same(folder / "text_encoder", text)
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 112}
    big = random(unet(tiny_unet(**added, **linear, transformer_layers_per_block=[1, 2])), 6)
    second = random(CLIPTextModelWithProjection(text_config(64, 2, 128, hidden_act="gelu", projection_dim=64)), 7)
    state = ldm.unet_state(big, TINY_XL) | ldm.vae_state(sd1["vae"], TINY_VAE) | ldm.clip_state(sd1["text_encoder"], ldm.SDXL[0])
    state |= ldm.open_clip_state(second, ldm.SDXL[1], projection=True)
    folder = unpack(ldm.save(tmp_path / "xl.safetensors", state, SMALL), tmp_path / "xl")
    for name, one in (("unet", big), ("text_encoder", sd1["text_encoder"]), ("text_encoder_2", second), ("vae", sd1["vae"])):
        same(folder / name, one)
    loaded, report = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    assert loaded.config.projection_dim == 64


def test_sd2s_text_tower_is_what_open_clip_computes(tmp_path: Path) -> None:
    """The states of the last layer but one, through the last norm: what the published SD 2.x configs take."""
    import open_clip
    import torch
    from transformers import CLIPTextModel

    text_cfg = {"context_length": 77, "vocab_size": WORDS, "width": 64, "heads": 1, "layers": 3}
    vision = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 8}
    tower = random(open_clip.CLIP(embed_dim=64, vision_cfg=vision, text_cfg=text_cfg), 8).float()
    state = {f"cond_stage_model.model.{n}": v for n, v in tower.state_dict().items() if not n.startswith("visual.")}
    net, coder = random(unet(tiny_unet(use_linear_projection=True, attention_head_dim=[1, 1])), 4), random(vae(TINY_VAE_CONFIG), 2)
    path = ldm.save(tmp_path / "sd2.safetensors", state | ldm.unet_state(net, TINY) | ldm.vae_state(coder, TINY_VAE), SMALL)
    folder = unpack(path, tmp_path / "out", V)
    ids = torch.randint(0, WORDS, (2, 77), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = tower.token_embedding(ids) + tower.positional_embedding
        for block in list(tower.transformer.resblocks)[:-1]:
            x = block(x, attn_mask=tower.attn_mask)
        wanted = tower.ln_final(x)
        found = CLIPTextModel.from_pretrained(folder / "text_encoder")(input_ids=ids).last_hidden_state
    assert float((found - wanted).abs().max()) < 1e-4


def test_averaged_weights_are_taken_where_asked(sd1: dict[str, Any], sd1_state: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    prefix = "model.diffusion_model."
    averaged = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): value * 2
        for name, value in sd1_state.items()
        if name.startswith(prefix)
    }
    path = ldm.save(tmp_path / "ema.safetensors", sd1_state | averaged, SMALL)
    plain = unpack(path, tmp_path / "plain")
    same(plain / "unet", sd1["unet"])
    taken = load_file(unpack(path, tmp_path / "ema", Reading(ema=True)) / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(np.array_equal(taken[name].numpy(), 2 * value.numpy()) for name, value in sd1["unet"].state_dict().items())
    assert not read_single_file(path, Reading()).ignored
    lost = ldm.save(tmp_path / "half.safetensors", sd1_state | dict(list(averaged.items())[1:]), SMALL)
    with pytest.raises(CheckpointError, match="averaged weight model_ema"):
        read_single_file(lost, Reading(ema=True))


def without(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name: value for name, value in state.items() if not name.startswith(prefix)}


def test_what_a_file_lacks_is_named(sd1_state: dict[str, Any]) -> None:
    import torch

    conv = "model.diffusion_model.middle_block.0.in_layers.2.weight"
    for spoiled, said in (
        (without(sd1_state, "first_stage_model."), "no VAE"),
        (without(sd1_state, "cond_stage_model."), "no text encoder"),
        (without(sd1_state, "model.diffusion_model."), "no UNet"),
        (without(sd1_state, conv), "middle_block.0.in_layers.2.weight is missing"),
        (without(sd1_state, "first_stage_model.decoder.conv_in.weight"), "decoder.conv_in.weight is missing"),
        (without(sd1_state, "cond_stage_model.transformer.text_model.encoder.layers.1.mlp"), "tensors: .*mlp.fc1"),
        (sd1_state | {"model.diffusion_model.middle_block.3.weight": torch.ones(1)}, r"middle_block\.3\.weight is of no network"),
        ({"lora_unet_x.lora_down.weight": torch.ones(1)}, "LoRA"),
        (sd1_state | {"model.diffusion_model.joint_blocks.0.x": torch.ones(1)}, "transformer"),
        (sd1_state | {"conditioner.embedders.0.model.x": torch.ones(1)}, "refiner"),
    ):
        with pytest.raises(CheckpointError, match=said):
            read(spoiled, None, SMALL)


def test_pickles_and_damaged_files_are_refused_and_leave_nothing(sd1_file: Path, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x02}q\x00.")
    (tmp_path / "cut.safetensors").write_bytes(sd1_file.read_bytes()[:-10_000])
    (tmp_path / "note.txt").write_text("x")
    for name, said in (("model.ckpt", "pickle"), ("cut.safetensors", "truncated"), ("note.txt", r"not a \.safetensors")):
        with pytest.raises(CheckpointError, match=said) as caught:
            build(tmp_path / name, tmp_path / "new" / "out")
        assert name in caught.value.message
    assert not (tmp_path / "new").exists()
    with pytest.raises(CheckpointError, match="cannot read gone"):
        build(tmp_path / "gone.safetensors", tmp_path / "new" / "out")
    with pytest.raises(InputError, match="no prediction type"):
        build(sd1_file, tmp_path / "new" / "out", reading=Reading("velocity"))
    with pytest.raises(InputError, match="folder"):
        build(tmp_path, tmp_path / "new" / "out", reading=V)
    with pytest.raises(InputError, match="in place"):
        build(sd1_file, sd1_file)


def test_the_tokenizer_is_clips(sd1_file: Path, tmp_path: Path) -> None:
    """Token ids of the files equal transformers' tokenizer and open_clip's own, which the vocabulary comes from."""
    import open_clip
    from transformers import CLIPTokenizer

    from platemark.runtime.tokenizer import Tokenizer

    folder = unpack(sd1_file, tmp_path / "out") / "tokenizer"
    ours, theirs, own = Tokenizer.load(folder, 77), CLIPTokenizer.from_pretrained(folder), open_clip.get_tokenizer("ViT-B-32")
    for text in ("a red apple", "Zwölf Boxkämpfer's 42 (jagen) Viktor!", "naïve café — 漢字 🎉", "", "x" * 300, "it's  two\nlines"):
        ids = theirs(text, padding="max_length", truncation=True, max_length=77).input_ids
        assert ours.encode(text).ids.tolist() == ids
        words = own(text)[0].tolist()
        assert [i for i in ids if i < WORDS - 2] == [i for i in words if 0 < i < WORDS - 2]


def test_bytes_are_written_as_safetensors_reads_them(sd1_file: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    path = unpack(sd1_file, tmp_path / "out") / "vae" / "diffusion_pytorch_model.safetensors"
    with safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(read_header(path))
