"""What the facts say of the road from the rendered to the delivered picture is what the road does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from platemark.provenance.record import Facts
from platemark.provenance.stamp import open_stamp
from platemark.runtime.resize import fit

Make = Callable[..., Facts]


def is_cut_of(part: np.ndarray, whole: np.ndarray) -> bool:
    if any(a > b for a, b in zip(part.shape, whole.shape, strict=True)):
        return False
    windows = np.lib.stride_tricks.sliding_window_view(whole, part.shape)
    return bool((windows == part).all(axis=(-3, -2, -1)).any())


@pytest.mark.parametrize(
    "size", [(16, 16), (16, 10), (10, 16), (16, 11), (11, 16), (10, 10), (32, 32), (32, 16), (24, 20), (8, 4), (17, 16)]
)
def test_cropped_and_resampled_say_what_fit_does(make_facts: Make, size: tuple[int, int]) -> None:
    rendered = np.random.default_rng(3).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    facts = make_facts(resampled_from=(16, 16) if size != (16, 16) else None).delivered_at(*size)
    delivered = fit(rendered, *size)
    assert delivered.shape == (*size, 3)
    assert facts.resampled is not is_cut_of(delivered, rendered)
    assert facts.cropped is (size[0] != size[1])


def test_facts_without_a_delivered_size_still_read(make_facts: Make) -> None:
    """Records from before the field was there."""
    old = make_facts(resampled_from=(16, 16)).model_dump(exclude={"delivered_size"})
    facts = Facts.model_validate(old)
    assert (facts.cropped, facts.resampled, facts.blurred) == (False, True, False)


def test_the_stamp_fills_in_the_size_and_the_record_says_what_was_done(
    dev_home: Path, make_picture: Callable[..., np.ndarray], make_facts: Make
) -> None:
    press = open_stamp(dev_home)
    facts = make_facts(resampled_from=(64, 64), decision={"action": "blur", "policy_id": "standard", "policy_sha256": "12" * 32})
    record = press.apply(make_picture(4, 64, 96), facts, press.reserve()).record
    assert record.facts.delivered_size == (64, 96)
    said = record.as_dict()["facts"]
    assert (said["cropped"], said["blurred"], said["seed"]) == (True, True, str(2**64 - 1))
    found = press.registry.find(record.content_id, record.issuer)
    assert found is not None
    assert found.record == record
