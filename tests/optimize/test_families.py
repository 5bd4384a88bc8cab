"""Every family end to end: a tiny random checkpoint, built in float32, equals diffusers' own pipeline for whatever is asked of it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from platemark.errors import CheckpointError, InputError, PolicyBlocked  # noqa: E402
from platemark.optimize.build import build  # noqa: E402
from platemark.optimize.checkpoint import Added, Checkpoint, open_checkpoint  # noqa: E402
from platemark.optimize.modules import load_part  # noqa: E402
from platemark.optimize.parity import psnr  # noqa: E402
from platemark.optimize.references import render  # noqa: E402
from platemark.press import load  # noqa: E402
from platemark.provenance.watermark.inversion import Inverter  # noqa: E402
from platemark.runtime.batcher import Batcher  # noqa: E402
from platemark.runtime.bundle import open_bundle  # noqa: E402
from platemark.runtime.codec import Codec  # noqa: E402
from platemark.runtime.launch import launch  # noqa: E402
from platemark.runtime.pipeline import Pipeline  # noqa: E402
from platemark.runtime.request import GenerationRequest  # noqa: E402
from platemark.runtime.schedulers import make_scheduler  # noqa: E402
from platemark.runtime.sizes import render_size  # noqa: E402
from tests.optimize import families  # noqa: E402
from tests.optimize.conftest import write_tokenizer  # noqa: E402

PICTURE = np.random.default_rng(1).integers(0, 256, (96, 64, 3), dtype=np.uint8)
MASK = np.zeros((96, 64), np.uint8)
MASK[16:64, 8:40] = 255  # whole latent cells of two pixels


@dataclass(frozen=True)
class Built:
    """A bundle, and the checkpoint and torch networks that it was made from."""

    pipeline: Pipeline
    checkpoint: Checkpoint
    nets: dict[str, Any]

    def psnr(self, **settings: Any) -> float:
        """Of what the bundle renders, against diffusers' picture, in dB."""
        made = GenerationRequest.make(self.pipeline.bundle.manifest, **{"prompt": "a red apple", "seed": 5, **settings})
        theirs = render(self.checkpoint, self.nets, made)
        assert theirs.std() > 0.01
        return psnr(self.pipeline.generate(made).arrays[0], theirs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="module")
def words(folder: Path) -> int:
    return write_tokenizer(folder / "words")


def made(folder: Path, root: Path, added: Added | None = None) -> Built:
    build(root, folder / f"{root.name}-bundle", added=added)
    checkpoint = open_checkpoint(root, added)
    nets = {name: load_part(part) for name, part in checkpoint.parts.items()}
    return Built(Pipeline.load(open_bundle(folder / f"{root.name}-bundle")), checkpoint, nets)


@pytest.fixture(scope="module")
def sd2(folder: Path, words: int) -> Built:
    return made(folder, families.sd2(folder / "sd2", folder / "words", words))


@pytest.fixture(scope="module")
def sdxl(folder: Path, words: int) -> Built:
    control = families.controlnet(folder / "control", 40, transformer_layers_per_block=[1, 2], use_linear_projection=True, **families.XL)
    return made(folder, families.sdxl(folder / "sdxl", folder / "words", words), Added(controlnet=control))


@pytest.fixture(scope="module")
def inpainting(folder: Path, words: int) -> Built:
    """With a tiny VAE."""
    root = families.sdxl(folder / "inpainting", folder / "words", words, in_channels=9)
    return made(folder, root, Added(tiny_vae=families.tiny_vae(folder / "tiny")))


@pytest.fixture(scope="module")
def lcm(folder: Path, words: int) -> Built:
    return made(folder, families.lcm(folder / "lcm", folder / "words", words))


OBLONG = {"height": 96, "width": 64, "num_inference_steps": 3}
GUIDED = {"guidance_scale": 4.0, "negative_prompt": "the pale one", **OBLONG}
PLAIN = {"guidance_scale": 0.0, **OBLONG}


@pytest.mark.parametrize(
    "settings", [GUIDED, PLAIN, {"guidance_scale": 3.0}, {**PLAIN, "num_inference_steps": 1}, {**GUIDED, "scheduler": "ddim"}]
)
def test_sd2_and_turbo(sd2: Built, settings: dict[str, Any]) -> None:
    assert sd2.pipeline.bundle.manifest.family == "sd"
    assert sd2.psnr(**settings) >= 60


@pytest.mark.parametrize(
    "settings",
    [GUIDED, PLAIN, {**GUIDED, "negative_prompt": ""}, {**PLAIN, "scheduler": "euler-a", "num_inference_steps": 1},
     {**GUIDED, "image": PICTURE, "strength": 0.7}, {**GUIDED, "image": PICTURE, "mask_image": MASK},
     {**GUIDED, "control_image": PICTURE}, {**PLAIN, "control_image": PICTURE, "control_scale": 0.4}],
)  # fmt: skip
def test_sdxl(sdxl: Built, settings: dict[str, Any]) -> None:
    assert sdxl.pipeline.bundle.manifest.family == "sdxl"
    assert sdxl.psnr(**settings) >= 60


