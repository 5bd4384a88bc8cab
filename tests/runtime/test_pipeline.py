"""The whole road from a prompt to arrays, on a miniature bundle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from platemark.errors import BundleError, EngineError, InputError, RenderError
from platemark.runtime.backends.onnxruntime import compile_graph
from platemark.runtime.bundle import open_bundle
from platemark.runtime.denoise import Step
from platemark.runtime.engine import Engine
from platemark.runtime.noise import randn
from platemark.runtime.pipeline import Pipeline
from platemark.runtime.request import GenerationRequest
from platemark.runtime.resize import fit
from platemark.runtime.schedulers import NAMES, make_scheduler
from platemark.runtime.sizes import MAX_BATCH


@pytest.fixture(scope="module")
def pipeline(miniature: Path) -> Pipeline:
    return Pipeline.load(open_bundle(miniature))


def request(pipeline: Pipeline, prompt: str = "a red apple", **settings: Any) -> GenerationRequest:
    return GenerationRequest.make(pipeline.bundle.manifest, prompt=prompt, **{"seed": 1, **settings})


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a - b).astype(np.float64) ** 2) + 1e-12))


def test_a_picture_comes_out(pipeline: Pipeline) -> None:
    output = pipeline.generate(request(pipeline))
    assert output.images.shape == (1, 96, 96, 3)
    assert output.images.dtype == np.uint8
    assert output.arrays.shape == (1, 64, 64, 3)
    assert output.arrays.dtype == np.float32
    assert output.arrays.min() >= 0
    assert output.arrays.max() <= 1
    assert output.resampled_from == (64, 64)
    assert output.flat == (False,)
    assert set(output.timings) == {"text_encoder", "denoise", "vae_decoder", "resize"}
    assert np.array_equal(output.images[0], fit(np.round(output.arrays[0] * 255).astype(np.uint8), 96, 96))


def test_native_size_is_not_resampled(pipeline: Pipeline) -> None:
    output = pipeline.generate(request(pipeline, height=64, width=64))
    assert output.resampled_from is None
    assert output.images.shape == (1, 64, 64, 3)


def test_aspect_is_reached_by_cutting(pipeline: Pipeline) -> None:
    output = pipeline.generate(request(pipeline, height=64, width=200))
    assert output.images.shape == (1, 64, 200, 3)
    assert output.resampled_from == (64, 64)


def by_hand(root: Path, prompt_ids: np.ndarray, negative_ids: np.ndarray, seed: int, guidance: float, steps: int) -> np.ndarray:
    """The reference loop, written out for one picture with DDIM, one network call a prompt."""
    text, unet, vae = (compile_graph(root / name / "model.onnx") for name in ("text_encoder", "unet", "vae"))
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "clip_sample": False}
    stepper = make_scheduler("ddim", config).plan(steps)
    hidden = [text.run({"input_ids": ids[np.newaxis]})["last_hidden_state"] for ids in (negative_ids, prompt_ids)]
    latents = randn(seed, (1, 4, 8, 8))
    for i, t in enumerate(stepper.timesteps):
        without, with_prompt = (
            unet.run({"sample": latents, "timestep": np.array([t], np.float32), "encoder_hidden_states": one})["out_sample"]
            for one in hidden
        )
        latents = stepper.step(without + np.float32(guidance) * (with_prompt - without), i, latents)
    decoded = vae.run({"latent_sample": latents / np.float32(0.5)})["sample"][0]
    return np.clip(decoded.transpose(1, 2, 0) / 2 + 0.5, 0, 1)


def test_it_is_the_loop_written_out(pipeline: Pipeline, miniature: Path) -> None:
    from platemark.runtime.tokenizer import Tokenizer

    prompt, negative = Tokenizer.load(miniature / "tokenizer", 12).encode_batch(["a red apple", "the dog"])
    expected = by_hand(miniature, prompt, negative, 7, 5.0, 6)
    output = pipeline.generate(request(pipeline, seed=7, negative_prompt="the dog", guidance_scale=5.0, num_inference_steps=6))
    assert psnr(output.arrays[0], expected) > 90


def test_prompt_negative_prompt_guidance_and_seed_all_count(pipeline: Pipeline) -> None:
    base = pipeline.generate(request(pipeline)).arrays
    for change in ({"prompt": "the dog"}, {"negative_prompt": "red"}, {"guidance_scale": 8.0}, {"seed": 2}, {"num_inference_steps": 9}):
        assert not np.array_equal(base, pipeline.generate(request(pipeline, **change)).arrays), change


@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_runs(pipeline: Pipeline, name: str) -> None:
    output = pipeline.generate(request(pipeline, scheduler=name, num_inference_steps=8))
    assert np.isfinite(output.arrays).all()


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_without_guidance_the_network_sees_one_row_an_image(pipeline: Pipeline, miniature: Path, scale: float) -> None:
    watched = Watched(pipeline.engine("unet"))
    own = Pipeline(open_bundle(miniature), compile_graph, {"unet": watched})
    own.generate(request(own, n=3, guidance_scale=scale))
    assert set(watched.rows) == {3}
    own.generate(request(own, n=3, guidance_scale=1.5))
    assert watched.rows[-1] == 6


class Watched:
    """An engine that remembers how many rows it saw, and answers with `change` of the real answer."""

    def __init__(self, engine: Any, change: Callable[[np.ndarray], np.ndarray] = lambda value: value) -> None:
        self.engine, self.change = engine, change
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self.rows: list[int] = []

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.rows.append(len(next(iter(inputs.values()))))
        return {name: self.change(value) for name, value in self.engine.run(inputs).items()}


@pytest.mark.parametrize("scheduler", NAMES)
def test_image_k_of_a_batch_is_the_single_image_of_its_seed(pipeline: Pipeline, scheduler: str) -> None:
    n = MAX_BATCH + 2
    batch = pipeline.generate(request(pipeline, n=n, seed=2**64 - 3, scheduler=scheduler))
    assert batch.seeds == tuple((2**64 - 3 + k) % 2**64 for k in range(n))
    for k in (0, 2, 3, MAX_BATCH, n - 1):
        single = pipeline.generate(request(pipeline, seed=batch.seeds[k], scheduler=scheduler))
        assert psnr(batch.arrays[k], single.arrays[0]) >= 60


def test_the_same_request_gives_the_same_bytes(pipeline: Pipeline) -> None:
    first, second = (pipeline.generate(request(pipeline, n=3)).images for _ in range(2))
    assert np.array_equal(first, second)


def test_sixteen_threads_give_the_images_of_one(miniature: Path) -> None:
    shared = Pipeline.load(open_bundle(miniature))
    jobs = [
        {"prompt": ("a cat", "the red dog")[k % 2], "seed": k, "scheduler": NAMES[k % 3], "num_inference_steps": 3 + k % 4}
        for k in range(32)
    ]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda job: shared.generate(request(shared, **job)).images, jobs))
    for job, images in zip(jobs, together, strict=True):
        assert np.array_equal(images, shared.generate(request(shared, **job)).images)


def test_engines_are_compiled_once_though_sixteen_ask(miniature: Path) -> None:
    compiled: list[Path] = []

    def compile_and_count(path: Path) -> Any:
        compiled.append(path)
        return compile_graph(path)

    shared = Pipeline(open_bundle(miniature), compile_and_count)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: shared.warm_up(), range(16)))
    assert sorted(path.parent.name for path in compiled) == ["text_encoder", "unet", "vae"]


def test_latents_take_the_place_of_noise(pipeline: Pipeline) -> None:
    given = np.stack([randn(seed, (4, 8, 8)) for seed in (5, 6)])
    output = pipeline.generate(request(pipeline, n=2, seed=99), latents=given)
    expected = pipeline.generate(request(pipeline, n=2, seed=5))
    assert np.array_equal(output.images, expected.images)


@pytest.mark.parametrize(
    "latents",
    [
        np.zeros((1, 4, 8, 9), np.float32),
        np.zeros((2, 4, 8, 8), np.float32),
        np.zeros((1, 4, 8, 8)),
        np.full((1, 4, 8, 8), np.nan, np.float32),
    ],
)
def test_latents_that_do_not_fit_are_refused(pipeline: Pipeline, latents: np.ndarray) -> None:
    with pytest.raises(InputError, match="latents"):
        pipeline.generate(request(pipeline), latents=latents)


def test_every_step_is_heard_once(pipeline: Pipeline) -> None:
    heard: list[tuple[int, int]] = []
    pipeline.generate(request(pipeline, n=MAX_BATCH + 1, num_inference_steps=3), on_step=lambda at: heard.append((at.step, at.total)))
    assert heard == [(k, 6) for k in range(1, 7)]


def test_a_callback_that_raises_stops_the_run(pipeline: Pipeline) -> None:
    watched = Watched(pipeline.engine("unet"))
    own = Pipeline(pipeline.bundle, compile_graph, {"unet": watched})

    def stop(at: Step) -> None:
        if at.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        own.generate(request(own, num_inference_steps=20), on_step=stop)
    assert len(watched.rows) == 2


class OneWindow:
    """A UNet engine compiled for one window of text, as engines with a fixed shape profile are."""

    def __init__(self, engine: Engine, tokens: int) -> None:
        self.outputs, self.run = engine.outputs, engine.run
        self.inputs = tuple(replace(spec, shape=(spec.shape[0], tokens, *spec.shape[2:])) if "hidden" in spec.name else spec
                            for spec in engine.inputs)  # fmt: skip


@pytest.fixture
def narrow(pipeline: Pipeline) -> Pipeline:
    engines: dict[str, Engine] = {"unet": OneWindow(pipeline.engine("unet"), pipeline.bundle.manifest.max_tokens)}
    return Pipeline(pipeline.bundle, compile_graph, engines)


def test_a_long_prompt_is_used_whole(pipeline: Pipeline, narrow: Pipeline) -> None:
    long = "the red cat and " * 10 + "a Zebra"
    output = pipeline.generate(request(pipeline, prompt=long, negative_prompt="dog"))
    assert output.truncated == ()
    shorter = pipeline.generate(request(pipeline, prompt="the red cat and " * 10 + "a dog", negative_prompt="dog"))
    assert not np.array_equal(output.arrays, shorter.arrays)  # its last word counts
    assert not np.array_equal(output.arrays, narrow.generate(request(narrow, prompt=long, negative_prompt="dog")).arrays)


def test_what_the_prompt_lost_is_said(narrow: Pipeline) -> None:
    output = narrow.generate(request(narrow, prompt="the red cat and " * 10 + "a Zebra", negative_prompt="dog"))
    assert [cut.field for cut in output.truncated] == ["prompt"]
    assert output.truncated[0].text.endswith("a Zebra")
    assert output.truncated[0].tokens > 10
    assert narrow.generate(request(narrow)).truncated == ()


def test_weights_move_the_picture_and_one_changes_nothing(pipeline: Pipeline) -> None:
    def drawn(prompt: str) -> np.ndarray:
        return pipeline.generate(request(pipeline, prompt=prompt)).arrays

    assert np.array_equal(drawn("a (red:1.0) apple"), drawn("a red apple"))
    assert not np.array_equal(drawn("a (red:1.5) apple"), drawn("a red apple"))
    assert not np.array_equal(drawn("a [red] apple"), drawn("a (red) apple"))
    with pytest.raises(InputError, match="weight"):
        drawn("a (red:11) apple")


def test_notes_say_what_was_not_used(narrow: Pipeline) -> None:
    assert narrow.generate(request(narrow, negative_prompt="dog")).notes == ()
    assert narrow.generate(request(narrow, guidance_scale=1.0, negative_prompt=" ")).notes == ()
    output = narrow.generate(request(narrow, prompt="cat " * 11, negative_prompt="dog " * 13))
    assert output.notes == (
        "the last 3 tokens of the negative prompt did not fit the text encoder and were not used",
        "the last token of the prompt did not fit the text encoder and was not used",
    )


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_negative_prompt_without_guidance_is_said_to_be_unused(narrow: Pipeline, scale: float) -> None:
    output = narrow.generate(request(narrow, prompt="cat " * 12, guidance_scale=scale, negative_prompt="dog " * 13))
    assert output.notes == (
        "the last 2 tokens of the prompt did not fit the text encoder and were not used",
        "the negative prompt was not used: it needs a guidance scale above 1",
    )


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae_decoder"])
def test_nan_from_any_network_is_a_render_error(pipeline: Pipeline, component: str) -> None:
    def poison(value: np.ndarray) -> np.ndarray:
        bad = value.copy()
        bad.flat[3] = np.nan
        return bad

    own = Pipeline(pipeline.bundle, compile_graph, {component: Watched(pipeline.engine(component), poison)})
    with pytest.raises(RenderError, match="seed 1"):
        own.generate(request(own))


def test_an_overflow_is_a_render_error_and_no_warning(pipeline: Pipeline) -> None:
    own = Pipeline(pipeline.bundle, compile_graph, {"unet": Watched(pipeline.engine("unet"), lambda value: value * np.float32(1e38))})
    with pytest.raises(RenderError):
        own.generate(request(own))


def test_flat_pictures_are_marked(pipeline: Pipeline) -> None:
    own = Pipeline(pipeline.bundle, compile_graph, {"vae_decoder": Watched(pipeline.engine("vae_decoder"), np.zeros_like)})
    assert own.generate(request(own)).flat == (True,)


@pytest.mark.parametrize("name", ["magic", "torch"])
def test_backends_that_compile_nothing_are_refused(miniature: Path, name: str) -> None:
    with pytest.raises(InputError, match=name):
        Pipeline.load(open_bundle(miniature), name)


def test_impossible_steps_are_refused_before_any_work(pipeline: Pipeline) -> None:
    watched = Watched(pipeline.engine("text_encoder"))
    own = Pipeline(pipeline.bundle, compile_graph, {"text_encoder": watched})
    with pytest.raises(InputError, match="steps"):
        own.generate(request(own, num_inference_steps=1000))
    assert watched.rows == []


def rewritten(copy: Path, rewrite_manifest: Callable[..., None], name: str, text: str) -> Path:
    (copy / name).write_text(text)
    rewrite_manifest(copy)
    return copy


def test_the_checkpoints_own_unsupported_sampler_is_named(copy: Path, rewrite_manifest: Callable[..., None]) -> None:
    config = json.dumps({"_class_name": "IPNDMScheduler", "beta_schedule": "scaled_linear"})
    own = Pipeline.load(open_bundle(rewritten(copy, rewrite_manifest, "scheduler/scheduler_config.json", config)))
    with pytest.raises(InputError, match="IPNDMScheduler"):
        own.generate(request(own))
    assert own.generate(request(own, scheduler="ddim")).images.shape == (1, 96, 96, 3)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_damaged_scheduler_config_is_named(copy: Path, rewrite_manifest: Callable[..., None], text: str) -> None:
    bundle = open_bundle(rewritten(copy, rewrite_manifest, "scheduler/scheduler_config.json", text))
    with pytest.raises(BundleError, match="scheduler_config"):
        Pipeline.load(bundle)


def test_a_tokenizer_file_that_was_not_checked_is_refused(copy: Path) -> None:
    (copy / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        Pipeline.load(open_bundle(copy))


def test_a_bundle_without_a_needed_network_is_refused(copy: Path, rewrite_manifest: Callable[..., None]) -> None:
    manifest = json.loads((copy / "bundle.json").read_text())
    rewrite_manifest(copy, components={name: part for name, part in manifest["components"].items() if name != "vae_decoder"})
    with pytest.raises(BundleError, match="vae_decoder"):
        Pipeline.load(open_bundle(copy))


def test_a_graph_that_does_not_load_is_an_engine_error(copy: Path, rewrite_manifest: Callable[..., None]) -> None:
    (copy / "unet" / "model.onnx").write_bytes(b"nonsense" * 10)
    rewrite_manifest(copy)
    own = Pipeline.load(open_bundle(copy))
    with pytest.raises(EngineError, match=r"model\.onnx"):
        own.generate(request(own))
