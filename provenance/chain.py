"""Judges certificates and keys made elsewhere: may this chain sign C2PA claims? Says the reason where it may not. Knows no files.

The rules are those of the C2PA certificate profile (specification 2.4, section on credential types): X.509 v3, no self-signed leaf, no CA
as leaf, keyUsage digitalSignature, an extended key usage of the allowed three and neither `any` nor a mix with time stamping or OCSP, an
authority key identifier, a curve or key size of the list, no SHA-1, in its time of validity, leaf first, each certificate signed by the
next.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from platemark.errors import InputError
from platemark.provenance.certificates import Algorithm

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
    from cryptography.x509 import Certificate, Extensions, ExtensionType

    ExtensionKind = TypeVar("ExtensionKind", bound=ExtensionType)

MIN_RSA_BITS, MAX_RSA_BITS = 2048, 16384
_ALLOWED = {
    "1.3.6.1.5.5.7.3.4": "emailProtection",
    "1.3.6.1.5.5.7.3.36": "documentSigning",
    "1.3.6.1.4.1.62558.2.1": "c2pa-kp-claimSigning",
}
_ANY, _APART = "2.5.29.37.0", {"1.3.6.1.5.5.7.3.8": "timeStamping", "1.3.6.1.5.5.7.3.9": "OCSPSigning"}
_REMEDY = "ask your CA for a certificate with the C2PA claim-signing profile, or run `platemark keys init` for a private one"


@dataclass(frozen=True)
class Chain:
    """A chain that may sign: `pem` leaf first; `subject`: the leaf's common name; `expires`: UTC, of the certificate that ends first."""

    pem: bytes
    subject: str
    algorithm: Algorithm
    expires: datetime


def check_chain(pem: bytes, *, now: datetime | None = None) -> Chain:
    """The chain in `pem` (certificates, leaf first). Raises `InputError` with the first reason why it may not sign."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise InputError("there is no readable certificate in the file", "give a PEM file with the signing certificate first") from error
    reason = next(_complaints(certificates, now or datetime.now(UTC)), None)
    if reason is not None:
        raise InputError(f"the signing certificate cannot be used: {reason}", _REMEDY)
    leaf = certificates[0]
    names = leaf.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    algorithm = algorithm_of(leaf.public_key())
    if algorithm is None:  # said by _complaints already
        raise InputError("the signing certificate cannot be used: its key is of no C2PA kind", _REMEDY)
    return Chain(
        b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates),
        str(names[0].value) if names else leaf.subject.rfc4514_string(),
        algorithm,
        min(certificate.not_valid_after_utc for certificate in certificates),
    )


def algorithm_of(key: CertificatePublicKeyTypes) -> Algorithm | None:
    """C2PA's name of the signature algorithm for a public key; None where there is none."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ec.EllipticCurvePublicKey):
        by_curve: dict[str, Algorithm] = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
        return by_curve.get(key.curve.name)
    if isinstance(key, rsa.RSAPublicKey):
        return "ps256" if MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS else None
    return "ed25519" if isinstance(key, ed25519.Ed25519PublicKey) else None


def algorithm_of_pem(certificate_pem: bytes) -> Algorithm | None:
    """As `algorithm_of`, of the first certificate. Raises `ValueError` where it cannot be read."""
    from cryptography import x509

    return algorithm_of(x509.load_pem_x509_certificate(certificate_pem).public_key())


def _complaints(certificates: list[Certificate], now: datetime) -> Iterator[str]:
    """The reasons against a chain, the most telling first."""
    leaf = certificates[0]
    if leaf.issuer == leaf.subject:
        yield "it is self-signed, and no validator accepts a self-signed signer (it needs a CA above it, even a private one)"
    if algorithm_of(leaf.public_key()) is None:
        yield f"its key is {_describe(leaf.public_key())}; C2PA allows P-256, P-384, P-521, RSA from {MIN_RSA_BITS} bits and Ed25519"
    yield from _extensions(leaf)
    for certificate in certificates:
        if certificate.signature_hash_algorithm is not None and certificate.signature_hash_algorithm.name in ("md5", "sha1"):
            yield f"its chain is signed with {certificate.signature_hash_algorithm.name.upper()}"
        if now < certificate.not_valid_before_utc:
            yield f"it is not valid before {certificate.not_valid_before_utc:%Y-%m-%d}"
        if now > certificate.not_valid_after_utc:
            yield f"it expired on {certificate.not_valid_after_utc:%Y-%m-%d}"
    for below, above in itertools.pairwise(certificates):
        if not _issued(below, above):
            yield "the certificates are not in order: each must be signed by the next, leaf first"


def _extensions(leaf: Certificate) -> Iterator[str]:
    from cryptography import x509

    try:
        extensions = leaf.extensions
    except ValueError:
        yield "its extensions cannot be read"
        return
    basic = _find(extensions, x509.BasicConstraints)
    if basic is not None and basic.ca:
        yield "it is a CA's certificate; a leaf must sign"
    usage = _find(extensions, x509.KeyUsage)
    if usage is None or not usage.digital_signature:
        yield "its key usage does not hold digitalSignature"
    if usage is not None and usage.key_cert_sign:
        yield "its key usage holds keyCertSign, which is a CA's"
    if _find(extensions, x509.AuthorityKeyIdentifier) is None:
        yield "it has no authority key identifier"
    purposes = _find(extensions, x509.ExtendedKeyUsage)
    yield from _purposes([] if purposes is None else [purpose.dotted_string for purpose in purposes])


def _purposes(found: list[str]) -> Iterator[str]:
    if _ANY in found:
        yield "its extended key usage allows any purpose"
    if not set(found) & set(_ALLOWED):
        yield f"its extended key usage has none of {', '.join(_ALLOWED.values())}"
    for oid in found:
        if oid in _APART:
            yield f"its extended key usage holds {_APART[oid]} too, which must stand alone"


def _find(extensions: Extensions, kind: type[ExtensionKind]) -> ExtensionKind | None:
    from cryptography.x509 import ExtensionNotFound

    try:
        return extensions.get_extension_for_class(kind).value
    except ExtensionNotFound:
        return None


def _issued(below: Certificate, above: Certificate) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        below.verify_directly_issued_by(above)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _describe(key: CertificatePublicKeyTypes) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"on the curve {key.curve.name}"
    return f"RSA of {key.key_size} bits" if isinstance(key, rsa.RSAPublicKey) else "of another kind"