@pytest.mark.parametrize(
    "settings",
    [{**GUIDED, "image": PICTURE, "mask_image": MASK}, {**PLAIN, "image": PICTURE, "mask_image": MASK, "strength": 0.6}, GUIDED,
     {**GUIDED, "image": PICTURE, "strength": 0.7}],
)  # fmt: skip
def test_inpainting_networks_and_a_tiny_vae(inpainting: Built, settings: dict[str, Any]) -> None:
    assert inpainting.pipeline.bundle.manifest.conditioning.inpainting
    assert inpainting.pipeline.bundle.manifest.scaling_factor == 1.0
    assert inpainting.psnr(**settings) >= 60


@pytest.mark.parametrize("scale", [1.0, 8.5])
def test_lcm(lcm: Built, scale: float) -> None:
    assert (lcm.pipeline.bundle.manifest.default_steps, lcm.pipeline.bundle.manifest.default_guidance) == (4, 8.5)
    assert lcm.psnr(**OBLONG, guidance_scale=scale) >= 60


def test_a_negative_prompt_that_has_no_place_is_said(lcm: Built) -> None:
    made = GenerationRequest.make(lcm.pipeline.bundle.manifest, prompt="red", negative_prompt="apple", seed=1, **OBLONG)
    assert lcm.pipeline.generate(made).notes == ("the negative prompt was not used: this model's guidance takes none",)


def test_a_long_weighted_prompt_reaches_both_encoders(sdxl: Built) -> None:
    """Nothing is cut, and one chunk, two chunks and a weight each make another picture."""
    manifest = sdxl.pipeline.bundle.manifest
    made = [GenerationRequest.make(manifest, prompt=prompt, seed=1, **PLAIN) for prompt in ("red " * 20, "red " * 40, "(red:1.4) apple")]
    arrays = [sdxl.pipeline.generate(one) for one in made]
    assert not any(one.truncated for one in arrays)
    assert len({one.arrays.tobytes() for one in arrays}) == 3


def test_control_weighs_and_its_absence_is_no_control(sdxl: Built) -> None:
    manifest = sdxl.pipeline.bundle.manifest
    plain, none, some = (
        sdxl.pipeline.generate(GenerationRequest.make(manifest, prompt="red", seed=1, **PLAIN, **given)).arrays
        for given in ({}, {"control_image": PICTURE, "control_scale": 0.0}, {"control_image": PICTURE})
    )
    assert psnr(plain, none) >= 90
    assert psnr(plain, some) < 60


def test_a_batcher_takes_pictures_with_and_without_control(sdxl: Built) -> None:
    pipeline, manifest = sdxl.pipeline, sdxl.pipeline.bundle.manifest
    size = render_size(manifest, 4, 96, 64)
    control = {"control_image": PICTURE}
    wanted: list[dict[str, Any]] = [{**GUIDED}, {**PLAIN, **control}, {**GUIDED, **control}]
    requests = [GenerationRequest.make(manifest, prompt="a red apple", seed=seed, **settings) for seed, settings in enumerate(wanted)]
    shape, flights = (1, 4, 48, 32), list[Any]()
    for made in requests:
        conditions, _ = pipeline._conditioner.rows(made, size)
        scheduler = make_scheduler(made.scheduler, pipeline.scheduler_config)
        flights.append(launch(made, scheduler, shape, pipeline._scene(made, size, conditions, {}))[0])
    with Batcher(pipeline.denoiser(), 8) as batcher, ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda flight: batcher.fly([flight]), flights))
    for made, flight in zip(requests, flights, strict=True):
        alone = pipeline.generate(made).arrays[0]
        together = Codec(manifest, pipeline.engine).decode(flight.latents, "it")
        assert psnr(together, alone) >= 90


def test_a_bundle_without_a_controlnet_says_so(sd2: Built) -> None:
    with pytest.raises(InputError, match="no ControlNet"):
        GenerationRequest.make(sd2.pipeline.bundle.manifest, prompt="red", seed=1, control_image=PICTURE)


def test_marked_noise_is_read_back_from_any_family(inpainting: Built) -> None:
    """The inverter asks the pipeline for its network, whatever that reads."""
    guesses = Inverter(inpainting.pipeline).guesses(PICTURE)
    assert all(np.isfinite(guess).all() for guess in guesses)


def test_weights_of_another_shape_are_named(folder: Path, words: int) -> None:
    root = families.sdxl(folder / "spoiled", folder / "words", words)
    config = json.loads((root / "text_encoder_2" / "config.json").read_text())
    (root / "text_encoder_2" / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(CheckpointError, match=r"text_encoder_2: tensor .*mlp.* has shape"):
        load_part(open_checkpoint(root).parts["text_encoder_2"])


def test_the_gate_looks_at_the_picture_that_controls(sdxl: Built, tmp_path: Path) -> None:
    from skimage import data

    press = load(sdxl.pipeline.bundle.root, policy="research", home=tmp_path)
    portrait = np.ascontiguousarray(data.astronaut()[:256, 96:352])
    with pytest.raises(PolicyBlocked) as caught:
        press.generate("a cat", control_image=portrait, seed=1, **PLAIN)
    assert caught.value.decision.stage == "input_image"
