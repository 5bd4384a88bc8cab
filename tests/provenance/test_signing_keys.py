"""Keys from elsewhere: files of every form, programs and functions that sign, and what happens when they fail."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509 import load_pem_x509_certificate

from platemark.errors import InputError, ProvenanceUnavailable
from platemark.imaging import encode
from platemark.provenance.callbacks import command_callback
from platemark.provenance.certificates import ALGORITHMS, Algorithm, make_authority, make_leaf
from platemark.provenance.credentials import read
from platemark.provenance.identity import Identity, development_identity, init_keys, load_identity, show_keys
from platemark.provenance.keyring import new_key
from platemark.provenance.signing import sign_bytes
from platemark.provenance.signing_keys import SignerFiles, external_identity, import_signer

PICTURE = encode(np.zeros((16, 16, 3), np.uint8))
AUTHORITY, AUTHORITY_KEY = make_authority("Company")


@pytest.fixture(scope="module")
def leaves() -> dict[str, tuple[bytes, bytes]]:
    return {algorithm: make_leaf("Company", AUTHORITY, AUTHORITY_KEY, algorithm) for algorithm in ALGORITHMS}


def signs_as(identity: Identity) -> str:
    report = read(sign_bytes(PICTURE, identity).data, "image/png", AUTHORITY)
    assert (report.state, report.trust) == ("valid", "trusted")
    return report.signer


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_certificate_and_key_in_one_file(tmp_path: Path, leaves: dict[str, tuple[bytes, bytes]], algorithm: str) -> None:
    leaf, key = leaves[algorithm]
    (tmp_path / "all.pem").write_bytes(leaf + AUTHORITY + key)
    identity = import_signer(SignerFiles(tmp_path / "all.pem"), tmp_path / "home")
    assert identity.algorithm == algorithm
    assert not identity.development
    assert identity == load_identity(tmp_path / "home")
    assert signs_as(identity) == "Company"
    assert (tmp_path / "home" / "keys" / "signing.pem").stat().st_mode & 0o777 == 0o600


def encoded(key_pem: bytes, form: serialization.PrivateFormat, passphrase: bytes | None) -> bytes:
    key = serialization.load_pem_private_key(key_pem, None)
    lock = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, lock)


@pytest.mark.parametrize("form", [serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL])
@pytest.mark.parametrize("passphrase", [None, "geheim"])
@pytest.mark.parametrize("algorithm", ["es384", "ps256"])
def test_a_key_in_a_file_of_its_own(
    tmp_path: Path, leaves: dict[str, tuple[bytes, bytes]], form: serialization.PrivateFormat, passphrase: str | None, algorithm: str
) -> None:
    leaf, key = leaves[algorithm]
    (tmp_path / "chain.pem").write_bytes(leaf + AUTHORITY)
    (tmp_path / "key.pem").write_bytes(encoded(key, form, passphrase.encode() if passphrase else None))
    files = SignerFiles(tmp_path / "chain.pem", tmp_path / "key.pem", passphrase=passphrase)
    assert signs_as(import_signer(files, tmp_path / "home")) == "Company"
    if passphrase:
        for wrong in (None, "falsch"):
            with pytest.raises(InputError, match="passphrase") as caught:
                import_signer(SignerFiles(tmp_path / "chain.pem", tmp_path / "key.pem", passphrase=wrong), tmp_path / "other")
            assert "geheim" not in str(caught.value)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("passphrase", [None, "geheim"])
def test_pkcs12(tmp_path: Path, leaves: dict[str, tuple[bytes, bytes]], passphrase: str | None) -> None:
    leaf, key_pem = leaves["es256"]
    key = serialization.load_pem_private_key(key_pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    lock = serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
    others = [load_pem_x509_certificate(AUTHORITY)]
    (tmp_path / "x.p12").write_bytes(pkcs12.serialize_key_and_certificates(b"n", key, load_pem_x509_certificate(leaf), others, lock))
    assert signs_as(import_signer(SignerFiles(tmp_path / "x.p12", passphrase=passphrase), tmp_path / "home")) == "Company"
    if passphrase:
        with pytest.raises(InputError, match="passphrase"):
            import_signer(SignerFiles(tmp_path / "x.p12", passphrase="falsch"), tmp_path / "other")


def test_what_does_not_fit_is_refused_and_nothing_is_stored(tmp_path: Path, leaves: dict[str, tuple[bytes, bytes]]) -> None:
    leaf, key = leaves["es256"]
    home = tmp_path / "home"
    (tmp_path / "chain.pem").write_bytes(leaf + AUTHORITY)
    (tmp_path / "other.pem").write_bytes(leaves["es384"][1])
    (tmp_path / "ca.pem").write_bytes(AUTHORITY + AUTHORITY_KEY)
    (tmp_path / "bad.p12").write_bytes(b"\x30\x03\x02\x01\x03")
    cases = {
        "does not belong": SignerFiles(tmp_path / "chain.pem", tmp_path / "other.pem"),
        "no private key with": SignerFiles(tmp_path / "chain.pem"),
        "no private key in": SignerFiles(tmp_path / "chain.pem", tmp_path / "chain.pem"),
        "self-signed": SignerFiles(tmp_path / "ca.pem"),
        "damaged": SignerFiles(tmp_path / "bad.p12"),
        "cannot read": SignerFiles(tmp_path / "none.pem"),
    }
    for reason, files in cases.items():
        with pytest.raises(InputError, match=reason):
            import_signer(files, home)
    assert load_identity(home) is None
    (tmp_path / "all.pem").write_bytes(leaf + AUTHORITY + key)
    with pytest.raises(InputError, match="a signer command too"):
        import_signer(SignerFiles(tmp_path / "all.pem", command=("true",)), home)


def test_keys_that_are_here_stay_unless_forced(tmp_path: Path, leaves: dict[str, tuple[bytes, bytes]]) -> None:
    first = init_keys(tmp_path / "home", name="First")
    (tmp_path / "all.pem").write_bytes(leaves["es256"][0] + AUTHORITY + leaves["es256"][1])
    with pytest.raises(InputError, match="holds keys already"):
        import_signer(SignerFiles(tmp_path / "all.pem"), tmp_path / "home")
    assert load_identity(tmp_path / "home") == first
    second = import_signer(SignerFiles(tmp_path / "all.pem"), tmp_path / "home", force=True)
    assert second.subject == "Company"
    assert second.watermark_key == first.watermark_key


def callback_for(key_pem: bytes, *, raw: bool = False) -> Callable[[bytes], bytes]:
    """What a key service does: it gets the bytes and gives a signature."""
    key = serialization.load_pem_private_key(key_pem, None)

    def sign(message: bytes) -> bytes:
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return key.sign(message)
        if isinstance(key, rsa.RSAPrivateKey):
            return key.sign(message, padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH), hashes.SHA256())
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        digest = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}[key.curve.key_size]
        der, size = key.sign(message, ec.ECDSA(digest)), (key.curve.key_size + 7) // 8
        return b"".join(number.to_bytes(size, "big") for number in decode_dss_signature(der)) if raw else der

    return sign


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("raw", [True, False])
def test_a_function_signs(leaves: dict[str, tuple[bytes, bytes]], algorithm: Algorithm, raw: bool) -> None:
    leaf, key = leaves[algorithm]
    identity = external_identity(leaf + AUTHORITY, callback_for(key, raw=raw), new_key(development=False))
    assert identity.private_key_pem == b""
    for _ in range(5):  # r and s differ in length from signature to signature
        assert signs_as(identity) == "Company"


def raising(error: BaseException) -> Callable[[bytes], bytes]:
    def sign(message: bytes) -> bytes:
        raise error

    return sign


FAILING: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "an error": (raising(RuntimeError("secret token 123")), r"failed \(RuntimeError\)"),
    "our error": (raising(ProvenanceUnavailable("the slot is locked", "unlock it")), "the slot is locked"),
    "a lost connection": (raising(ConnectionResetError()), r"failed \(ConnectionResetError\)"),
    "nothing": (lambda message: b"", "returned no signature"),
    "None": (lambda message: None, "returned no signature"),  # type: ignore[dict-item,return-value]
    "text": (lambda message: "signature", "returned no signature"),  # type: ignore[dict-item,return-value]
    "too much": (lambda message: bytes(10_000), "returned no signature"),
    "zeros": (lambda message: bytes(64), "does not fit the certificate"),
    "rubbish": (lambda message: b"\x30rubbish", "does not fit the certificate"),
    "another key's": (callback_for(make_leaf("x", AUTHORITY, AUTHORITY_KEY)[1]), "does not fit the certificate"),
    "a longer curve's": (callback_for(make_leaf("x", AUTHORITY, AUTHORITY_KEY, "es512")[1]), "does not fit the certificate"),
}


@pytest.mark.parametrize("kind", FAILING)
def test_a_failing_function_surfaces_as_our_error(
    leaves: dict[str, tuple[bytes, bytes]], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    callback, said = FAILING[kind]
    identity = external_identity(leaves["es256"][0] + AUTHORITY, callback, new_key(development=False))
    with pytest.raises(ProvenanceUnavailable, match=said) as caught:
        sign_bytes(PICTURE, identity)
    assert "secret" not in str(caught.value) + caplog.text


def test_an_interrupt_in_the_function_stays_one(leaves: dict[str, tuple[bytes, bytes]]) -> None:
    identity = external_identity(leaves["es256"][0] + AUTHORITY, raising(KeyboardInterrupt()), new_key(development=False))
    with pytest.raises(KeyboardInterrupt):
        sign_bytes(PICTURE, identity)


PROGRAM = """
import sys
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
key = serialization.load_pem_private_key(open(sys.argv[1], "rb").read(), None)
sys.stdout.buffer.write(key.sign(sys.stdin.buffer.read(), ec.ECDSA(hashes.SHA256())))
"""


def test_a_program_signs(tmp_path: Path, leaves: dict[str, tuple[bytes, bytes]]) -> None:
    leaf, key = leaves["es256"]
    (tmp_path / "chain.pem").write_bytes(leaf + AUTHORITY)
    (tmp_path / "token.pem").write_bytes(key)
    (tmp_path / "sign it.py").write_text(PROGRAM)
    command = (sys.executable, str(tmp_path / "sign it.py"), str(tmp_path / "token.pem"))
    identity = import_signer(SignerFiles(tmp_path / "chain.pem", command=command), tmp_path / "home")
    assert b"PRIVATE" not in (tmp_path / "home" / "keys" / "signing.pem").read_bytes()
    assert json.loads((tmp_path / "home" / "keys" / "signer.json").read_bytes()) == {"command": list(command)}
    again = load_identity(tmp_path / "home")
    assert again == identity
    assert again is not None
    assert signs_as(again) == "Company"
    assert show_keys(tmp_path / "home")["signing"]["key"] == "with the signer command"
    (tmp_path / "token.pem").unlink()
    with pytest.raises(ProvenanceUnavailable, match="ended with status 1"):
        sign_bytes(PICTURE, again)


@pytest.mark.parametrize("command", [("false",), ("/no/such/program",), (sys.executable, "-c", "print('no signature')")])
def test_a_program_that_does_not_sign_is_not_taken_in(
    tmp_path: Path, leaves: dict[str, tuple[bytes, bytes]], command: tuple[str, ...]
) -> None:
    (tmp_path / "chain.pem").write_bytes(leaves["es256"][0] + AUTHORITY)
    with pytest.raises(ProvenanceUnavailable):
        import_signer(SignerFiles(tmp_path / "chain.pem", command=command), tmp_path / "home")
    assert load_identity(tmp_path / "home") is None


def test_a_program_that_hangs_is_ended() -> None:
    with pytest.raises(ProvenanceUnavailable, match="longer than"):
        command_callback([sys.executable, "-c", "import time; time.sleep(60)"], seconds=0.3)(b"x")
    with pytest.raises(InputError, match="empty"):
        command_callback([])


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"command": []}', b'{"command": "rm"}', b'{"command": [1]}'])
def test_a_damaged_signer_file_is_named(tmp_path: Path, leaves: dict[str, tuple[bytes, bytes]], content: bytes) -> None:
    init_keys(tmp_path)
    (tmp_path / "keys" / "signing.pem").write_bytes(leaves["es256"][0] + AUTHORITY)
    (tmp_path / "keys" / "signer.json").write_bytes(content)
    with pytest.raises(ProvenanceUnavailable, match=r"signer\.json"):
        development_identity(tmp_path)
