"""Signing with a key that is elsewhere: a function or a program that signs (HSM, KMS, smart card). Knows nothing of pictures.

The C2PA library swallows what a callback raises and takes what it returns unseen, so `Guarded` stands between: it keeps the exception,
brings ECDSA signatures into the raw form, and checks each against the certificate before the library gets it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from platemark.errors import InputError, ProvenanceUnavailable
from platemark.provenance.certificates import Algorithm

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

# From the bytes to sign (not their digest) to the signature: ECDSA raw r‖s or DER with the curve's SHA-2, RSA-PSS with SHA-256, or Ed25519.
SignCallback = Callable[[bytes], bytes]
COMMAND_SECONDS = 10.0
_MAX_SIGNATURE = 4096  # bytes
_COORDINATE = {"es256": 32, "es384": 48, "es512": 66}  # bytes of r and of s
_REMEDY = "check the key service that signs; nothing was released"


class Guarded:
    """A callback as the C2PA library may have it: never raises, and returns nothing where there is no good signature.

    Whoever signs with it calls `reraise` after a failure.
    """

    def __init__(self, callback: SignCallback, algorithm: Algorithm, certificate_pem: bytes) -> None:
        from cryptography import x509

        self._callback, self._algorithm = callback, algorithm
        self._key = x509.load_pem_x509_certificate(certificate_pem).public_key()
        self._kept = _Kept()

    def __call__(self, message: bytes) -> bytes:
        with self._kept:
            return self._sign(message)
        return b""

    def reraise(self) -> None:
        """Raises what went wrong in the callback, if anything, as `ProvenanceUnavailable`; an interrupt or exit as it is."""
        error = self._kept.error
        if error is None:
            return
        if isinstance(error, ProvenanceUnavailable) or not isinstance(error, Exception):
            raise error
        raise ProvenanceUnavailable(f"the signing callback failed ({type(error).__name__})", _REMEDY) from error

    def _sign(self, message: bytes) -> bytes:
        signature = self._callback(message)
        if not isinstance(signature, bytes) or not 0 < len(signature) <= _MAX_SIGNATURE:
            raise ProvenanceUnavailable("the signing callback returned no signature", _REMEDY)
        for form in _forms(signature, self._algorithm):
            if _fits(self._key, self._algorithm, form, message):
                return form
        raise ProvenanceUnavailable("the signing callback's signature does not fit the certificate", _REMEDY)


class _Kept:
    """Keeps the exception that leaves its block, and ends it there: one raised into the library's C code would be lost."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        self.error = error
        return True


def command_callback(command: Sequence[str], *, seconds: float = COMMAND_SECONDS) -> SignCallback:
    """A callback that runs a program: the bytes to sign on its standard input, the signature alone on its standard output.

    The program is run as it is given, without a shell. The callback raises `ProvenanceUnavailable`.
    """
    if not command:
        raise InputError("the signer command is empty", "give a program, and its arguments")
    argv = list(command)

    def sign(message: bytes) -> bytes:
        name = argv[0][-60:]
        try:
            done = subprocess.run(argv, input=message, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=seconds, check=False)
        except subprocess.TimeoutExpired as error:
            raise ProvenanceUnavailable(f"the signer command {name!r} took longer than {seconds:g} s", _REMEDY) from error
        except (OSError, ValueError) as error:
            raise ProvenanceUnavailable(f"the signer command {name!r} cannot be run", "correct it with `platemark keys import`") from error
        if done.returncode != 0:
            raise ProvenanceUnavailable(f"the signer command {name!r} ended with status {done.returncode}", _REMEDY)
        return done.stdout

    return sign


def _forms(signature: bytes, algorithm: Algorithm) -> list[bytes]:
    """The raw forms that `signature` can be read as."""
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    size = _COORDINATE.get(algorithm)
    if size is None:
        return [signature]
    forms = [signature] if len(signature) == 2 * size else []
    try:
        r, s = decode_dss_signature(signature)
        forms.append(r.to_bytes(size, "big") + s.to_bytes(size, "big"))
    except (ValueError, OverflowError):  # not DER, or of a larger curve
        pass
    return forms


def _fits(key: CertificatePublicKeyTypes, algorithm: Algorithm, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            size = len(signature) // 2
            der = encode_dss_signature(int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big"))
            digests: dict[str, hashes.HashAlgorithm] = {"es256": hashes.SHA256(), "es384": hashes.SHA384(), "es512": hashes.SHA512()}
            key.verify(der, message, ec.ECDSA(digests[algorithm]))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, message, padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH), hashes.SHA256())
        elif isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, message)
        else:
            return False
    except InvalidSignature:
        return False
    return True
