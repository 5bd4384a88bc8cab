"""Takes in a signing certificate made elsewhere: PEM files, PKCS#12, or a certificate whose key stays in an HSM or key service.

Nothing is stored before a picture was signed with it and read back. Knows nothing of watermark keys but that an identity needs one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from platemark.errors import InputError, ProvenanceUnavailable
from platemark.imaging import encode, read_bytes
from platemark.provenance.callbacks import SignCallback, command_callback
from platemark.provenance.chain import Chain, check_chain
from platemark.provenance.home import locked, read_state, write_secret
from platemark.provenance.identity import Identity, load_identity, require_name
from platemark.provenance.keyring import HeldKey, ensure_marking_key, new_key
from platemark.provenance.signing import sign_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from cryptography.x509 import Certificate

_MAX_FILE = 1 << 20
_WRONG = "the passphrase is wrong or missing, or the key file is damaged"


@dataclass(frozen=True)
class SignerFiles:
    """Where a signer's certificate and key are.

    `certificate`: PEM (leaf first, then the CAs above it; the private key may be in it too) or PKCS#12. `key`: PEM, where it has a file of
    its own. `command`: a program that signs instead (see `callbacks.command_callback`). `passphrase`: of the key or the PKCS#12 file.
    """

    certificate: Path
    key: Path | None = None
    command: tuple[str, ...] = ()
    passphrase: str | None = None


def import_signer(files: SignerFiles, home: Path, *, force: bool = False) -> Identity:
    """Makes the signer of these files the state folder's; the watermark key stays, or is made.

    Raises `InputError` (a file that cannot be read, a chain that may not sign, a key of another certificate, keys here already and not
    `force`), `ProvenanceUnavailable` (the signer cannot sign, state folder not writable).
    """
    chain, key_pem = _read(files)
    require_name(chain.subject)
    with locked(home, "keys"):
        if read_state(home / "keys" / "signing.pem") is not None and not force:
            raise InputError(f"{str(home / 'keys')!r} holds keys already", "use --force to replace them; the watermark key is kept")
        _prove(chain, key_pem, command_callback(files.command) if files.command else None)
        ensure_marking_key(home)
        if files.command:
            write_secret(home / "keys" / "signer.json", json.dumps({"command": list(files.command)}).encode())
        write_secret(home / "keys" / "signing.pem", key_pem + chain.pem)
    identity = load_identity(home)
    if identity is None:
        raise ProvenanceUnavailable("the keys vanished while they were made", "try again")
    return identity


def external_identity(chain_pem: bytes, callback: SignCallback, watermark_key: HeldKey) -> Identity:
    """An identity whose key a function uses, for programs that embed Platemark. `chain_pem`: PEM, leaf first.

    `callback` takes the bytes to sign and returns the signature (ECDSA raw or DER, RSA-PSS or Ed25519). Raises `InputError` for a chain
    that may not sign.
    """
    chain = check_chain(chain_pem)
    return Identity(chain.subject, chain.pem, b"", watermark_key, False, chain.expires, None, chain.algorithm, callback)


def is_certificate(data: bytes) -> bool:
    """Whether a file is one of certificates or keys (PEM or PKCS#12) by its first look, and not an export of watermark keys."""
    return b"-----BEGIN " in data or data[:1] == b"\x30"


def _read(files: SignerFiles) -> tuple[Chain, bytes]:
    """The chain, and the private key as PKCS#8 PEM (empty where a command signs)."""
    data = read_bytes(files.certificate, max_bytes=_MAX_FILE)
    if data[:1] == b"\x30":
        chain, key = _pkcs12(data, files.passphrase)
    else:
        chain = check_chain(data)
        holds_key = b"PRIVATE KEY-----" in data
        source = read_bytes(files.key, max_bytes=_MAX_FILE) if files.key else data if holds_key else None
        key = None if source is None else _pem_key(source, files.passphrase)
    if files.command:
        if key is not None:
            raise InputError("there is a private key and a signer command too", "give one of them")
        return chain, b""
    if key is None:
        raise InputError("there is no private key with the certificate", "give the key's file, or the program that signs with it")
    return chain, _matching(chain, key)


def _matching(chain: Chain, key: PrivateKeyTypes) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization as s

    leaf = x509.load_pem_x509_certificate(chain.pem)
    if key.public_key() != leaf.public_key():
        raise InputError("the private key does not belong to the certificate", "give the key that the certificate was made for")
    return key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())


def _pem_key(data: bytes, passphrase: str | None) -> PrivateKeyTypes:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    start = data.find(b"-----BEGIN ", max(0, data.find(b"PRIVATE KEY-----") - 40)) if b"PRIVATE KEY-----" in data else -1
    if start < 0:
        raise InputError("there is no private key in the file", "give a PEM file with a private key")
    try:
        return load_pem_private_key(data[start:], passphrase.encode() if passphrase else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(_WRONG, "try again with the right passphrase") from error


def _pkcs12(data: bytes, passphrase: str | None) -> tuple[Chain, PrivateKeyTypes | None]:
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.hazmat.primitives.serialization.pkcs12 import load_key_and_certificates

    try:
        key, leaf, others = load_key_and_certificates(data, passphrase.encode() if passphrase else None)
    except (ValueError, TypeError) as error:
        raise InputError(_WRONG, "try again with the right passphrase") from error
    if leaf is None:
        raise InputError("there is no certificate in the PKCS#12 file", "export it with its certificate and chain")
    chain = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in _ordered(leaf, others))
    return check_chain(chain), key


def _ordered(leaf: Certificate, others: Sequence[Certificate]) -> list[Certificate]:
    """The chain upwards from the leaf: a PKCS#12 file holds its other certificates in no order."""
    chain, left = [leaf], list(others)
    while above := next((one for one in left if one.subject == chain[-1].issuer), None):
        chain.append(above)
        left.remove(above)
    return chain


def _prove(chain: Chain, key_pem: bytes, callback: SignCallback | None) -> None:
    """Signs a tiny picture. Raises `ProvenanceUnavailable` with what the library or the callback says."""
    import numpy as np

    trial = Identity(chain.subject, chain.pem, key_pem, new_key(development=True), False, chain.expires, None, chain.algorithm, callback)
    sign_bytes(encode(np.zeros((8, 8, 3), np.uint8)), trial, source_type="digitalCreation")
