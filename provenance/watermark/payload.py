"""What the watermark says: 64 bits, and the keyed check by which a reader knows that they were written and not imagined.

Bit order, most significant first: version 4 | issuer 14 | content id 42 | flags 4, then 24 bits of HMAC-SHA256(check key, those 8 bytes).
Without the key nobody can make a payload that passes; a random 88-bit word passes with probability 2^-24.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from platemark.errors import InputError
from platemark.provenance.watermark.key import WatermarkKey

VERSION = 1
PAYLOAD_BITS, CHECK_BITS = 64, 24
SEALED_BITS = PAYLOAD_BITS + CHECK_BITS
_WIDTHS = {"version": 4, "issuer": 14, "content_id": 42, "flags": 4}  # in packing order


@dataclass(frozen=True)
class Payload:
    """`issuer` 0..2^14-1, `content_id` 0..2^42-1, `flags` 0..15, `version` 0..15. Raises `InputError` out of range."""

    content_id: int
    issuer: int = 0
    flags: int = 0
    version: int = VERSION

    def __post_init__(self) -> None:
        for name, width in _WIDTHS.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << width:
                raise InputError(
                    f"the watermark field '{name}' does not fit {width} bits", f"use a whole number from 0 to {(1 << width) - 1}"
                )

    def pack(self) -> bytes:
        """The 8 bytes, big-endian."""
        word = 0
        for name, width in _WIDTHS.items():
            word = word << width | getattr(self, name)
        return word.to_bytes(PAYLOAD_BITS // 8, "big")

    @classmethod
    def unpack(cls, data: bytes) -> Payload:
        """The payload in 8 bytes. Raises `InputError` for another length."""
        if len(data) != PAYLOAD_BITS // 8:
            raise InputError("a watermark payload has 8 bytes", "give 16 hex digits")
        word = int.from_bytes(data, "big")
        values = {}
        for name, width in reversed(_WIDTHS.items()):
            values[name] = word & ((1 << width) - 1)
            word >>= width
        return cls(**values)

    @property
    def hex(self) -> str:
        """The 8 bytes as 16 hex digits, as records and reports show them."""
        return self.pack().hex()


def seal(payload: Payload, key: WatermarkKey) -> NDArray[np.uint8]:
    """Payload and check as 88 bits (0 or 1)."""
    word = payload.pack()
    return np.unpackbits(np.frombuffer(word + _check(word, key), np.uint8))


def unseal(bits: NDArray[np.uint8], key: WatermarkKey) -> Payload | None:
    """The payload in 88 bits, or None where the check does not hold."""
    data = np.packbits(bits).tobytes()
    word, check = data[: PAYLOAD_BITS // 8], data[PAYLOAD_BITS // 8 :]
    return Payload.unpack(word) if hmac.compare_digest(check, _check(word, key)) else None


def _check(word: bytes, key: WatermarkKey) -> bytes:
    return hmac.new(key.subkey("check"), word, hashlib.sha256).digest()[: CHECK_BITS // 8]
