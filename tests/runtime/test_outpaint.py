"""The larger canvas: what is new is painted, what was there is kept."""

from __future__ import annotations

import numpy as np
import pytest

from platemark.errors import InputError
from platemark.runtime.outpaint import margins, outpaint

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def test_the_picture_stays_and_all_around_it_is_painted() -> None:
    canvas, mask = outpaint(IMAGE, 8, 1, 24, 0)
    assert canvas.shape == (41, 92, 3)
    assert np.array_equal(canvas[1:, 8:68], IMAGE)
    assert not mask[1:, 8:68].any()
    assert (mask == 255).sum() == 41 * 92 - 40 * 60
    assert np.array_equal(canvas[0, 8:68], IMAGE[0])


def test_a_mask_of_the_picture_stays_in_force() -> None:
    own = np.zeros((40, 60), np.uint8)
    own[5, 5] = 255
    assert outpaint(IMAGE, 0, 0, 4, 0, own)[1][5, 5] == 255


def test_one_number_is_every_side() -> None:
    assert margins("64") == (64, 64, 64, 64)
    assert margins("0, 1,2,3") == (0, 1, 2, 3)
    for bad in ("", "-1", "1,2", "1,2,3,4,5", "a", "1,2,3,"):
        with pytest.raises(InputError, match="extend"):
            margins(bad)


@pytest.mark.parametrize(("sides", "said"), [((0, 0, 0, 0), "nothing"), ((4050, 0, 0, 0), "4096")])
def test_impossible_canvases_are_refused(sides: tuple[int, int, int, int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        outpaint(IMAGE, *sides)
