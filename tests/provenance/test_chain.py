"""Certificates from elsewhere: each kind that validators refuse is refused here first, with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from cryptography.x509.oid import NameOID

from platemark.errors import InputError
from platemark.provenance.certificates import make_authority, make_leaf
from platemark.provenance.chain import check_chain

EMAIL, DOCUMENT, CLAIM = "1.3.6.1.5.5.7.3.4", "1.3.6.1.5.5.7.3.36", "1.3.6.1.4.1.62558.2.1"
STAMPING, SERVER, ANY = "1.3.6.1.5.5.7.3.8", "1.3.6.1.5.5.7.3.1", "2.5.29.37.0"


def name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def usage(**bits: bool) -> x509.KeyUsage:
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign",
             "crl_sign", "encipher_only", "decipher_only")  # fmt: skip
    return x509.KeyUsage(**{one: bits.get(one, False) for one in names})


@dataclass(frozen=True)
class Recipe:
    """A leaf under a CA; each test spoils one thing."""

    key: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    purposes: tuple[str, ...] = (EMAIL,)
    key_usage: x509.KeyUsage | None = field(default_factory=lambda: usage(digital_signature=True, content_commitment=True))
    authority: bool = False
    key_id: bool = True
    starts: timedelta = timedelta(hours=-1)
    ends: timedelta = timedelta(days=90)
    own_issuer: bool = False

    def make(self) -> bytes:
        now, above_key = datetime.now(UTC), ec.generate_private_key(ec.SECP256R1())
        signing_key = self.key if self.own_issuer else above_key
        builder = x509.CertificateBuilder().serial_number(x509.random_serial_number()).public_key(self.key.public_key())
        builder = builder.subject_name(name("Leaf")).issuer_name(name("Leaf" if self.own_issuer else "CA"))
        builder = builder.not_valid_before(now + self.starts).not_valid_after(now + self.ends)
        builder = builder.add_extension(x509.BasicConstraints(self.authority, None), critical=True)
        if self.key_usage is not None:
            builder = builder.add_extension(self.key_usage, critical=True)
        if self.purposes:
            builder = builder.add_extension(x509.ExtendedKeyUsage([x509.ObjectIdentifier(oid) for oid in self.purposes]), critical=False)
        if self.key_id:
            builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), critical=False)
        return builder.sign(signing_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize("purposes", [(EMAIL,), (DOCUMENT,), (CLAIM,), (CLAIM, EMAIL), (EMAIL, SERVER)])
def test_allowed_purposes_pass(purposes: tuple[str, ...]) -> None:
    chain = check_chain(Recipe(purposes=purposes).make())
    assert (chain.subject, chain.algorithm) == ("Leaf", "es256")
    assert chain.expires > datetime.now(UTC) + timedelta(days=89)


BAD: dict[str, tuple[Callable[[], Recipe], str]] = {
    "self-signed": (lambda: Recipe(own_issuer=True), "self-signed"),
    "a CA": (lambda: Recipe(authority=True), "a CA's certificate"),
    "no key usage": (lambda: Recipe(key_usage=None), "digitalSignature"),
    "encipherment": (lambda: Recipe(key_usage=usage(key_encipherment=True)), "digitalSignature"),
    "signs certificates": (lambda: Recipe(key_usage=usage(digital_signature=True, key_cert_sign=True)), "keyCertSign"),
    "no purpose": (lambda: Recipe(purposes=()), "none of emailProtection"),
    "server": (lambda: Recipe(purposes=(SERVER,)), "none of emailProtection"),
    "any purpose": (lambda: Recipe(purposes=(EMAIL, ANY)), "any purpose"),
    "time stamping": (lambda: Recipe(purposes=(STAMPING,)), "none of emailProtection"),
    "time stamping too": (lambda: Recipe(purposes=(EMAIL, STAMPING)), "timeStamping"),
    "no AKI": (lambda: Recipe(key_id=False), "authority key identifier"),
    "RSA 1024": (lambda: Recipe(key=rsa.generate_private_key(65537, 1024)), "RSA of 1024 bits"),
    "secp256k1": (lambda: Recipe(key=ec.generate_private_key(ec.SECP256K1())), "the curve secp256k1"),
    "Ed448": (lambda: Recipe(key=ed448.Ed448PrivateKey.generate()), "of another kind"),
    "expired": (lambda: Recipe(starts=timedelta(days=-9), ends=timedelta(days=-1)), "expired on"),
    "not yet valid": (lambda: Recipe(starts=timedelta(days=1)), "not valid before"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_certificates_are_refused_with_the_reason(kind: str) -> None:
    make, reason = BAD[kind]
    with pytest.raises(InputError) as caught:
        check_chain(make().make())
    assert reason in caught.value.message
    assert "\n" not in str(caught.value)


def test_the_order_of_a_chain_matters() -> None:
    authority, key = make_authority("Studio")
    leaf, _ = make_leaf("Studio", authority, key)
    assert check_chain(leaf + authority).pem == leaf + authority
    with pytest.raises(InputError, match="self-signed"):
        check_chain(authority + leaf)
    with pytest.raises(InputError, match="not in order"):
        check_chain(leaf + make_authority("Studio")[0])


def test_the_chain_expires_with_its_first_certificate() -> None:
    authority, key = make_authority("Studio")
    leaf, _ = make_leaf("Studio", authority, key, days=10)
    assert check_chain(leaf + authority).expires < datetime.now(UTC) + timedelta(days=11)
    later = datetime.now(UTC) + timedelta(days=11)
    with pytest.raises(InputError, match="expired"):
        check_chain(leaf + authority, now=later)


@pytest.mark.parametrize("data", [b"", b"rubbish", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="no readable certificate"):
        check_chain(data)


def test_a_recipe_is_spoiled_in_one_place_alone() -> None:
    """The recipe itself is good: what the tests above refuse is what they name."""
    assert check_chain(replace(Recipe(), ends=timedelta(days=5)).make()).subject == "Leaf"
