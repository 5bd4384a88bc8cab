"""Time stamps: a real RFC 3161 authority (`openssl ts` behind http.server), and ones that refuse, hang, lie or are not trusted."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from platemark.errors import InputError, ProvenanceUnavailable
from platemark.imaging import encode
from platemark.provenance.credentials import read
from platemark.provenance.identity import Identity
from platemark.provenance.signing import Signed, SignOptions, sign_bytes
from platemark.provenance.timestamps import BUDGET_SECONDS, TimestampRule

Answer = Callable[[BaseHTTPRequestHandler, bytes], None]
_CONFIG = """
[tsa]
default_tsa = here
[here]
serial = {folder}/serial
signer_cert = {folder}/tsa.pem
certs = {folder}/root.pem
signer_key = {folder}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha384, sha512
ess_cert_id_alg = sha256
"""


def _certificate(name: str, issuer: str, key: ec.EllipticCurvePrivateKey, issuer_key: ec.EllipticCurvePrivateKey, authority: bool) -> bytes:
    now = datetime.now(UTC)
    usage = x509.KeyUsage(not authority, not authority, False, False, False, authority, authority, False, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test TSA")]))
        .issuer_name(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test TSA")])
        )
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=365))
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if not authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), critical=True)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def make_authority(folder: Path) -> bytes:
    """Keys, certificates and configuration of an authority in `folder`; returns its root (PEM)."""
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = _certificate("Test TSA root", "Test TSA root", root_key, root_key, True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "root.pem").write_bytes(root)
    (folder / "tsa.pem").write_bytes(_certificate("Test TSA", "Test TSA root", key, root_key, False))
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "tsa.key").write_bytes(private)
    (folder / "serial").write_text("01\n")
    (folder / "tsa.cnf").write_text(_CONFIG.format(folder=folder))
    return root


def _send(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "application/timestamp-reply")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def good(folder: Path) -> Answer:
    """Answers as RFC 3161 says, by OpenSSL."""

    def answer(handler: BaseHTTPRequestHandler, query: bytes) -> None:
        command = ["openssl", "ts", "-reply", "-config", f"{folder}/tsa.cnf", "-section", "here", "-queryfile", "/dev/stdin"]
        done = subprocess.run(command, input=query, capture_output=True, check=True)
        _send(handler, done.stdout)

    return answer


def refusing(handler: BaseHTTPRequestHandler, query: bytes) -> None:
    handler.send_error(503)


def rubbish(handler: BaseHTTPRequestHandler, query: bytes) -> None:
    _send(handler, b"\x30\x03\x02\x01\x02 this is no stamp")


def redirecting(handler: BaseHTTPRequestHandler, query: bytes) -> None:
    handler.send_response(302)
    handler.send_header("Location", "http://127.0.0.1:9/elsewhere")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def hanging(handler: BaseHTTPRequestHandler, query: bytes) -> None:
    """One byte every tenth of a second: each read succeeds in time, the whole never does."""
    handler.send_response(200)
    handler.send_header("Content-Length", "60000")
    handler.end_headers()
    for _ in range(600):
        handler.wfile.write(b"\x30")
        handler.wfile.flush()
        time.sleep(0.1)


def replaying(folder: Path) -> Answer:
    """Gives the stamp of another message: a good signature by the right authority, of the wrong imprint."""
    digest = "00" * 32
    query = subprocess.run(["openssl", "ts", "-query", "-digest", digest, "-sha256", "-cert"], capture_output=True, check=True).stdout
    return lambda handler, _: good(folder)(handler, query)


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """The address of a server that answers every query so."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name that http.server calls
            query = self.rfile.read(int(self.headers["Content-Length"]))
            with suppress(ConnectionError):  # the one who asked went away
                answer(self, query)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/tsa"
        finally:
            server.shutdown()


