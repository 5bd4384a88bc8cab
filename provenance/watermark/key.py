"""The watermark key: 32 secret bytes, and everything that is derived from them by name.

Every use (carrier phases, symbol order, payload check, id) gets its own subkey, HMAC-SHA256(secret, label), so that learning one says
nothing of another. Knows nothing of where keys are stored.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from platemark.errors import InputError

SECRET_BYTES = 32
ALGORITHM = 2  # raised with every change of the algorithm, which makes every derived sequence new: pilots of one are none of another
_PREFIX = f"platemark-watermark/{ALGORITHM}/".encode()
_KEY_ID = re.compile(r"[0-9a-z][0-9a-z._-]{0,63}")


@dataclass(frozen=True)
class WatermarkKey:
    """One watermark key. `key_id` is public (1 to 64 of `0-9a-z._-`); `secret` is 32 bytes and never shown.

    Raises `InputError` for an id or a secret of another form.
    """

    key_id: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not _KEY_ID.fullmatch(self.key_id):
            raise InputError("the watermark key id is not valid", "use 1 to 64 lower-case letters, digits, dots, dashes")
        if not isinstance(self.secret, bytes) or len(self.secret) != SECRET_BYTES:
            raise InputError(f"a watermark key needs {SECRET_BYTES} secret bytes", "make one with `platemark keys init`")

    @classmethod
    def generate(cls) -> WatermarkKey:
        """A new key from the system's random source."""
        return cls.from_secret(secrets.token_bytes(SECRET_BYTES))

    @classmethod
    def from_secret(cls, secret: bytes) -> WatermarkKey:
        """The key with the id that follows from its secret (16 hex digits, one-way)."""
        return cls(hmac.digest(secret, b"platemark watermark key id", "sha256")[:8].hex(), secret)

    def subkey(self, label: str) -> bytes:
        """32 bytes for one named use."""
        return hmac.new(self.secret, _PREFIX + label.encode("ascii"), hashlib.sha256).digest()

    def uniform(self, label: str, count: int) -> NDArray[np.float64]:
        """`count` numbers in [0, 1), the same on every machine: SHAKE-256 of the subkey, 32 bits each."""
        stream = hashlib.shake_256(self.subkey(label)).digest(4 * count)
        return np.frombuffer(stream, dtype="<u4").astype(np.float64) / 2.0**32

    def permutation(self, label: str, count: int) -> NDArray[np.intp]:
        """A keyed order of `count` things (ties, one in 2^32 a pair, keep their order)."""
        return np.argsort(self.uniform(label, count), kind="stable")
