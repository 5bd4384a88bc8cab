"""What a request will take is known before it takes it: fewer pictures at once, tiles, or a refusal that names what would do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from platemark.errors import InputError
from platemark.models import embedded
from platemark.runtime import memory
from platemark.runtime.bundle import open_bundle
from platemark.runtime.codec import TILES
from platemark.runtime.memory import Widths, decoder_bytes, left, parse_bytes, plan_memory, unet_bytes
from platemark.runtime.pipeline import Pipeline
from platemark.runtime.request import GenerationRequest
from platemark.runtime.sizes import RenderSize

GIB = 2**30
# Stable Diffusion 1.5: attention of 8 heads at the first three levels.
SD15 = Widths(attention=((0, 8), (1, 8), (2, 8)), unet=960, vae=256, vae_attention=True, cell=8, tiles=True)


def size(side: int) -> RenderSize:
    return RenderSize(side, side, resampled=False)


def test_the_vae_blow_up_at_2048_pixels_is_its_attention_and_its_widest_layers() -> None:
    assert decoder_bytes(SD15, (256, 256)) >= 16 * GIB
    assert decoder_bytes(SD15, (64, 64)) < 1.3 * GIB


def test_at_2048_pixels_the_decoder_works_in_tiles_where_it_must() -> None:
    narrow = Widths(attention=(), unet=960, vae=256, vae_attention=True, cell=8, tiles=True)
    assert not plan_memory(narrow, size(2048), 1, 2, 64 * GIB).tiled
    plan = plan_memory(narrow, size(2048), 1, 2, 4 * GIB)
    assert plan.tiled
    assert plan.bytes <= 4 * GIB


def test_what_does_not_fit_is_refused_with_a_size_that_does() -> None:
    with pytest.raises(InputError, match=r"2048x2048 takes about \d+\.\d GiB of memory, and 8\.0 GiB are left") as caught:
        plan_memory(SD15, size(2048), 1, 2, 8 * GIB)
    side = int(caught.value.remedy.split()[2].split("x")[0])
    assert 512 < side < 2048
    plan_memory(SD15, size(side), 1, 2, 8 * GIB)
    with pytest.raises(InputError):
        plan_memory(SD15, size(side + 64), 1, 2, 8 * GIB)


def test_fewer_pictures_at_once_come_before_a_refusal() -> None:
    assert plan_memory(SD15, size(512), 8, 2, None).batch == 8
    one = unet_bytes(SD15, 2, (64, 64))
    assert plan_memory(SD15, size(512), 8, 2, 3 * one + 100).batch == 3


def test_a_bundle_that_does_not_say_what_tiles_cost_uses_none() -> None:
    without = Widths(attention=(), unet=960, vae=256, vae_attention=True, cell=8, tiles=False)
    with pytest.raises(InputError, match="2048x2048"):
        plan_memory(without, size(2048), 1, 2, 4 * GIB)


def test_widths_are_read_from_the_configs() -> None:
    widths = Widths.of(open_bundle(embedded()))
    assert widths == Widths(attention=((1, 4), (2, 4)), unet=192, vae=16, vae_attention=False, cell=8, tiles=True)


def test_a_bundle_without_configs_is_not_reckoned_with(miniature: Path) -> None:
    widths = Widths.of(open_bundle(miniature))
    assert (widths.attention, widths.unet, widths.vae, widths.vae_attention) == ((), 0, 0, False)


@pytest.fixture(scope="module")
def any_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as one that renders any size."""
    root = tmp_path_factory.mktemp("any") / "bundle"
    shutil.copytree(embedded(), root)
    manifest = json.loads((root / "bundle.json").read_text())
    (root / "bundle.json").write_text(json.dumps(manifest | {"output_size": manifest["native_size"]}))
    return root


def ask(pipeline: Pipeline, side: int, **more: Any) -> GenerationRequest:
    made: dict[str, Any] = {
        "prompt": "a red apple",
        "seed": 1,
        "height": side,
        "width": side,
        "num_inference_steps": 1,
        "guidance_scale": 1.0,
    }
    return GenerationRequest.make(pipeline.bundle.manifest, **(made | more))


def test_a_tiled_picture_is_within_what_the_bundle_says(any_size: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline.load(open_bundle(any_size), threads=1)
    said = pipeline.bundle.manifest.tiled_decode
    assert said is not None
    assert said.tile == TILES.tile
    side = 640  # 80 cells: four tiles
    whole = pipeline.generate(ask(pipeline, side))
    assert (whole.tiled, whole.notes) == (None, ())
    monkeypatch.setattr("platemark.runtime.pipeline.left", lambda budget: decoder_bytes(Widths.of(pipeline.bundle), (80, 80)) - 1)
    tiled = pipeline.generate(ask(pipeline, side))
    assert tiled.tiled == said
    assert "tiles" in tiled.notes[0]
    error = tiled.arrays - whole.arrays
    assert -10 * np.log10(np.square(error).mean()) > said.psnr - 6
    assert np.abs(error).max() > 0


def test_a_budget_is_of_the_whole_process_and_refuses_before_any_work(any_size: Path) -> None:
    pipeline = Pipeline.load(open_bundle(any_size), threads=1, memory_budget=64 << 20)  # less than Python and the engines hold
    heard: list[Any] = []
    with pytest.raises(InputError, match="memory"):
        pipeline.generate(ask(pipeline, 512), on_step=heard.append)
    assert heard == []
    assert Pipeline.load(open_bundle(any_size), threads=1, memory_budget=64 << 30).generate(ask(pipeline, 128)).images.shape == (
        1,
        128,
        128,
        3,
    )


def test_what_is_left_is_the_budgets_and_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_available", lambda: 10 * GIB)
    monkeypatch.setattr(memory, "_resident", lambda: GIB)
    assert (left(None), left(4 * GIB), left(40 * GIB)) == (10 * GIB, 3 * GIB, 10 * GIB)
    monkeypatch.setattr(memory, "_available", lambda: None)
    assert (left(None), left(4 * GIB)) == (None, 3 * GIB)


def test_the_system_is_asked_through_its_own_files(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    2048 kB\n")
    assert memory._available(tmp_path) == 2 << 20
    assert memory._available(tmp_path / "none") is None
    assert memory._resident(tmp_path) is None


@pytest.mark.parametrize(("text", "count"), [("4GiB", 4 * GIB), ("1.5 g", 3 * GIB // 2), ("512MB", 512 << 20), ("7", 7)])
def test_amounts_are_read(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "0", "-1G", "1e9", "4 elephants", "nan", "9" * 40])
def test_amounts_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="memory"):
        parse_bytes(text)
