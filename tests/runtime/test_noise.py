"""Initial noise: portable seeds, with and without torch to compare."""

from __future__ import annotations

import numpy as np
import pytest

from platemark.runtime.noise import Generator, draw_seed, draws, image_seed, randn, uniform

SEEDS = [0, 1, 42, 2**31, 2**32 - 1, 2**32, 2**32 + 42, 2**63, 2**64 - 1]
SIZES = [*range(1, 41), 63, 64, 65, 100, 1000, 1023, 4 * 16 * 16, 4 * 64 * 64, 4 * 65 * 64, 4 * 97 * 101]


@pytest.mark.torch
@pytest.mark.parametrize("seed", SEEDS)
def test_equals_torch_generator(seed: int) -> None:
    import torch

    for size in SIZES:
        theirs = torch.randn(size, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32).numpy()
        assert np.abs(randn(seed, (size,)) - theirs).max() <= 2e-6, size
        stream = torch.rand(size, generator=torch.Generator("cpu").manual_seed(seed)).numpy()
        assert np.array_equal(uniform(seed, size), stream), size


@pytest.mark.torch
@pytest.mark.parametrize("seed", SEEDS)
def test_a_generator_goes_on_as_torchs_does(seed: int) -> None:
    """Draws of any sizes one after the other: above 16 values, below (where one of a pair is kept for later), none; uniforms between."""
    import torch

    theirs, ours = torch.Generator("cpu").manual_seed(seed), Generator(seed)
    for size in [3, 16, 1, 1, 1, 0, 15, 100, 5, 4 * 64 * 64, 2, 17, 1, 31, 7, 1]:
        expected = torch.randn(size, generator=theirs).numpy()
        assert np.abs(ours.randn((size,)) - expected).max(initial=0) <= 2e-6, size
        stream = torch.rand(size, generator=theirs).numpy()
        assert np.array_equal(ours.uniform(size), stream), size


@pytest.mark.torch
def test_minus_one_is_the_highest_seed_to_torch() -> None:
    import torch

    theirs = torch.randn(100, generator=torch.Generator("cpu").manual_seed(-1)).numpy()
    assert np.abs(randn(image_seed(-1, 0), (100,)) - theirs).max() <= 2e-6


@pytest.mark.torch
def test_a_batch_draws_as_a_list_of_generators() -> None:
    """diffusers' randn_tensor with one generator an image: first latents, then the noise of each step."""
    import torch
    from diffusers.utils.torch_utils import randn_tensor

    shape, seeds = (4, 9, 7), [5, 2**32 + 6, 2**63]
    theirs = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    ours = [Generator(seed) for seed in seeds]
    for _ in range(5):
        expected = randn_tensor((3, *shape), generator=theirs).numpy()
        assert np.abs(draws(ours, shape) - expected).max() <= 2e-6


@pytest.mark.torch
@pytest.mark.parametrize("shape", [(4, 16, 16), (1, 4, 9, 7), (3, 5), (2, 2, 2), (1, 1)])
def test_shapes_fill_in_the_same_order(shape: tuple[int, ...]) -> None:
    import torch

    theirs = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(7)).numpy()
    ours = randn(7, shape)
    assert ours.shape == shape
    assert ours.dtype == np.float32
    assert np.abs(ours - theirs).max() <= 2e-6


def test_known_values() -> None:
    """What torch 2.14 gives for seed 42, so that a lean install checks its seeds too."""
    expected = {
        4: [0.3366904, 0.1288094, 0.2344620, 0.2303334],
        20: [1.9269153, 1.4872841, 0.9007172, -2.1055214],
    }
    for size, first in expected.items():
        assert np.allclose(randn(42, (size,))[:4], first, atol=2e-6), size


def test_known_values_of_later_draws() -> None:
    """What torch 2.14 gives for seed 42 after a first draw of 20 values, and of 3."""
    for first, expected in {20: [-0.7658386, -0.7506223, 1.3525478, 0.6863219], 3: [0.230333, -1.1228564, -0.1863283, 2.2082014]}.items():
        generator = Generator(42)
        generator.randn((first,))
        assert np.allclose(generator.randn((4,)), expected, atol=2e-6), first


def test_rows_do_not_depend_on_their_neighbours() -> None:
    together, alone = [Generator(seed) for seed in (1, 2, 3)], Generator(2)
    for _ in range(3):
        assert np.array_equal(draws(together, (4, 5, 5))[1], alone.randn((4, 5, 5)))


def test_torch_keeps_the_low_32_bits_of_a_seed() -> None:
    assert np.array_equal(randn(5, (64,)), randn(2**32 + 5, (64,)))
    assert not np.array_equal(randn(5, (64,)), randn(6, (64,)))


def test_normals_are_normal() -> None:
    values = randn(3, (4, 128, 128)).astype(np.float64)
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02


def test_nothing_is_an_empty_array() -> None:
    assert randn(1, (0, 4)).shape == (0, 4)


def test_image_seeds_wrap() -> None:
    assert [image_seed(2**64 - 2, k) for k in range(4)] == [2**64 - 2, 2**64 - 1, 0, 1]


def test_drawn_seeds_differ_and_are_seeds() -> None:
    drawn = {draw_seed() for _ in range(20)}
    assert len(drawn) == 20
    assert all(0 <= seed < 2**63 for seed in drawn)
