"""What a picture under way looks like, and guidance at some noise levels alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from platemark.errors import BundleError, InputError
from platemark.models import embedded
from platemark.runtime import noise
from platemark.runtime.bundle import open_bundle
from platemark.runtime.denoise import Flight, Step, denoise
from platemark.runtime.manifest import LatentColours
from platemark.runtime.pipeline import Pipeline
from platemark.runtime.preview import ColourMap
from platemark.runtime.request import GenerationRequest
from platemark.runtime.schedulers import NAMES, make_scheduler

SHAPE = (1, 4, 6, 5)
CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "clip_sample": False}
GRAY = LatentColours(weights=[[0.1, 0.0, 0.0], [0.0, 0.1, 0.0], [0.0, 0.0, 0.1], [0.0, 0.0, 0.0]], bias=[0.5, 0.5, 0.5], r2=1.0)


class Knowing:
    """A network that knows the finished picture, and answers in the terms of the checkpoint's prediction type. `rows`: of each call."""

    inputs = outputs = ()

    def __init__(self, wanted: np.ndarray, kind: str, flight: list[Flight]) -> None:
        self.wanted, self.kind, self.flight, self.rows = wanted, kind, flight, list[int]()

    def run(self, inputs: Any) -> dict[str, np.ndarray]:
        taken = inputs["sample"]
        self.rows.append(len(taken))
        one = self.flight[0]
        ratio = min(one.stepper.noise_level(one.at), 1e6)
        alpha, sigma = 1 / np.hypot(1, ratio), ratio / np.hypot(1, ratio)
        epsilon = (taken - alpha * self.wanted) / sigma
        answer = {"epsilon": epsilon, "v_prediction": alpha * epsilon - sigma * self.wanted}
        return {"out_sample": answer[self.kind].astype(np.float32)}


def fly(name: str, kind: str, steps: int = 5, **more: Any) -> tuple[Knowing, np.ndarray, list[Step]]:
    generator = noise.Generator(3)
    stepper = make_scheduler(name, {**CONFIG, "prediction_type": kind}).plan(steps, lambda: generator.randn(SHAPE))
    wanted = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    hidden = {"encoder_hidden_states": np.zeros((2, 3, 8), np.float32)}
    start = generator.randn(SHAPE) * np.float32(stepper.init_noise_sigma)
    one = Flight(start, stepper, hidden, 3.0, colours=ColourMap(GRAY), **more)
    network, heard = Knowing(wanted, kind, [one]), list[Step]()
    denoise(network, [one], 1, heard.append)
    return network, wanted, heard


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", NAMES)
def test_a_preview_shows_what_the_network_takes_the_picture_to_be_from_the_first_step(name: str, kind: str) -> None:
    _, wanted, heard = fly(name, kind)
    expected = ColourMap(GRAY)(wanted)
    for step in heard:
        (preview,) = step.previews.values()
        assert preview.shape == (6, 5, 3)
        assert preview.dtype == np.uint8
        assert np.abs(preview.astype(int) - expected).max() <= 1, (step.step, name)


def test_steps_tell_number_and_time() -> None:
    _, _, heard = fly("ddim", "epsilon")
    assert [(one.step, one.total) for one in heard] == [(k, 5) for k in range(1, 6)]
    assert all(0 < one.ms <= one.elapsed_ms for one in heard)
    assert [one.elapsed_ms for one in heard] == sorted(one.elapsed_ms for one in heard)


def test_no_number_makes_a_preview_fail() -> None:
    latents = np.array([np.nan, np.inf, -np.inf, 1.0], np.float32).reshape(1, 4, 1, 1)
    assert ColourMap(GRAY)(latents).dtype == np.uint8


@pytest.fixture(scope="module")
def emoji() -> Pipeline:
    return Pipeline.load(open_bundle(embedded()), threads=1)


def test_previews_of_the_embedded_model_are_like_its_pictures(emoji: Pipeline) -> None:
    request = GenerationRequest.make(emoji.bundle.manifest, prompt="a red apple", seed=1, n=2, num_inference_steps=8)
    heard: list[Step] = []
    output = emoji.generate(request, on_step=heard.append, previews=True)
    assert sorted(heard[-1].previews) == [0, 1]
    for k, array in enumerate(output.arrays):
        small = array.reshape(16, 8, 16, 8, 3).mean(axis=(1, 3)).ravel()
        for step in (heard[1], heard[-1]):
            assert np.corrcoef(step.previews[k].ravel(), small)[0, 1] > 0.8


def test_who_asks_for_none_pays_for_none(emoji: Pipeline) -> None:
    request = GenerationRequest.make(emoji.bundle.manifest, prompt="a red apple", seed=1, num_inference_steps=2)
    heard: list[Step] = []
    first = emoji.generate(request, on_step=heard.append)
    assert all(not step.previews for step in heard)
    assert np.array_equal(first.images, emoji.generate(request, on_step=heard.append, previews=True).images)


def test_a_bundle_without_colours_says_so(miniature: Path) -> None:
    pipeline = Pipeline.load(open_bundle(miniature))
    request = GenerationRequest.make(pipeline.bundle.manifest, prompt="a cat", seed=1)
    with pytest.raises(BundleError, match="colours"):
        pipeline.generate(request, previews=True)


def test_colours_of_another_number_of_channels_do_not_open(copy: Path, rewrite_manifest: Callable[..., None]) -> None:
    rewrite_manifest(copy, latent_colours=json.loads(GRAY.model_copy(update={"weights": GRAY.weights[:3]}).model_dump_json()))
    with pytest.raises(BundleError, match="three colours"):
        open_bundle(copy)


def test_guidance_inside_an_interval_of_noise_levels_alone() -> None:
    levels = [make_scheduler("euler", CONFIG).plan(5).noise_level(i) for i in range(5)]
    network, _, _ = fly("euler", "epsilon", interval=(levels[3], levels[1]))
    assert network.rows == [1, 2, 2, 1, 1]  # the lower end is left out, the upper one is in


def test_an_interval_of_all_levels_changes_nothing_and_one_of_none_is_no_guidance(emoji: Pipeline) -> None:
    def render(**settings: Any) -> np.ndarray:
        made = GenerationRequest.make(emoji.bundle.manifest, prompt="a red apple", seed=1, num_inference_steps=4, **settings)
        return emoji.generate(made).arrays

    whole = render(guidance_scale=3.0)
    assert np.array_equal(whole, render(guidance_scale=3.0, guidance_interval=(0, 1e6)))
    assert np.array_equal(render(guidance_scale=1.0), render(guidance_scale=3.0, guidance_interval=(0, 1e-6)))
    part = render(guidance_scale=3.0, guidance_interval=(0.5, 5.0))
    assert not np.array_equal(part, whole)


@pytest.mark.parametrize("interval", [(1, 1), (2, 1), (-1, 2), ("a", 2), (1,), 3, (0, float("nan")), (0, 1e7)])
def test_intervals_that_hold_nothing_are_refused(miniature: Path, interval: Any) -> None:
    with pytest.raises(InputError, match="guidance_interval"):
        GenerationRequest.make(open_bundle(miniature).manifest, prompt="a cat", guidance_interval=interval)
