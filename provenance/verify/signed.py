"""Signed reports: what was verified, when, with which verdict, under the state folder's identity, and the check of such a report.

The file is a JWS in flattened JSON form (RFC 7515) with the certificate chain in `x5c`, so that any JOSE library can check it too. The time
is the verifier's own clock. The report holds hashes and verdicts, not pictures. Knows nothing of how a verdict was found.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from platemark import __version__
from platemark.errors import InputError, ProvenanceUnavailable
from platemark.imaging import read_bytes
from platemark.provenance.callbacks import Guarded, SignCallback
from platemark.provenance.home import home as default_home
from platemark.provenance.identity import DEVELOPMENT_NAME, Identity, load_identity
from platemark.provenance.trust import TrustLists, held_trust

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

FORMAT = "platemark-verification-report"
_TYPE = "platemark-verification-report+json"
_JOSE = {"es256": "ES256", "es384": "ES384", "es512": "ES512", "ps256": "PS256", "ed25519": "EdDSA"}
_MAX_REPORT = 64 << 20
_MAX_CHAIN = 8
_DAMAGED = "make it again with `platemark verify --signed-report`"


class ReportCheck(BaseModel):
    """What a signed report is worth. `trust` is that of its signer here and now; `files` are the entries as they were signed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    signature: Literal["valid", "invalid"]
    trust: Literal["trusted", "untrusted", "development identity"]
    signer: str
    time: str
    verifier: str
    files: list[dict[str, Any]]


def sign_report(entries: Iterable[Mapping[str, Any]], *, home: str | Path | None = None) -> bytes:
    """Signs the lines of a verification (`FileReport` or `FileError` as dicts), each cut down to its hash, verdict, axes and layer states.

    Raises `InputError` (no identity in the state folder) or `ProvenanceUnavailable` (it cannot sign).
    """
    identity = signer(home)
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    files = [_entry(one) for one in entries]
    payload = {"format": FORMAT, "version": 1, "time": now, "verifier": f"platemark/{__version__}", "files": files}
    header = {"alg": _JOSE[identity.algorithm], "typ": _TYPE, "x5c": _x5c(identity.chain_pem)}
    protected, body = _encoded(header), _encoded(payload)
    signature = _sign(identity, f"{protected}.{body}".encode())
    return json.dumps({"payload": body, "protected": protected, "signature": _b64(signature)}, indent=1).encode() + b"\n"


def signer(home: str | Path | None = None) -> Identity:
    """Who signs reports here. Raises `InputError` (nobody) or `ProvenanceUnavailable` (expired, damaged)."""
    identity = load_identity(default_home(home))
    if identity is None:
        raise InputError("there is no identity that could sign the report", "run `platemark keys init`")
    return identity


def check_report(source: bytes | str | Path, *, home: str | Path | None = None, trust: TrustLists | None = None) -> ReportCheck:
    """Checks a signed report's signature and its signer's chain. Raises `InputError` for a file that is no such report."""
    header, payload, message, signature = _parsed(read_bytes(source, max_bytes=_MAX_REPORT))
    chain = _chain(header)
    lists = held_trust(default_home(home))
    name = _common_name(chain[0])
    return ReportCheck(
        signature="valid" if _holds(chain[0], str(header.get("alg")), signature, message) else "invalid",
        trust=_trust(chain, name, (lists.plus(trust) if trust else lists).signers),
        signer=name,
        time=str(payload.get("time")),
        verifier=str(payload.get("verifier")),
        files=[entry for entry in payload["files"] if isinstance(entry, dict)],
    )


def _entry(line: Mapping[str, Any]) -> dict[str, Any]:
    name = {"file": Path(str(line.get("file", ""))).name}
    if "error" in line:
        return name | {"error": dict(line["error"])}
    states = {layer: values["state"] for layer, values in line["layers"].items()}
    return name | {key: line[key] for key in ("sha256", "verdict", "axes", "content_id", "issuer")} | {"layers": states}


def _sign(identity: Identity, message: bytes) -> bytes:
    """ECDSA as r‖s, RSA-PSS or Ed25519: the forms of JOSE. The signature was checked against the certificate."""
    guarded = Guarded(identity.callback or _by_key(identity), identity.algorithm, identity.chain_pem)
    signature = guarded(message)
    guarded.reraise()
    return signature


