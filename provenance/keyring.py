"""Watermark keys: what they are, where they lie, and how they move between machines. Knows nothing of marks or certificates.

A key marks only on the machine (state folder) that made it, because content ids are unique per issuer and registry; elsewhere an imported
key reads. The issuer number (14 bits) goes into every mark beside the content id.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from platemark.errors import InputError, ProvenanceUnavailable
from platemark.imaging import read_bytes
from platemark.provenance.files import write_atomically
from platemark.provenance.home import locked, read_state, write_secret
from platemark.provenance.watermark.key import WatermarkKey

ISSUER_BITS = 14
_FORMAT = "platemark-watermark-keys"
_MAX_EXPORT = 1 << 20
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 2**15, 8, 1


@dataclass(frozen=True)
class HeldKey:
    """One watermark key. `secret` is 32 random bytes; `key_id` (16 hex digits) is derived from it; `purpose` `mark` includes reading."""

    key_id: str
    secret: bytes = field(repr=False)
    issuer: int
    purpose: Literal["mark", "read"]
    development: bool
    created: str

    @property
    def watermark(self) -> WatermarkKey:
        return WatermarkKey(self.key_id, self.secret)

    def public(self) -> dict[str, str | int | bool]:
        """What may be shown: no secret."""
        return {
            "key_id": self.key_id,
            "issuer": self.issuer,
            "purpose": self.purpose,
            "development": self.development,
            "created": self.created,
        }


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    key_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    secret: str = Field(pattern=r"^[0-9a-f]{64}$")
    issuer: int = Field(ge=0, lt=2**ISSUER_BITS)
    purpose: Literal["mark", "read"] = "read"
    development: bool = False
    created: str = Field(max_length=40)


class _Ring(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    format: Literal["platemark-watermark-keys"]
    version: Literal[1]
    keys: tuple[_Entry, ...] = Field(max_length=1000)


class _Sealed(BaseModel):
    """An export under a passphrase: the ring as AES-256-GCM ciphertext, the key from scrypt. Byte strings in hex."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    format: Literal["platemark-watermark-keys"]
    version: Literal[1]
    kdf: Literal["scrypt-32768-8-1"]
    salt: str = Field(pattern=r"^[0-9a-f]{32}$")
    nonce: str = Field(pattern=r"^[0-9a-f]{24}$")
    sealed: str = Field(pattern=r"^([0-9a-f]{2})+$")


def new_key(*, development: bool) -> HeldKey:
    """A fresh marking key with a random issuer number."""
    secret = secrets.token_bytes(32)
    created = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return HeldKey(WatermarkKey.from_secret(secret).key_id, secret, secrets.randbelow(2**ISSUER_BITS), "mark", development, created)


def held_keys(home: Path) -> tuple[HeldKey, ...]:
    """The keys of the state folder: own marking keys first, the newest first. Empty where there are none."""
    data = read_state(_path(home))
    if data is None:
        return ()
    try:
        ring = _Ring.model_validate_json(data)
    except ValidationError as error:
        raise ProvenanceUnavailable(f"{str(_path(home))!r} is damaged", "restore it from a backup, or import the keys again") from error
    keys = [_held(entry) for entry in reversed(ring.keys)]
    return tuple(sorted(keys, key=lambda key: (key.purpose == "read", key.development)))


def add_keys(home: Path, keys: list[HeldKey]) -> list[str]:
    """Adds keys that are not held yet and returns their ids. Raises `ProvenanceUnavailable`."""
    with locked(home, "keyring"):
        held = list(reversed(held_keys(home)))
        fresh = [key for key in keys if key.key_id not in {other.key_id for other in held}]
        if fresh:
            write_secret(_path(home), _dump([*held, *fresh]))
    return [key.key_id for key in fresh]


def ensure_marking_key(home: Path, *, development: bool = False) -> None:
    """Makes a marking key where the state folder holds none of this kind. Raises `ProvenanceUnavailable`."""
    if not any(key.purpose == "mark" and key.development == development for key in held_keys(home)):
        add_keys(home, [new_key(development=development)])


def export_keys(path: str | Path, home: Path, *, passphrase: str | None = None, force: bool = False) -> list[str]:
    """Writes all held watermark keys to a file (0600), encrypted where a passphrase is given; returns their ids.

    Raises `InputError`: no keys, the file exists (unless `force`), or it cannot be written.
    """
    keys = held_keys(home)
    if not keys:
        raise InputError("there are no watermark keys to export", "run `platemark keys init` first")
    if Path(path).exists() and not force:
        raise InputError(f"{str(path)!r} exists already", "name another file, or use --force to replace it")
    ring = _dump(keys)
    write_atomically(path, ring if passphrase is None else _seal(ring, passphrase), mode=0o600)
    return [key.key_id for key in keys]


def import_keys(path: str | Path, home: Path, *, passphrase: str | None = None) -> list[str]:
    """Adds the keys of an export for reading; returns the ids of those that were new. Raises `InputError` for a file that is no export."""
    data = read_bytes(path, max_bytes=_MAX_EXPORT)
    try:
        if '"sealed"' in data[:1000].decode("utf-8", "replace"):
            data = _unseal(_Sealed.model_validate_json(data), passphrase)
        entries = _Ring.model_validate_json(data).keys
    except ValidationError as error:
        raise InputError(f"{str(path)!r} is not an export of watermark keys", "make one with `platemark keys export`") from error
    keys = [_held(entry.model_copy(update={"purpose": "read"})) for entry in entries]
    if any(key.key_id != WatermarkKey.from_secret(key.secret).key_id for key in keys):
        raise InputError(f"{str(path)!r} is damaged: a key does not match its id", "export the keys again")
    return add_keys(home, keys)


def _path(home: Path) -> Path:
    return home / "keys" / "watermark.json"


def _held(entry: _Entry) -> HeldKey:
    return HeldKey(entry.key_id, bytes.fromhex(entry.secret), entry.issuer, entry.purpose, entry.development, entry.created)


def _dump(keys: tuple[HeldKey, ...] | list[HeldKey]) -> bytes:
    entries = [{**key.public(), "secret": key.secret.hex()} for key in keys]
    return json.dumps({"format": _FORMAT, "version": 1, "keys": entries}, indent=1).encode()


def _seal(ring: bytes, passphrase: str) -> bytes:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
    sealed = AESGCM(_stretch(passphrase, salt)).encrypt(nonce, ring, _FORMAT.encode())
    head = {"format": _FORMAT, "version": 1, "kdf": f"scrypt-{_SCRYPT_N}-{_SCRYPT_R}-{_SCRYPT_P}"}
    return json.dumps({**head, "salt": salt.hex(), "nonce": nonce.hex(), "sealed": sealed.hex()}, indent=1).encode()


def _unseal(sealed: _Sealed, passphrase: str | None) -> bytes:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    if passphrase is None:
        raise InputError("the export is encrypted", "give its passphrase")
    key = _stretch(passphrase, bytes.fromhex(sealed.salt))
    try:
        return AESGCM(key).decrypt(bytes.fromhex(sealed.nonce), bytes.fromhex(sealed.sealed), _FORMAT.encode())
    except InvalidTag as error:
        raise InputError("the passphrase is wrong, or the export is damaged", "try again, or export the keys anew") from error


def _stretch(passphrase: str, salt: bytes) -> bytes:
    return hashlib.scrypt(passphrase.encode(), salt=salt, n=_SCRYPT_N, r=_SCRYPT_R, p=_SCRYPT_P, maxmem=2**26, dklen=32)
