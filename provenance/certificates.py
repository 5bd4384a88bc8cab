"""X.509: a private CA and signing leaves that C2PA validators accept. Knows nothing of files or of what is signed.

The leaf follows the C2PA certificate profile: keyUsage digitalSignature and nonRepudiation (critical), extended key usage emailProtection
alone (accepted by every validator without further trust configuration), BasicConstraints CA:FALSE, AKI and SKI. The CA's key is P-256.
Certificates made elsewhere are judged by `chain.py`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal, get_args

from platemark.errors import InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.x509 import Certificate, CertificateBuilder, KeyUsage, Name

    PrivateKey = EllipticCurvePrivateKey | RSAPrivateKey | Ed25519PrivateKey

Algorithm = Literal["es256", "es384", "es512", "ps256", "ed25519"]  # C2PA's names: P-256, P-384, P-521, RSA, Ed25519
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
RSA_BITS = 3072  # of keys made here; 2048 and more are accepted

LEAF_DAYS = 366  # the longest that the C2PA program's leaf profile allows
AUTHORITY_DAYS = 3653
_CLOCK_SKEW = timedelta(minutes=5)


def make_authority(name: str) -> tuple[bytes, bytes]:
    """A self-signed CA for `name`: (certificate PEM, private key PEM)."""
    from cryptography import x509

    key = _new_curve_key()
    subject = _name(name, f"{name[:40]} (private CA)")
    builder = _builder(subject, subject, key, AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(authority=True), critical=True)
    return _sign(builder, key), _key_pem(key)


def make_leaf(
    name: str, authority_pem: bytes, authority_key_pem: bytes, algorithm: Algorithm = "es256", *, days: int = LEAF_DAYS
) -> tuple[bytes, bytes]:
    """A signing certificate for `name` under the CA: (certificate PEM, private key PEM). Never outlives the CA.

    Raises `InputError` for another algorithm.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from cryptography.x509.oid import ExtendedKeyUsageOID

    authority = x509.load_pem_x509_certificate(authority_pem)
    authority_key = load_pem_private_key(authority_key_pem, None)
    if not isinstance(authority_key, EllipticCurvePrivateKey):
        raise TypeError("the CA key must be an elliptic-curve key")
    key = _new_key(algorithm)
    builder = _builder(_name(name, name), authority.subject, key, days, authority.not_valid_after_utc)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(authority=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return _sign(builder, authority_key), _key_pem(key)


def subject_and_expiry(certificate_pem: bytes) -> tuple[str, datetime]:
    """The common name and the last moment of validity (UTC) of the first certificate."""
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate(certificate_pem)
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value) if names else certificate.subject.rfc4514_string(), certificate.not_valid_after_utc


def belongs_together(certificate_pem: bytes, key_pem: bytes) -> bool:
    """True where the first certificate holds the public half of the key. Raises `ValueError` where either cannot be read."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    return x509.load_pem_x509_certificate(certificate_pem).public_key() == load_pem_private_key(key_pem, None).public_key()


def _new_curve_key() -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _new_key(algorithm: Algorithm) -> PrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if algorithm not in ALGORITHMS:
        raise InputError(f"unknown signature algorithm {str(algorithm)[:20]!r}", f"use {', '.join(ALGORITHMS)}")
    if algorithm == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm == "ps256":
        return rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS)
    curves: dict[str, ec.EllipticCurve] = {"es256": ec.SECP256R1(), "es384": ec.SECP384R1(), "es512": ec.SECP521R1()}
    return ec.generate_private_key(curves[algorithm])


def _name(organization: str, common_name: str) -> Name:
    from cryptography import x509

    return x509.Name(
        [x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, organization), x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)]
    )


def _builder(subject: Name, issuer: Name, key: PrivateKey, days: int, until: datetime | None = None) -> CertificateBuilder:
    from cryptography import x509

    now = datetime.now(UTC)
    end = now + timedelta(days=days)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - _CLOCK_SKEW).not_valid_after(min(end, until) if until else end)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)


def _usage(*, authority: bool) -> KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=not authority,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _sign(builder: CertificateBuilder, authority_key: EllipticCurvePrivateKey) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    certificate: Certificate = builder.add_extension(identifier, critical=False).sign(authority_key, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: PrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization as s

    return key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
