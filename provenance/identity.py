"""Who signs and marks here: the signing certificate with its private CA, and the watermark key. Files under `$PLATEMARK_HOME/keys`.

    authority.pem     private key and certificate of the private CA made by `keys init` (older CA certificates behind it)
    signing.pem       private key, leaf certificate and CA certificates in use; written last, so its presence means that all is there
    signer.json       the program that signs, where `signing.pem` holds no private key (an HSM or key service has it)
    development.pem   the same for the development identity, which is made where nobody ran `keys init`
    watermark.json    watermark keys

Every file is 0600 and written whole. Knows nothing of pictures.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from platemark.errors import InputError, ProvenanceUnavailable
from platemark.provenance.callbacks import SignCallback, command_callback
from platemark.provenance.certificates import Algorithm, belongs_together, make_authority, make_leaf, subject_and_expiry
from platemark.provenance.chain import algorithm_of_pem
from platemark.provenance.home import locked, read_state, write_secret
from platemark.provenance.keyring import HeldKey, ensure_marking_key, held_keys

DEVELOPMENT_NAME = "Platemark development identity, not for release"
_CLOSE = timedelta(days=30)
_KEY = re.compile(rb"-----BEGIN PRIVATE KEY-----.+?-----END PRIVATE KEY-----\s*", re.DOTALL)
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\s*", re.DOTALL)
_RENEW = "run `platemark keys init --force` for a new one, or `platemark keys import --force`; the watermark key is kept"


@dataclass(frozen=True)
class Identity:
    """What is needed to sign and mark. `chain_pem`: leaf, then CA; `expires`: of the leaf (UTC); `warning`: one sentence, or None.

    `callback` signs where the private key is elsewhere (an HSM, a key service); `private_key_pem` is empty then.
    """

    subject: str
    chain_pem: bytes
    private_key_pem: bytes = field(repr=False)
    watermark_key: HeldKey
    development: bool
    expires: datetime
    warning: str | None = None
    algorithm: Algorithm = "es256"
    callback: SignCallback | None = field(default=None, repr=False, compare=False)

    @property
    def issuer(self) -> int:
        return self.watermark_key.issuer


def init_keys(home: Path, *, name: str = "Platemark user", algorithm: Algorithm = "es256", force: bool = False) -> Identity:
    """Makes the private CA, a signing leaf and a watermark key.

    With `force`, where keys exist, only the leaf is renewed (and the CA, once it is close to its own end); the watermark key stays.
    Raises `InputError` (keys exist, another algorithm, or `name` is no name of 1 to 64 printable characters), `ProvenanceUnavailable`.
    """
    require_name(name)
    with locked(home, "keys"):
        if read_state(home / "keys" / "signing.pem") is not None and not force:
            raise InputError(
                f"{str(home / 'keys')!r} holds keys already", "use --force to renew the certificate; the watermark key is kept"
            )
        authority, authority_key = _authority(home, name)
        leaf, leaf_key = make_leaf(name, authority, authority_key, algorithm)
        ensure_marking_key(home)
        write_secret(home / "keys" / "signing.pem", leaf_key + leaf + authority)
    identity = load_identity(home)
    if identity is None:
        raise ProvenanceUnavailable("the keys vanished while they were made", "try again")
    return identity


def require_name(name: str) -> None:
    """Raises `InputError` unless `name` can be a signer's: 1 to 64 printable characters, and not the development identity's."""
    if not 1 <= len(name) <= 64 or not name.isprintable() or not name.strip() or name == DEVELOPMENT_NAME:
        raise InputError("a signer's name has 1 to 64 printable characters", "give another name")


def load_identity(home: Path, *, now: datetime | None = None) -> Identity | None:
    """The identity made by `keys init`, else the development identity, else None (also where the latter has expired: it is made anew).

    Raises `ProvenanceUnavailable`: a key file is damaged or unreadable, or the certificate of `keys init` has expired.
    """
    now = now or datetime.now(UTC)
    for file, development in (("signing.pem", False), ("development.pem", True)):
        data = read_state(home / "keys" / file)
        if data is None:
            continue
        identity = _assemble(home / "keys" / file, data, held_keys(home), development)
        if identity.expires > now:
            return _warned(identity, now)
        if not development:
            raise ProvenanceUnavailable(f"the signing certificate expired on {identity.expires:%Y-%m-%d}", _RENEW)
    return None


def development_identity(home: Path) -> Identity:
    """The identity of the state folder; where there is none, makes and stores one that says it is for development only.

    Its CA key is thrown away. Raises `ProvenanceUnavailable`.
    """
    if identity := load_identity(home):
        return identity
    with locked(home, "keys"):
        if identity := load_identity(home):  # another process was faster
            return identity
        authority, authority_key = make_authority(DEVELOPMENT_NAME)
        leaf, leaf_key = make_leaf(DEVELOPMENT_NAME, authority, authority_key)
        ensure_marking_key(home, development=True)
        write_secret(home / "keys" / "development.pem", leaf_key + leaf + authority)
    if identity := load_identity(home):
        return identity
    raise ProvenanceUnavailable("the keys vanished while they were made", "try again")


def authorities(home: Path) -> bytes:
    """Certificates (PEM) of the private CAs made here by `keys init`: whom this machine trusts. Empty where there are none."""
    return b"".join(_CERTIFICATE.findall(read_state(home / "keys" / "authority.pem") or b""))


def show_keys(home: Path) -> dict[str, Any]:
    """What `keys show` prints: plain JSON types, no secrets. Makes nothing."""
    identity = load_identity(home)
    signing = identity and {
        "subject": identity.subject,
        "expires": identity.expires.isoformat().replace("+00:00", "Z"),
        "algorithm": identity.algorithm,
        "key": "here" if identity.callback is None else "with the signer command",
        "development": identity.development,
        "issuer": identity.issuer,
        "warning": identity.warning,
    }
    return {"home": str(home), "signing": signing, "watermark_keys": [key.public() for key in held_keys(home)]}


def describe(home: Path) -> str:
    """One line on the identity. Makes nothing. Raises `ProvenanceUnavailable` as `load_identity` does."""
    identity = load_identity(home)
    if identity is None:
        return "no keys yet: the first picture makes a development identity; `platemark keys init` makes your own"
    return f"signs as '{identity.subject}' until {identity.expires:%Y-%m-%d}, watermark key {identity.watermark_key.key_id}"


def _authority(home: Path, name: str) -> tuple[bytes, bytes]:
    """The CA in use (certificate, key), made or renewed where needed. Older certificates stay trusted."""
    path = home / "keys" / "authority.pem"
    data = read_state(path) or b""
    certificates, keys = _CERTIFICATE.findall(data), _KEY.findall(data)
    if certificates and keys and _parsed(path, certificates[0])[1] > datetime.now(UTC) + timedelta(days=400):
        return certificates[0], keys[0]
    authority, key = make_authority(name)
    write_secret(path, key + authority + b"".join(certificates))
    return authority, key


def _assemble(path: Path, data: bytes, keys: tuple[HeldKey, ...], development: bool) -> Identity:
    private, certificates = _KEY.findall(data), _CERTIFICATE.findall(data)
    callback = None if private else _signer_command(path.with_name("signer.json"))
    if not certificates or not (private or callback):
        raise _damaged(path)
    subject, expires = _parsed(path, certificates[0])
    try:
        algorithm = algorithm_of_pem(certificates[0])
        if algorithm is None or (private and not belongs_together(certificates[0], private[0])):
            raise _damaged(path)
    except ValueError as error:
        raise _damaged(path) from error
    marking = [key for key in keys if key.purpose == "mark" and key.development == development]
    if not marking:
        raise ProvenanceUnavailable(
            f"the watermark key that belongs to {str(path)!r} is missing",
            "restore keys/watermark.json, or run `platemark keys init --force`",
        )
    key = private[0] if private else b""
    return Identity(subject, b"".join(certificates), key, marking[0], development, expires, None, algorithm, callback)


def _signer_command(path: Path) -> SignCallback | None:
    data = read_state(path)
    if data is None:
        return None
    try:
        command = json.loads(data)["command"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path) from error
    if not isinstance(command, list) or not command or not all(isinstance(part, str) for part in command):
        raise _damaged(path)
    return command_callback(command)


def _warned(identity: Identity, now: datetime) -> Identity:
    if identity.development or identity.expires - now > _CLOSE:
        return identity
    warning = f"the signing certificate expires on {identity.expires:%Y-%m-%d}; {_RENEW}"
    return Identity(**{**vars(identity), "warning": warning})


def _parsed(path: Path, certificate: bytes) -> tuple[str, datetime]:
    try:
        return subject_and_expiry(certificate)
    except ValueError as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> ProvenanceUnavailable:
    return ProvenanceUnavailable(
        f"the key file {str(path)!r} is damaged", "restore it from a backup, or remove it and run `platemark keys init`"
    )
