"""Tiles: weights add up to one everywhere, the result equals the whole, and memory stays with the band."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from platemark.runtime.tiles import Tiling


def blur(values: NDArray[np.float32], reach: int) -> NDArray[np.float32]:
    """A mean over (2 · reach + 1)² cells, zeros outside: as a convolution with padding."""
    padded = np.pad(values, ((0, 0), (reach, reach), (reach, reach)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * reach + 1, 2 * reach + 1), (1, 2))
    return windows.mean(axis=(3, 4)).astype(np.float32)


def enlarged(values: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    return values.repeat(factor, axis=1).repeat(factor, axis=2)


@given(st.integers(1, 700), st.integers(0, 20), st.integers(1, 16), st.integers(0, 60), st.integers(1, 4))
def test_weights_of_all_tiles_add_up_to_one(length: int, margin: int, feather: int, more: int, factor: int) -> None:
    tiling = Tiling(3 * (2 * margin + feather) + 2 + more, margin, feather)
    total = np.zeros(factor * length)
    spans = tiling.spans(length)
    for span in spans:
        total[factor * span.start : factor * span.stop] += span.weights(factor, feather)
        assert span.stop - span.start == min(tiling.tile, length)
    np.testing.assert_allclose(total, 1.0, atol=1e-6)
    assert all(left.stop - right.start >= tiling.overlap for left, right in itertools.pairwise(spans))
    for left, right in itertools.pairwise(spans):  # the margins count for nothing
        assert not left.weights(1, feather)[-margin or length :].any()
        assert not right.weights(1, feather)[:margin].any()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 200), (301, 97), (20, 400)])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_what_reaches_no_further_than_the_margin_equals_the_whole(height: int, width: int, factor: int) -> None:
    source = np.random.default_rng(0).standard_normal((2, height, width)).astype(np.float32)
    tiling = Tiling(64, 6, 8)
    found = tiling.whole(lambda r, c: enlarged(blur(source[:, r, c], 6), factor), (height, width), 2, factor)
    np.testing.assert_allclose(found, enlarged(blur(source, 6), factor), atol=2e-6)


def test_what_reaches_further_is_seen_at_the_seams_alone() -> None:
    """The comparison above can fail: a reach over the margin shows."""
    source = np.random.default_rng(0).standard_normal((1, 64, 200)).astype(np.float32)
    found = Tiling(64, 6, 8).whole(lambda r, c: blur(source[:, r, c], 16), (64, 200), 1)
    assert np.abs(found - blur(source, 16)).max() > 1e-3


def test_memory_is_that_of_a_band() -> None:
    tiling, height, width = Tiling(64, 4, 8), 2000, 256
    tracemalloc.start()
    for _, rows in tiling.bands(lambda r, c: np.ones((3, r.stop - r.start, c.stop - c.start), np.float32), (height, width), 3):
        assert float(np.abs(rows - 1).max()) < 1e-6
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000  # bytes; the whole would be 6.1 MB


@pytest.mark.parametrize(("tile", "margin", "feather"), [(8, 4, 8), (64, -1, 8), (64, 8, 0)])
def test_tiles_that_cannot_overlap_are_refused(tile: int, margin: int, feather: int) -> None:
    with pytest.raises(ValueError, match="cannot overlap"):
        Tiling(tile, margin, feather)
