"""Input pictures: what is kept bit for bit, how much is changed, and what a variation is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from platemark.errors import BundleError
from platemark.runtime import noise
from platemark.runtime.bundle import open_bundle
from platemark.runtime.engine import Array
from platemark.runtime.pipeline import Pipeline
from platemark.runtime.request import GenerationRequest
from platemark.runtime.schedulers import NAMES, make_scheduler
from platemark.runtime.sizes import RenderSize
from platemark.runtime.start import Canvas, first_evaluation, mixed

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "clip_sample": False}


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    waves = np.stack([np.sin(rows / 9 + seed), np.cos(columns / 7), np.sin((rows + columns) / 11)], axis=-1)
    return ((waves + 1) * 127).astype(np.uint8)


class Means:
    """An encoder of sorts: the mean colour of each cell, and zero."""

    inputs = outputs = ()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        n, c, h, w = inputs["sample"].shape
        cells = inputs["sample"].reshape(n, c, h // 8, 8, w // 8, 8).mean(axis=(3, 5))
        return {"latent_mean": np.concatenate([cells, np.zeros_like(cells[:, :1])], axis=1)}


@pytest.fixture
def painter(copy: Path, rewrite_manifest: Callable[..., None]) -> Pipeline:
    """The miniature as a model of any size, with an encoder."""
    rewrite_manifest(copy, output_size=[64, 64])
    plain = Pipeline.load(open_bundle(copy))
    engines: dict[str, Any] = {name: plain.engine(name) for name in ("text_encoder", "unet", "vae_decoder")} | {"vae_encoder": Means()}
    return Pipeline(plain.bundle, lambda path: pytest.fail(f"compiled {path}"), engines)


def request(pipeline: Pipeline, **settings: Any) -> GenerationRequest:
    return GenerationRequest.make(pipeline.bundle.manifest, prompt="a cat", **{"seed": 1, **settings})


@pytest.mark.parametrize("scheduler", [None, "euler-a", "heun"])
@pytest.mark.parametrize("size", [{}, {"height": 100, "width": 150}])
def test_what_the_mask_leaves_comes_back_bit_for_bit(painter: Pipeline, scheduler: str | None, size: dict[str, int]) -> None:
    image, mask = picture(90, 130), np.zeros((90, 130), np.uint8)
    mask[20:60, 30:77] = 255
    output = painter.generate(request(painter, image=image, mask_image=mask, scheduler=scheduler, **size))
    made = request(painter, image=image, mask_image=mask, **size)
    canvas = Canvas.of(image, mask, (made.height, made.width), RenderSize(128, 192, resampled=False), 8)
    assert canvas.paint is not None
    assert output.images.shape == (1, made.height, made.width, 3)
    assert np.array_equal(output.images[0][~canvas.paint], canvas.delivered[~canvas.paint])
    assert not np.array_equal(output.images[0][canvas.paint], canvas.delivered[canvas.paint])
    if not size:
        assert np.array_equal(canvas.delivered, image)
        assert np.array_equal(canvas.paint, mask == 255)


def test_more_strength_is_more_change(painter: Pipeline) -> None:
    image = picture(64, 64)

    def far(strength: float) -> float:
        one = painter.generate(request(painter, image=image, strength=strength, num_inference_steps=20)).arrays[0]
        none = painter._codec.decode(painter._codec.encode(image), "the input")
        return float(np.abs(one - none).mean())

    assert far(0.1) < far(0.5) < far(1.0)


def test_one_step_of_any_strength_is_one_step(painter: Pipeline) -> None:
    output = painter.generate(request(painter, image=picture(64, 64), strength=0.8, num_inference_steps=1))
    assert output.images.shape == (1, 64, 64, 3)
    painter.generate(request(painter, image=picture(64, 64), strength=0.0, num_inference_steps=4))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_begins_with_the_first_evaluation_of_a_step(name: str) -> None:
    stepper = make_scheduler(name, CONFIG).plan(10, lambda: np.zeros(1, np.float32))
    per_step = len(stepper.timesteps) // 10 + (name == "heun" or name.startswith("dpm++sde"))
    again = int(name == "pndm")  # its first step is taken twice
    assert first_evaluation(stepper, 10, 1.0) == 0
    assert first_evaluation(stepper, 10, 0.3) == 7 * per_step + again
    assert first_evaluation(stepper, 10, 0.0) == 9 * per_step + again < len(stepper.timesteps)


def test_another_aspect_is_cut_in_the_middle(painter: Pipeline) -> None:
    output = painter.generate(request(painter, image=picture(64, 200), height=64, width=64))
    assert output.images.shape == (1, 64, 64, 3)
    canvas = Canvas.of(picture(64, 200), None, (64, 64), RenderSize(64, 64, resampled=False), 8)
    assert np.array_equal(canvas.delivered, picture(64, 200)[:, 68:132])


def test_a_padded_canvas_is_delivered_as_it_was() -> None:
    size = RenderSize(128, 128, resampled=False)
    canvas = Canvas.of(picture(100, 70), None, (100, 70), size, 8)
    assert canvas.rendered.shape == (128, 128, 3)
    assert np.array_equal(size.deliver(canvas.rendered, 100, 70), canvas.delivered)


def test_a_cell_is_painted_where_any_of_its_pixels_is() -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[9, 9] = 255
    canvas = Canvas.of(picture(64, 64), mask, (64, 64), RenderSize(64, 64, resampled=False), 8)
    assert canvas.cells is not None
    assert canvas.cells.sum() == 1
    assert canvas.cells[1, 1]


def test_a_bundle_without_an_encoder_says_so(miniature: Path) -> None:
    pipeline = Pipeline.load(open_bundle(miniature))
    with pytest.raises(BundleError, match="vae_encoder"):
        pipeline.generate(request(pipeline, image=picture(64, 64)))


def test_picture_k_of_an_image_request_is_its_seeds_own(painter: Pipeline) -> None:
    image = picture(64, 64)
    both = painter.generate(request(painter, image=image, n=3, scheduler="euler-a"))
    alone = painter.generate(request(painter, image=image, seed=3, scheduler="euler-a"))
    assert np.abs(both.arrays[2] - alone.arrays[0]).max() < 1e-4


def test_a_variation_goes_from_one_seed_to_the_other(painter: Pipeline) -> None:
    def drawn(**settings: Any) -> np.ndarray:
        return painter.generate(request(painter, **settings)).arrays[0]

    assert np.array_equal(drawn(variation_seed=9), drawn())
    assert np.allclose(drawn(variation_seed=9, variation_strength=1.0), drawn(seed=9), atol=1e-5)
    near, far = (np.abs(drawn(variation_seed=9, variation_strength=share) - drawn()).mean() for share in (0.1, 0.6))
    assert 0 < near < far


def test_a_mixture_of_noises_is_noise() -> None:
    one, other = noise.randn(1, (1, 4, 64, 64)), noise.randn(2, (1, 4, 64, 64))
    for share in (0.0, 0.25, 0.5, 1.0):
        assert abs(float(mixed(one, other, share).std()) - 1) < 0.02
    assert np.array_equal(mixed(one, one, 0.3), one)