def _by_key(identity: Identity) -> SignCallback:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(identity.private_key_pem, None)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        digest = {"es256": hashes.SHA256(), "es384": hashes.SHA384(), "es512": hashes.SHA512()}[identity.algorithm]
        return lambda message: key.sign(message, ec.ECDSA(digest))
    if isinstance(key, rsa.RSAPrivateKey):
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
        return lambda message: key.sign(message, pss, hashes.SHA256())
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign
    raise ProvenanceUnavailable("the identity's key cannot sign reports", "use an ECDSA, RSA or Ed25519 key")


def _holds(certificate: Certificate, algorithm: str, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    key, half = certificate.public_key(), len(signature) // 2
    digest = {"ES256": hashes.SHA256(), "ES384": hashes.SHA384(), "ES512": hashes.SHA512()}.get(algorithm)
    try:
        if isinstance(key, ec.EllipticCurvePublicKey) and digest is not None:
            der = encode_dss_signature(int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big"))
            key.verify(der, message, ec.ECDSA(digest))
        elif isinstance(key, rsa.RSAPublicKey) and algorithm == "PS256":
            key.verify(signature, message, padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH), hashes.SHA256())
        elif isinstance(key, ed25519.Ed25519PublicKey) and algorithm == "EdDSA":
            key.verify(signature, message)
        else:
            return False
    except (InvalidSignature, ValueError):
        return False
    return True


def _trust(chain: list[Certificate], signer: str, anchors_pem: bytes) -> Literal["trusted", "untrusted", "development identity"]:
    """Whether the chain leads, certificate by certificate and each valid now, to a root that is trusted here."""
    from cryptography import x509

    if signer == DEVELOPMENT_NAME:
        return "development identity"
    anchors = x509.load_pem_x509_certificates(anchors_pem) if anchors_pem else []
    now, current = datetime.now(UTC), chain[0]
    for above in [*chain[1:], None]:
        if not current.not_valid_before_utc <= now <= current.not_valid_after_utc:
            return "untrusted"
        if any(_issued(current, anchor) and anchor.not_valid_after_utc >= now for anchor in anchors):
            return "trusted"
        if above is None or not _issued(current, above):
            return "untrusted"
        current = above
    return "untrusted"


def _issued(certificate: Certificate, issuer: Certificate) -> bool:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    try:
        certificate.verify_directly_issued_by(issuer)
        return issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False


def _parsed(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes, bytes]:
    """Header, payload, the bytes that were signed, and the signature."""
    try:
        outer = json.loads(data)
        protected, body, signature = (str(outer[key]) for key in ("protected", "payload", "signature"))
        header, payload = json.loads(_unb64(protected)), json.loads(_unb64(body))
        if header["typ"] != _TYPE or payload["format"] != FORMAT or payload["version"] != 1 or not isinstance(payload["files"], list):
            raise InputError("this is a signed report of another kind or version", "upgrade Platemark, or give another file")
        return header, payload, f"{protected}.{body}".encode(), _unb64(signature)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError("this is no signed report, or a damaged one", _DAMAGED) from error


def _chain(header: dict[str, Any]) -> list[Certificate]:
    from cryptography import x509

    chain = header.get("x5c")
    if not isinstance(chain, list) or not 1 <= len(chain) <= _MAX_CHAIN or not all(isinstance(one, str) for one in chain):
        raise InputError("the signed report has no certificate chain", _DAMAGED)
    try:
        return [x509.load_der_x509_certificate(base64.b64decode(one, validate=True)) for one in chain]
    except (ValueError, binascii.Error) as error:
        raise InputError("the signed report's certificate chain is damaged", _DAMAGED) from error


def _x5c(chain_pem: bytes) -> list[str]:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    chain = x509.load_pem_x509_certificates(chain_pem)
    return [base64.b64encode(certificate.public_bytes(Encoding.DER)).decode() for certificate in chain]


def _common_name(certificate: Certificate) -> str:
    from cryptography import x509

    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value) if names else certificate.subject.rfc4514_string()


def _encoded(value: dict[str, Any]) -> str:
    return _b64(json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode())


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
