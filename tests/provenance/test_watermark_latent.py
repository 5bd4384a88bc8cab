"""The mark in the initial noise: it changes no distribution, says its residue, and is read back through the embedded model."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from platemark.errors import InputError
from platemark.models import embedded
from platemark.provenance.watermark.inversion import Inverter, latent_shape
from platemark.provenance.watermark.key import WatermarkKey
from platemark.provenance.watermark.latent import LENGTH, noise, read_noise, residue_of
from platemark.runtime.bundle import open_bundle
from platemark.runtime.noise import randn
from platemark.runtime.pipeline import Pipeline
from platemark.runtime.request import GenerationRequest

KEY, OTHER = (WatermarkKey.from_secret(bytes([n]) * 32) for n in (11, 12))
SHAPE = (4, 16, 16)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load(open_bundle(embedded()))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, (1 << 42) - 1), st.integers(0, 2**64 - 1))
def test_every_content_id_is_read_from_its_noise(content_id: int, seed: int) -> None:
    found = read_noise([noise(seed, SHAPE, content_id, KEY)], [OTHER, KEY])
    assert (found.verdict, found.residue, found.key_id) == ("detected", content_id % 4096, KEY.key_id)


def test_only_signs_differ_from_the_seeds_own_noise() -> None:
    marked, plain = noise(7, SHAPE, 99, KEY), randn(7, SHAPE)
    assert marked.dtype == np.float32
    assert np.array_equal(np.abs(marked), np.abs(plain))
    assert 0.4 < float((np.sign(marked) == np.sign(plain)).mean()) < 0.6


def test_over_content_ids_the_noise_is_standard_normal_and_uncorrelated() -> None:
    drawn = np.stack([noise(seed, SHAPE, seed * 7, KEY) for seed in range(400)])
    values = np.sort(drawn.ravel())
    normal = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in values[::97]])
    steps = np.arange(values.size)[::97] / values.size
    assert float(np.abs(normal - steps).max()) < 4 / math.sqrt(values.size)  # Kolmogorov and Smirnov, far beyond 1e-6
    flat = drawn.reshape(400, -1)
    assert float(np.abs(flat.mean(axis=0)).max()) < 5 / math.sqrt(400), "no place has a sign of its own"
    other = np.corrcoef(flat)[np.triu_indices(400, 1)]
    assert float((np.abs(other) > 6 / math.sqrt(flat.shape[1])).mean()) < 1e-3, "a word and its opposite, one pair in 4095, are alike"


def test_equal_seeds_with_other_ids_give_other_noise_and_the_same_give_the_same() -> None:
    first, again, other = (noise(1, SHAPE, content_id, KEY) for content_id in (5, 5 + 4096, 8))
    assert np.array_equal(first, again)
    assert abs(float(np.corrcoef(first.ravel(), other.ravel())[0, 1])) < 0.2


@pytest.mark.parametrize("shape", [(4, 16, 16), (4, 24, 20), (4, 64, 64), (16, 32, 32)])
def test_it_is_read_through_much_noise_at_any_size(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(2)
    received = 0.4 * noise(3, shape, 1234, KEY) + rng.normal(0, 0.9, shape).astype(np.float32)
    found = read_noise([received.astype(np.float32)], [KEY])
    assert (found.verdict, found.residue) == ("detected", residue_of(1234))


def test_p_values_of_wrong_keys_keep_their_word() -> None:
    rng = np.random.default_rng(4)
    smooth = np.cumsum(rng.normal(size=SHAPE), axis=2).astype(np.float32)  # structured, as pictures are
    values = []
    for n in range(400):
        key = WatermarkKey.from_secret(n.to_bytes(32, "big"))
        values.append(read_noise([smooth if n % 2 else noise(n, SHAPE, n, KEY)], [key]).p_value)
    for bound in (0.5, 0.1, 0.02):
        assert np.mean(np.array(values) < bound) <= bound + 3 * math.sqrt(bound / 400)
    assert min(values) > 1e-6


def test_flat_latents_and_missing_things_are_said() -> None:
    assert read_noise([np.zeros(SHAPE, np.float32)], [KEY]).verdict == "not-detected"
    assert read_noise([np.zeros((4, 8, 8), np.float32)], [KEY]).p_value == 1.0
    with pytest.raises(InputError, match="too small"):
        noise(1, (4, 8, 8), 1, KEY)
    with pytest.raises(InputError, match="no watermark key"):
        read_noise([np.zeros(SHAPE, np.float32)], [])
    assert math.prod(SHAPE) == LENGTH


def test_a_picture_says_its_residue_after_jpeg_and_only_to_its_key(pipeline: Pipeline, tmp_path: Path) -> None:
    request = GenerationRequest.make(pipeline.bundle.manifest, prompt="blossom", seed=901)
    shape = latent_shape(pipeline.bundle, request.height, request.width)
    picture = pipeline.generate(request, latents=noise(901, shape, 5013, KEY)[None]).images[0]
    Image.fromarray(picture).save(tmp_path / "a.jpg", quality=50)
    with Image.open(tmp_path / "a.jpg") as opened:
        (guess,) = Inverter(pipeline).guesses(np.asarray(opened.convert("RGB")))
    assert guess.shape == SHAPE
    found = read_noise([guess], [OTHER, KEY])
    assert (found.verdict, found.residue, found.key_id) == ("detected", residue_of(5013), KEY.key_id)
    assert found.as_dict()["content_id_mod_4096"] == 5013 % 4096
    assert read_noise([guess], [OTHER]).verdict == "not-detected"


def test_a_plain_picture_of_the_model_holds_no_mark(pipeline: Pipeline) -> None:
    picture = pipeline.generate(GenerationRequest.make(pipeline.bundle.manifest, prompt="blossom", seed=901)).images[0]
    found = read_noise(Inverter(pipeline).guesses(picture), [KEY, OTHER])
    assert (found.verdict, found.residue) == ("not-detected", None)


def test_other_forms_of_picture_are_put_into_the_models_frame(pipeline: Pipeline) -> None:
    rng: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (96, 300, 3)).astype(np.uint8)
    (guess,) = Inverter(pipeline).guesses(rng)
    assert guess.shape == SHAPE
    assert np.isfinite(guess).all()