PICTURE = encode(np.zeros((16, 16, 3), np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tsa")
    make_authority(made)
    return made


@pytest.fixture(scope="module")
def root(folder: Path) -> bytes:
    return (folder / "root.pem").read_bytes()


def stamped(identity: Identity, answer: Answer, mode: Literal["try", "required"], anchors: bytes, seconds: float = 5.0) -> Signed:
    with serving(answer) as url:
        return sign_bytes(PICTURE, identity, options=SignOptions(timestamp=TimestampRule(mode, url, anchors, seconds)))


@pytest.mark.parametrize("mode", ["try", "required"])
def test_a_good_stamp_is_in_the_signature(own: Identity, folder: Path, root: bytes, mode: Literal["try", "required"]) -> None:
    one = stamped(own, good(folder), mode, root)
    assert (one.timestamp, one.timestamp_failure) == ("trusted", None)
    assert read(one.data, "image/png", b"").state == "valid"
    plain = sign_bytes(PICTURE, own)
    assert plain.timestamp == "none"
    assert len(one.data) > len(plain.data) + 1000
    assert b"Test TSA" in one.data
    assert b"Test TSA" not in plain.data


def test_without_anchors_a_stamp_is_unverified(own: Identity, folder: Path) -> None:
    assert stamped(own, good(folder), "required", b"").timestamp == "unverified"


def stranger(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_authority(tmp_path_factory.mktemp("stranger"))


REFUSALS = {
    "refusing": "answered with status 503",
    "redirecting": "answered with status 302",
    "rubbish": "of no use",
    "replaying": "of no use",
    "hanging": r"did not answer within 0\.3 s",
    "untrusted": "not trusted here",
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_stamp_that_cannot_be_had(own: Identity, folder: Path, root: bytes, kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    answers: dict[str, Answer] = {
        "refusing": refusing, "redirecting": redirecting, "rubbish": rubbish, "replaying": replaying(folder), "hanging": hanging,
        "untrusted": good(folder),
    }  # fmt: skip
    anchors = stranger(tmp_path_factory) if kind == "untrusted" else root
    seconds = 0.3 if kind == "hanging" else BUDGET_SECONDS
    with pytest.raises(ProvenanceUnavailable, match=REFUSALS[kind]) as caught:
        stamped(own, answers[kind], "required", anchors, seconds)
    assert "authority" in caught.value.message
    one = stamped(own, answers[kind], "try", anchors, seconds)
    assert one.timestamp == "none"
    assert one.timestamp_failure == caught.value.message
    assert b"Test TSA" not in one.data  # a stamp that does not count is not left in
    assert read(one.data, "image/png", b"").state == "valid"


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/tsa", "http://no-such-host.invalid/tsa"])
def test_an_authority_that_is_not_there(own: Identity, url: str) -> None:
    one = sign_bytes(PICTURE, own, options=SignOptions(timestamp=TimestampRule("try", url)))
    assert one.timestamp_failure is not None
    assert "cannot be reached" in one.timestamp_failure
    with pytest.raises(ProvenanceUnavailable, match="cannot be reached"):
        sign_bytes(PICTURE, own, options=SignOptions(timestamp=TimestampRule("required", url)))


def test_a_signature_that_fails_by_itself_is_not_blamed_on_the_authority(own: Identity, dev: Identity, folder: Path) -> None:
    broken = replace(own, private_key_pem=dev.private_key_pem)
    for mode in ("try", "required"):
        with pytest.raises(ProvenanceUnavailable) as caught:
            stamped(broken, good(folder), mode, b"")
        assert "authority" not in caught.value.message


@pytest.mark.parametrize("url", [None, "", "ftp://x/", "file:///etc/passwd", "http://", "tsa.example"])
def test_bad_addresses_are_refused(url: str | None) -> None:
    with pytest.raises(InputError, match="address"):
        TimestampRule("required", url)
    assert TimestampRule("off", url).mode == "off"


@pytest.mark.parametrize("seconds", [0.0, -1.0, 61.0, float("nan")])
def test_bad_budgets_are_refused(seconds: float) -> None:
    with pytest.raises(InputError, match="out of range"):
        TimestampRule("try", "http://tsa.example", b"", seconds)
