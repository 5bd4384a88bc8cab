"""Near perceptual hashes: the index finds exactly what comparing everything finds."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from platemark.errors import InputError
from platemark.imaging import hash_distance
from platemark.provenance.record import ProvenanceRecord
from platemark.provenance.registry import Filter, Registry
from platemark.provenance.registry.search import slots

Make = Callable[..., ProvenanceRecord]


def near(base: int, bits: int, chance: random.Random) -> str:
    """A hash that differs from `base` in so many bits."""
    for bit in chance.sample(range(256), bits):
        base ^= 1 << bit
    return f"{base:064x}"


def test_the_nearest_come_first(registry: Registry, make_record: Make) -> None:
    for content_id, bits in ((1, 0), (2, 20), (3, 31), (4, 32), (5, 256)):
        registry.commit(make_record(content_id, perceptual_hash=f"{(1 << bits) - 1:064x}"), b"")
    found = registry.find_by_hash(f"{(1 << 20) - 1:064x}", 20)
    assert [(distance, entry.content_id) for distance, entry in found] == [(0, 2), (11, 3), (12, 4), (20, 1)]
    assert registry.find_by_hash("f" * 64, 0)[0][1].content_id == 5
    assert registry.find_by_hash("F" * 64, 0)[0][1].content_id == 5
    assert [entry.content_id for _, entry in registry.find_by_hash("0" * 64, 32, limit=2)] == [1, 2]


@pytest.mark.parametrize("max_distance", [0, 5, 15, 16, 31, 32, 47, 48, 90, 256])
def test_the_index_finds_what_comparing_everything_finds(registry: Registry, make_record: Make, max_distance: int) -> None:
    chance = random.Random(max_distance)
    base = chance.getrandbits(256)
    hashes = [near(base, bits, chance) for bits in (0, 1, 5, 15, 16, 17, 30, 31, 32, 33, 46, 47, 48, 60, 90, 128, 200)]
    hashes += [f"{chance.getrandbits(256):064x}" for _ in range(20)]
    for content_id, perceptual_hash in enumerate(hashes):
        registry.commit(make_record(content_id, issuer=content_id % 3, perceptual_hash=perceptual_hash), b"")
    query = f"{base:064x}"
    expected = sorted((hash_distance(query, h), k % 3, k) for k, h in enumerate(hashes) if hash_distance(query, h) <= max_distance)
    found = registry.find_by_hash(query, max_distance)
    assert [(distance, entry.issuer, entry.content_id) for distance, entry in found] == expected


@settings(deadline=None, max_examples=200)
@given(base=st.integers(0, 2**256 - 1), flips=st.sets(st.integers(0, 255), max_size=31))
def test_hashes_within_31_bits_share_a_word_within_one_bit(base: int, flips: set[int]) -> None:
    other = base
    for bit in flips:
        other ^= 1 << bit
    pairs = zip(slots(f"{base:064x}"), slots(f"{other:064x}"), strict=True)
    assert min((one ^ two).bit_count() for one, two in pairs) <= 1


def test_a_filter_goes_before_the_limit(registry: Registry, make_record: Make) -> None:
    for content_id in range(6):
        registry.commit(make_record(content_id, issuer=content_id % 2, perceptual_hash=f"{content_id:064x}"), b"")
    found = registry.find_by_hash("0" * 64, limit=2, wanted=Filter(issuer=1))
    assert [(distance, entry.content_id) for distance, entry in found] == [(1, 1), (2, 3)]


def test_slots_tell_places_apart() -> None:
    assert slots("0000" * 16) == [place << 16 for place in range(16)]
    assert slots("ffff" + "0001" * 15)[:2] == [0xFFFF, (1 << 16) | 1]


@pytest.mark.parametrize("text", ["", "0" * 63, "0" * 65, "g" * 64, "-" + "0" * 63, "0x" + "0" * 62])
def test_what_is_no_hash_is_refused(registry: Registry, text: str) -> None:
    with pytest.raises(InputError, match="64 hex digits"):
        registry.find_by_hash(text)
