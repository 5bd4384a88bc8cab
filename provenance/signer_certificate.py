"""The certificate that signed a claim, found in the bytes of a picture, and whether its purpose allows that.

The C2PA library accepts certificates for time stamping alone as claim signers; the C2PA certificate profile does not. The library tells
the serial number; the certificate itself is looked for in the file, whose JPEG segments and GIF sub-blocks are joined first.
Knows nothing of trust lists or of what was signed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

# emailProtection, documentSigning, c2pa-kp-claimSigning (C2PA 2.4, certificate profile)
_ALLOWED = {"1.3.6.1.5.5.7.3.4", "1.3.6.1.5.5.7.3.36", "1.3.6.1.4.1.62558.2.1"}
_NEVER = {"1.3.6.1.5.5.7.3.8", "1.3.6.1.5.5.7.3.9", "2.5.29.37.0"}  # time stamping, OCSP signing, any: never beside the above
_REACH = 24  # bytes from the start of a certificate to its serial number, at most
_MANY = 100  # certificates of one serial number that are looked at


@dataclass(frozen=True)
class SignerCertificate:
    """What matters of a certificate: its extended key usages (dotted) and its last moment of validity (UTC)."""

    purposes: frozenset[str]
    expires: datetime

    @property
    def may_sign(self) -> bool:
        """Whether its purpose is signing claims, and neither time stamping nor everything."""
        return bool(self.purposes & _ALLOWED) and not self.purposes & _NEVER


def signer_certificates(data: bytes, serial: int) -> list[SignerCertificate]:
    """The certificates of that serial number in a picture's bytes: one, unless somebody plants another. Empty for compressed manifests."""
    return _found(data, serial) or _found(b"".join(_joined(data)), serial)


def _found(data: bytes, serial: int) -> list[SignerCertificate]:
    if serial <= 0:
        return []
    number = serial.to_bytes(serial.bit_length() // 8 + 1, "big")  # DER: with a leading zero where the first bit would be set
    needle, found, at = b"\x02" + bytes([len(number)]) + number, list[SignerCertificate](), -1
    while len(number) < 128 and len(found) < _MANY and (at := data.find(needle, at + 1)) >= 0:
        for start in range(max(0, at - _REACH), at):
            certificate = _certificate(data, start, serial)
            if certificate is not None:
                found.append(certificate)
                break
    return found


def _certificate(data: bytes, start: int, serial: int) -> SignerCertificate | None:
    """The certificate that starts here; None where none does."""
    from cryptography import x509

    if data[start : start + 2] != b"\x30\x82":
        return None
    size = 4 + int.from_bytes(data[start + 2 : start + 4], "big")
    try:
        certificate = x509.load_der_x509_certificate(data[start : start + size])
        if certificate.serial_number != serial:
            return None
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        purposes = frozenset(purpose.dotted_string for purpose in usage)
    except x509.ExtensionNotFound:
        purposes = frozenset()
    except (ValueError, x509.DuplicateExtension):
        return None
    return SignerCertificate(purposes, certificate.not_valid_after_utc)


def _joined(data: bytes) -> Iterator[bytes]:
    """The manifest's bytes without what a JPEG or GIF puts between them."""
    if data.startswith(b"\xff\xd8"):
        yield from _jpeg_parts(data)
    elif data.startswith(b"GIF8") and (at := data.find(b"C2PA_GIF\x01\x00\x00")) >= 0:
        at += 11
        while at < len(data) and (size := data[at]):
            yield data[at + 1 : at + 1 + size]
            at += 1 + size


def _jpeg_parts(data: bytes) -> Iterator[bytes]:
    """APP11 segments: marker, length, "JP", instance, sequence number, then LBox and TBox, which are repeated in each after the first."""
    at = 2
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data) and data[at + 1] not in (0xDA, 0xD9):
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xEB and data[at + 4 : at + 6] == b"JP":
            sequence = int.from_bytes(data[at + 8 : at + 12], "big")
            yield data[at + (12 if sequence <= 1 else 20) : at + 2 + size]
        at += 2 + max(size, 2)
