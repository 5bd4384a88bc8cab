"""Enlarging: Lanczos, and networks in tiles that show no seams, whatever sizes and values they take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from platemark.errors import InputError, RenderError
from platemark.runtime.engine import Array, TensorSpec
from platemark.runtime.manifest import UpscalerCard
from platemark.runtime.request import GenerationRequest, UpscaleRequest
from platemark.runtime.upscale import Network, lanczos, tiling_for, upscale

FLOAT = np.dtype(np.float32)


class Blur:
    """Repeats each pixel `factor` times, then takes the mean of (2 · reach + 1)² cells: a network with that reach, padded with zeros."""

    def __init__(self, factor: int, reach: int, high: float = 1.0, dtype: Any = np.float32) -> None:
        self.factor, self.reach, self.high, self.seen = factor, reach, high, []
        self.inputs = (TensorSpec("lr", np.dtype(dtype), (1, 3, "h", "w")),)
        self.outputs = (TensorSpec("sr", np.dtype(dtype), (1, 3, "H", "W")),)
        self.seen: list[tuple[int, ...]] = []

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        (values,) = inputs.values()
        self.seen.append(values.shape)
        assert values.dtype == self.inputs[0].dtype
        assert values.max() <= self.high
        r = self.reach
        padded = np.pad(values[0].astype(np.float32), ((0, 0), (r, r), (r, r)))
        table = np.pad(padded.astype(np.float64).cumsum(1).cumsum(2), ((0, 0), (1, 0), (1, 0)))
        n = 2 * r + 1
        mean = (table[:, n:, n:] - table[:, :-n, n:] - table[:, n:, :-n] + table[:, :-n, :-n]) / n**2
        big = mean.repeat(self.factor, 1).repeat(self.factor, 2)
        return {"sr": big[np.newaxis].astype(self.outputs[0].dtype)}


def picture(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def card(**changes: Any) -> UpscalerCard:
    return UpscalerCard.model_validate({"name": "blur", "factor": 2, "value_range": 1.0, "reach": 12, **changes})


def whole(network: Blur, given: NDArray[np.uint8]) -> NDArray[np.uint8]:
    sample = given.transpose(2, 0, 1)[np.newaxis].astype(np.float32) / np.float32(255) * np.float32(network.high)
    made = network.run({"lr": sample.astype(network.inputs[0].dtype)})["sr"][0].astype(np.float32)
    return np.round(np.clip(made / network.high, 0, 1).transpose(1, 2, 0) * 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(300, 520), (640, 256), (257, 255)])
@pytest.mark.parametrize("high", [1.0, 255.0])
def test_tiled_equals_whole(size: tuple[int, int], high: float) -> None:
    network, given = Blur(2, 12, high), picture(*size)
    found = Network(network, card(value_range=high))(given)
    assert len(network.seen) > 1
    assert max(max(shape[2:]) for shape in network.seen) == 256
    assert np.abs(found.astype(int) - whole(network, given)).max() <= 1  # a level: where the blend rounds
    assert (found != whole(network, given)).mean() < 1e-3


def test_a_fixed_tile_is_all_that_a_network_ever_sees() -> None:
    network = Blur(3, 4)
    given = picture(150, 40)
    found = Network(network, card(factor=3, tile=64, reach=4))(given)
    assert {shape[2:] for shape in network.seen} == {(64, 64)}
    assert found.shape == (450, 120, 3)
    framed = np.pad(given, ((0, 0), (0, 24), (0, 0)), "edge")
    assert np.abs(found.astype(int) - whole(network, framed)[:, :120]).max() <= 1


def test_sides_are_multiples_where_a_network_wants_them() -> None:
    network = Blur(2, 0)
    found = Network(network, card(multiple=16, reach=0))(picture(70, 301))
    assert found.shape == (140, 602, 3)
    assert all(side % 16 == 0 for shape in network.seen for side in shape[2:])
    np.testing.assert_array_equal(found, picture(70, 301).repeat(2, 0).repeat(2, 1))


def test_half_precision_networks_get_halves() -> None:
    network = Blur(2, 1, dtype=np.float16)
    assert Network(network, card(reach=1))(picture(64, 64)).shape == (128, 128, 3)


def test_margins_cover_the_reach() -> None:
    assert tiling_for(card(reach=30)).margin == 30
    assert tiling_for(card(reach=60)).tile > 256
    assert tiling_for(card(reach=60, multiple=64)).tile % 64 == 0
    assert tiling_for(card(reach=60, tile=64)).margin == 8  # all that tiles of 64 leave room for
    assert tiling_for(card(reach=60, tile=8)).margin == 0


def test_factors_that_a_network_does_not_have_are_reached_by_it_and_lanczos() -> None:
    given = picture(64, 80)
    network = Blur(4, 0)
    four = Network(network, card(factor=4, reach=0))
    assert upscale(given, 2, four).shape == (128, 160, 3)
    np.testing.assert_array_equal(upscale(given, 2, four), lanczos(four(given), 128, 160))
    two = Network(Blur(2, 0), card(reach=0))
    assert upscale(given, 3, two).shape == (192, 240, 3)
    np.testing.assert_array_equal(upscale(given, 4, two), two(two(given)))
    np.testing.assert_array_equal(upscale(given, 2), lanczos(given, 128, 160))


def test_too_large_and_broken_results_are_refused() -> None:
    with pytest.raises(InputError, match="larger than"):
        upscale(np.zeros((4000, 4000, 3), np.uint8), 8)
    eight = Network(Blur(8, 0), card(factor=8, reach=0))
    with pytest.raises(InputError, match="enlarged 8 times"):
        upscale(np.zeros((2000, 2000, 3), np.uint8), 2, eight)

    class Broken(Blur):
        def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
            return {"sr": super().run(inputs)["sr"] * np.float32(np.nan)}

    with pytest.raises(RenderError):
        upscale(picture(64, 64), 2, Network(Broken(2, 0), card(reach=0)))


def test_requests_name_their_factor() -> None:
    asked = UpscaleRequest.of(picture(64, 80), 3)
    assert (asked.operation, asked.upscale, asked.settings()) == ("upscale", 3, {"upscale": "3"})
    for factor in (1, 9, 2.5, True):
        with pytest.raises(InputError, match="upscale"):
            UpscaleRequest.of(picture(64, 80), factor)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="too small"):
        UpscaleRequest.of(picture(8, 80), 2)


def test_the_pipeline_delivers_enlarged_pictures(miniature: Any) -> None:
    from platemark.runtime.bundle import open_bundle
    from platemark.runtime.pipeline import Pipeline

    bundle = open_bundle(miniature)
    pipeline = Pipeline.load(bundle)
    plain = pipeline.generate(GenerationRequest.make(bundle.manifest, prompt="cat", seed=3))
    large = pipeline.generate(GenerationRequest.make(bundle.manifest, prompt="cat", seed=3, upscale=2))
    assert large.images.shape == (1, 192, 192, 3)
    np.testing.assert_array_equal(large.images[0], lanczos(plain.images[0], 192, 192))
    assert large.resampled_from == (64, 64)
    assert large.request.settings()["upscale"] == "2"
    with pytest.raises(InputError, match="upscale is out of range"):
        GenerationRequest.make(bundle.manifest, prompt="cat", upscale=9)
    with pytest.raises(InputError, match="pixels"):
        GenerationRequest.make(bundle.manifest, prompt="cat", upscale=8, n=64, height=1024, width=1024)
