"""Whom this machine believes: lists of root certificates by purpose, and the C2PA library's settings made of them.

    $PLATEMARK_HOME/trust/*.pem        roots of claim signers
    $PLATEMARK_HOME/trust/tsa/*.pem    roots of time-stamping authorities (RFC 3161)
    $PLATEMARK_HOME/trust/cawg/*.pem   roots of CAWG identities

The library takes one list for everything it is told of, and silently ignores settings that it does not know. So purposes are kept apart
here (a root counts for its own purpose alone), and settings go through a model that refuses unknown keys. Nothing is fetched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from platemark.errors import InputError, ProvenanceUnavailable
from platemark.imaging import read_bytes
from platemark.provenance.c2pa_context import EKUS
from platemark.provenance.home import read_state
from platemark.provenance.identity import authorities

if TYPE_CHECKING:
    from c2pa import Context  # type: ignore[import-untyped]

FOLDER = "trust"
_PURPOSES = ("signers", "tsa", "cawg")
_MAX_LIST = 8 << 20
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True)
class TrustLists:
    """Root certificates (PEM, one after the other) by what they vouch for."""

    signers: bytes = b""
    tsa: bytes = b""
    cawg: bytes = b""

    def plus(self, other: TrustLists) -> TrustLists:
        return TrustLists(self.signers + other.signers, self.tsa + other.tsa, self.cawg + other.cawg)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Core(_Strict):
    allowed_network_hosts: list[str] = []
    allow_redirects: bool = False


class _Thumbnail(_Strict):
    enabled: bool = False


class _Builder(_Strict):
    thumbnail: _Thumbnail = _Thumbnail()


class _Verify(_Strict):
    remote_manifest_fetch: bool = False
    verify_after_sign: bool = False
    ocsp_fetch: bool = False
    verify_timestamp_trust: bool = True


class _Trust(_Strict):
    trust_config: str = EKUS
    trust_anchors: str | None = None


class _CawgTrust(_Strict):
    trust_anchors: str | None = None


class ReadSettings(_Strict):
    """The settings of the C2PA library that reading uses, all of them: no network, no thumbnails, our anchors."""

    core: _Core = _Core()
    builder: _Builder = _Builder()
    verify: _Verify = _Verify()
    trust: _Trust = _Trust()
    cawg_trust: _CawgTrust = _CawgTrust()


def check_settings(values: dict[str, Any]) -> dict[str, Any]:
    """The full settings for partial `values`. Raises `InputError` naming a key that is unknown or has a wrong type."""
    try:
        return ReadSettings.model_validate(values).model_dump(exclude_none=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"the reading setting {where!r} cannot be used: {first['msg']}", "see platemark.provenance.trust") from error


def reading_context(lists: TrustLists, *, verify_timestamp_trust: bool = True) -> Context:
    """A context that trusts claim signers under `lists.signers` and time stamps under `lists.tsa`, and fetches nothing.

    The library itself would believe a claim signer under a TSA root too: see `credentials.read`, which asks twice.
    """
    import c2pa

    anchors = lists.signers + lists.tsa
    values = {
        "verify": {"verify_timestamp_trust": verify_timestamp_trust},
        "trust": {"trust_anchors": anchors.decode("ascii")} if anchors else {},
        "cawg_trust": {"trust_anchors": lists.cawg.decode("ascii")} if lists.cawg else {},
    }
    return c2pa.Context(c2pa.Settings.from_dict(check_settings(values)))


def held_trust(home: Path) -> TrustLists:
    """The CAs made here by `keys init`, and the lists in the state folder. Raises `ProvenanceUnavailable` for one that cannot be used."""
    folder = home / FOLDER
    found = {"signers": authorities(home)}
    for purpose in _PURPOSES:
        at = folder if purpose == "signers" else folder / purpose
        for path in _files(at):
            data = read_state(path) or b""
            try:
                found[purpose] = found.get(purpose, b"") + certificates_in(data, str(path))
            except InputError as error:
                raise ProvenanceUnavailable(error.message, error.remedy) from error
    return TrustLists(**found)


def trust_from(signers: Iterable[str | Path] = (), tsa: Iterable[str | Path] = (), cawg: Iterable[str | Path] = ()) -> TrustLists:
    """Lists from PEM files named by the user. Raises `InputError` for a file that cannot be read or holds no certificates."""
    given = {"signers": signers, "tsa": tsa, "cawg": cawg}
    return TrustLists(**{purpose: b"".join(_from_file(path) for path in paths) for purpose, paths in given.items()})


def certificates_in(data: bytes, name: str) -> bytes:
    """The PEM certificates in a file, normalised, one a block. Raises `InputError` where there is none or one is damaged."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    blocks = _CERTIFICATE.findall(data)
    try:
        parsed = [x509.load_pem_x509_certificate(block) for block in blocks]
    except ValueError as error:
        raise InputError(f"the trust list {name[-120:]!r} holds a damaged certificate", "get the list anew") from error
    if not parsed:
        raise InputError(f"the trust list {name[-120:]!r} holds no PEM certificate", "give a PEM file with root certificates")
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in parsed)


def _from_file(path: str | Path) -> bytes:
    return certificates_in(read_bytes(path, max_bytes=_MAX_LIST), str(path))


def _files(folder: Path) -> list[Path]:
    """The PEM files of a folder, in order. Raises `ProvenanceUnavailable` for anything else in it, which would be silently ignored."""
    if not folder.is_dir():
        return []
    found = sorted(folder.iterdir())
    strange = [path for path in found if not (path.suffix == ".pem" and path.is_file()) and not (path.name in _PURPOSES and path.is_dir())]
    if strange:
        raise ProvenanceUnavailable(
            f"{str(strange[0])!r} is no trust list", f"keep only *.pem files, and the folders tsa and cawg, in {str(folder)!r}"
        )
    return [path for path in found if path.is_file()]
