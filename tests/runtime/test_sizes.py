"""What is rendered for a requested size, and that the picture has the size asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from platemark.errors import BundleError
from platemark.runtime.bundle import open_bundle
from platemark.runtime.pipeline import Pipeline
from platemark.runtime.request import GenerationRequest
from platemark.runtime.sizes import MAX_BATCH, batch_size, one_size_only, render_size, side_multiple


@pytest.fixture
def free(copy: Path, rewrite_manifest: Callable[..., None]) -> Pipeline:
    """The miniature as a model of any size: what it renders at its native size is what it delivers."""
    rewrite_manifest(copy, output_size=[64, 64])
    return Pipeline.load(open_bundle(copy))


def request(pipeline: Pipeline, height: int, width: int, n: int = 1) -> GenerationRequest:
    return GenerationRequest.make(pipeline.bundle.manifest, prompt="cat", seed=1, height=height, width=width, n=n)


def test_a_model_of_one_size_renders_that(miniature: Path) -> None:
    manifest = open_bundle(miniature).manifest
    assert one_size_only(manifest)
    size = render_size(manifest, 64, 520, 300)
    assert (size.height, size.width, size.resampled) == (64, 64, True)
    assert not render_size(manifest, 64, 64, 64).resampled


@pytest.mark.parametrize(("asked", "rendered"), [((64, 64), (64, 64)), ((64, 520), (64, 576)), ((65, 127), (128, 128))])
def test_any_other_model_renders_the_size_or_the_next_larger_one(free: Pipeline, asked: tuple[int, int], rendered: tuple[int, int]) -> None:
    size = render_size(free.bundle.manifest, 64, *asked)
    assert (size.height, size.width, size.resampled) == (*rendered, False)
    output = free.generate(request(free, *asked))
    assert output.images.shape == (1, *asked, 3)
    assert output.arrays.shape == (1, *rendered, 3)
    assert output.resampled_from is None


def test_the_cut_is_the_middle_of_what_was_rendered(free: Pipeline) -> None:
    output = free.generate(request(free, 100, 64))
    assert np.array_equal(output.images[0], np.round(output.arrays[0] * 255).astype(np.uint8)[14:114])


def test_larger_pictures_run_in_smaller_batches_and_are_the_same(free: Pipeline) -> None:
    together = free.generate(request(free, 128, 128, n=5)).arrays
    assert batch_size(free.bundle.manifest, render_size(free.bundle.manifest, 64, 128, 128)) == MAX_BATCH // 4
    alone = free.generate(GenerationRequest.make(free.bundle.manifest, prompt="cat", seed=1 + 4, height=128, width=128)).arrays
    assert np.abs(together[4] - alone[0]).max() < 1e-5


def test_the_multiple_comes_from_the_unet(copy: Path, rewrite_manifest: Callable[..., None]) -> None:
    assert side_multiple(open_bundle(copy)) == 64
    (copy / "unet" / "config.json").write_text(json.dumps({"block_out_channels": [8, 16]}))
    rewrite_manifest(copy)
    assert side_multiple(open_bundle(copy)) == 16
    (copy / "unet" / "config.json").write_text("{}")
    rewrite_manifest(copy)
    with pytest.raises(BundleError, match="block_out_channels"):
        side_multiple(open_bundle(copy))
