"""The watermark's bits: payload, key, error correction."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from platemark.errors import InputError
from platemark.provenance.watermark import code
from platemark.provenance.watermark.key import WatermarkKey
from platemark.provenance.watermark.payload import SEALED_BITS, Payload, seal, unseal

KEY, OTHER = (WatermarkKey.from_secret(bytes([n]) * 32) for n in (1, 2))
PAYLOADS = st.builds(
    Payload, content_id=st.integers(0, 2**42 - 1), issuer=st.integers(0, 2**14 - 1), flags=st.integers(0, 15), version=st.integers(0, 15)
)


@given(PAYLOADS)
def test_a_payload_survives_packing_sealing_and_coding(payload: Payload) -> None:
    assert Payload.unpack(payload.pack()) == payload
    assert unseal(code.decode(code.encode(seal(payload, KEY)))[0], KEY) == payload
    assert bytes.fromhex(payload.hex) == payload.pack()


@given(st.binary(min_size=8, max_size=8))
def test_any_eight_bytes_are_a_payload(data: bytes) -> None:
    assert Payload.unpack(data).pack() == data


def test_the_fields_lie_where_the_format_says() -> None:
    word = int(Payload(content_id=5, issuer=3, flags=9, version=2).hex, 16)
    assert (word >> 60, word >> 46 & 0x3FFF, word >> 4 & (1 << 42) - 1, word & 15) == (2, 3, 5, 9)


@pytest.mark.parametrize(
    "fields",
    [{"content_id": 2**42}, {"content_id": -1}, {"issuer": 2**14}, {"flags": 16}, {"version": 16}, {"flags": True}, {"issuer": 1.0}],
)
def test_fields_out_of_range_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(InputError, match="does not fit"):
        Payload(**{"content_id": 0, **fields})


def test_a_payload_of_another_length_is_refused() -> None:
    with pytest.raises(InputError, match="8 bytes"):
        Payload.unpack(b"1234567")


@given(PAYLOADS, st.integers(0, SEALED_BITS - 1))
def test_the_check_refuses_a_changed_bit_and_another_key(payload: Payload, place: int) -> None:
    bits = seal(payload, KEY)
    assert unseal(bits, OTHER) is None
    bits[place] ^= 1
    assert unseal(bits, KEY) is None


@pytest.mark.parametrize(("statistic", "least"), [(17.0, 97), (14.0, 88), (12.0, 50)])
def test_the_decoder_works_down_to_where_such_a_code_can(statistic: float, least: int) -> None:
    rng, right = np.random.default_rng(7), 0
    for _ in range(100):
        bits = rng.integers(0, 2, SEALED_BITS).astype(np.uint8)
        symbols = code.encode(bits)
        received = symbols * np.float32(statistic / np.sqrt(symbols.size)) + rng.normal(size=symbols.size).astype(np.float32)
        right += bits.tolist() in code.decode(received, code.LIST).tolist()
    assert right >= least


def test_the_code_keeps_words_far_apart_and_bites_its_tail() -> None:
    nothing = code.encode(np.zeros(SEALED_BITS, np.uint8))
    single = np.zeros(SEALED_BITS, np.uint8)
    single[0] = 1
    assert np.array_equal(nothing, np.ones(SEALED_BITS * code.RATE, np.float32))
    taps = sum(generator.bit_count() for generator in code.GENERATORS)
    assert np.count_nonzero(code.encode(single) != nothing) == taps
    turned = code.encode(np.roll(single, 11))
    assert np.array_equal(turned, np.roll(code.encode(single), 11 * code.RATE))


def test_the_list_holds_different_words_the_likeliest_first() -> None:
    rng = np.random.default_rng(5)
    noise = rng.normal(size=SEALED_BITS * code.RATE).astype(np.float32)
    words = code.decode(noise, 8)
    assert 1 <= len(words) <= 8
    assert len(np.unique(words, axis=0)) == len(words)
    assert code.encode(words[0]) @ noise > 4 * np.sqrt(noise.size)
    right = rng.integers(0, 2, SEALED_BITS).astype(np.uint8)
    assert np.array_equal(code.decode(code.encode(right) + noise / 3, 8)[0], right)


def test_a_key_shows_no_secret_and_derives_the_same_everywhere() -> None:
    key = WatermarkKey.from_secret(bytes(range(32)))
    assert "secret" not in repr(key)
    assert key.secret.hex() not in repr(key)
    assert repr(key.secret) not in repr(key)
    assert key.subkey("check").hex().startswith("05deb49deaf6")
    assert np.allclose(key.uniform("full/phase", 3), [0.8138681680429727, 0.10754162166267633, 0.4781243072357029])
    assert not np.array_equal(key.uniform("full/phase", 8), key.uniform("pixel/offset", 8))
    assert sorted(key.permutation("full/order", 50)) == list(range(50))


def test_keys_of_another_form_are_refused() -> None:
    assert WatermarkKey.generate() != WatermarkKey.generate()
    with pytest.raises(InputError, match="32 secret bytes"):
        WatermarkKey("a", b"short")
    with pytest.raises(InputError, match="key id"):
        dataclasses.replace(KEY, key_id="../x")
