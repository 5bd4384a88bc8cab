"""Requests are whole and in range, or refused by name before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from platemark.errors import InputError
from platemark.runtime.bundle import open_bundle
from platemark.runtime.manifest import Manifest
from platemark.runtime.request import GenerationRequest


@pytest.fixture(scope="module")
def manifest(miniature: Path) -> Manifest:
    return open_bundle(miniature).manifest


def test_defaults_are_the_bundles(manifest: Manifest) -> None:
    request = GenerationRequest.make(manifest, prompt="a cat", seed=5)
    assert (request.num_inference_steps, request.guidance_scale) == (4, 3.0)
    assert (request.height, request.width) == (96, 96)
    assert (request.seed, request.n, request.scheduler, request.negative_prompt) == (5, 1, None, "")


def test_what_is_given_wins_and_none_is_not_given(manifest: Manifest) -> None:
    request = GenerationRequest.make(manifest, prompt="a cat", width=200, height=None, scheduler="euler", guidance_scale=0)
    assert (request.height, request.width, request.scheduler, request.guidance_scale) == (96, 200, "euler", 0.0)


@pytest.mark.parametrize("seed", [None, -1, np.int64(-1)])
def test_seeds_are_drawn(manifest: Manifest, seed: Any) -> None:
    first, second = (GenerationRequest.make(manifest, prompt="a cat", seed=seed).seed for _ in range(2))
    assert first != second
    assert 0 <= first < 2**64


@pytest.mark.parametrize("seed", [0, 2**32, 2**63, 2**64 - 1, np.uint64(2**64 - 1)])
def test_seeds_are_kept(manifest: Manifest, seed: Any) -> None:
    kept = GenerationRequest.make(manifest, prompt="a cat", seed=seed).seed
    assert kept == int(seed)
    assert type(kept) is int


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""), ("prompt", " \n\t"), ("prompt", "x" * 10_001), ("prompt", None), ("prompt", b"cat"), ("prompt", "\ud800"),
        ("negative_prompt", "x" * 100_000), ("negative_prompt", 3),
        ("height", 0), ("height", -1), ("height", 7), ("height", 63), ("height", 4097), ("height", 100_000), ("height", 512.0),
        ("width", "512"), ("width", True), ("width", float("nan")),
        ("guidance_scale", float("nan")), ("guidance_scale", float("inf")), ("guidance_scale", -0.5), ("guidance_scale", 51),
        ("guidance_scale", "7"), ("guidance_scale", True), ("guidance_scale", 10**400), ("guidance_scale", [7]),
        ("num_inference_steps", 0), ("num_inference_steps", 1001), ("num_inference_steps", 2.5), ("num_inference_steps", -3),
        ("seed", -2), ("seed", 2**64), ("seed", 1.0), ("seed", "1"), ("seed", True), ("seed", -1.0),
        ("n", 0), ("n", 65), ("n", None),
        ("scheduler", "magic"), ("scheduler", ""), ("scheduler", 3),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(manifest: Manifest, field: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        GenerationRequest.make(manifest, **{"prompt": "a cat", field: value})
    assert field.split("_")[0] in caught.value.message
    assert caught.value.remedy
    assert len(str(caught.value)) < 300


def test_the_pixels_of_one_request_are_bounded(manifest: Manifest) -> None:
    for n, height, width in ((8, 4096, 4096), (64, 1024, 2048), (1, 4096, 4096)):
        assert GenerationRequest.make(manifest, prompt="a cat", n=n, height=height, width=width).n == n
    for n, height, width in ((64, 4096, 4096), (9, 4096, 4096), (64, 1024, 2049)):
        with pytest.raises(InputError, match=f"{n} of {height} x {width}") as caught:
            GenerationRequest.make(manifest, prompt="a cat", n=n, height=height, width=width)
        assert caught.value.remedy == "ask for fewer pictures or a smaller size"


def test_unknown_settings_are_refused(manifest: Manifest) -> None:
    with pytest.raises(InputError, match="eta_noise"):
        GenerationRequest.make(manifest, prompt="a cat", eta_noise=0.5)


def test_settings_are_text_without_prompts(manifest: Manifest) -> None:
    settings = GenerationRequest.make(manifest, prompt="secret cat", negative_prompt="hidden dog", seed=1).settings()
    assert settings == {"num_inference_steps": "4", "guidance_scale": "3", "height": "96", "width": "96", "scheduler": "checkpoint"}


def picture(height: int = 70, width: int = 90) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_an_input_picture_gives_its_size_and_a_mask_its_strength(manifest: Manifest) -> None:
    mask = np.full((70, 90), 255, np.uint8)
    made = GenerationRequest.make(manifest, prompt="a cat", image=picture())
    assert (made.height, made.width, made.operation, made.strength) == (70, 90, "img2img", 0.8)
    assert made.settings()["strength"] == "0.8"
    made = GenerationRequest.make(manifest, prompt="a cat", image=picture(), mask_image=mask, height=128)
    assert (made.height, made.width, made.operation, made.strength) == (128, 90, "inpaint", 1.0)
    plain = GenerationRequest.make(manifest, prompt="a cat")
    assert (plain.operation, plain.strength) == ("text2img", None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"strength": 0.5}, "without an image"),
        ({"mask_image": np.zeros((70, 90), np.uint8)}, "without an image"),
        ({"image": picture(), "strength": 1.5}, "strength"),
        ({"image": picture(), "strength": True}, "strength"),
        ({"image": picture().astype(np.float32)}, "uint8"),
        ({"image": picture()[..., 0]}, "uint8"),
        ({"image": picture(20, 90)}, "too small"),
        ({"image": picture(), "mask_image": np.zeros((70, 90), np.uint8)}, "nothing to paint"),
        ({"image": picture(), "mask_image": np.full((90, 70), 255, np.uint8)}, "size"),
        ({"image": picture(), "mask_image": np.ones((70, 90), bool)}, "uint8"),
        ({"variation_strength": 0.3}, "second seed"),
        ({"variation_seed": -2, "variation_strength": 0.3}, "variation_seed"),
        ({"variation_seed": 1, "variation_strength": 1.3}, "variation_strength"),
    ],
)
def test_what_does_not_go_together_is_refused(manifest: Manifest, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        GenerationRequest.make(manifest, prompt="a cat", **settings)
