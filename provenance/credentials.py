"""C2PA Content Credentials as found: reads and validates a manifest store, with c2pa-python. No network, no files.

The library mixes integrity and trust in one state, and is too kind in three ways; the translation is here:
a tampered ingredient leaves its state "Trusted" (the recorded results of ingredients are walked), roots of time-stamping authorities make
claim signers trusted (it is asked a second time without them), and certificates for other purposes may sign (`signer_certificate`).
Its exceptions, of several classes for one cause, are told apart by what they say. Knows nothing of signing, of watermark signals or of the
registry.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from platemark.provenance import manifest_store as store_of
from platemark.provenance.c2pa_context import one_line
from platemark.provenance.identity import DEVELOPMENT_NAME
from platemark.provenance.manifest_store import Ingredient
from platemark.provenance.signer_certificate import signer_certificates
from platemark.provenance.trust import TrustLists, reading_context

# These say that nobody we know vouches for the signer, or no longer; every other failure says that the content is not what was signed.
_TRUST_CODES = ("signingCredential.", "timeStamp.", "timestamp.", "cawg.", "claimSignature.outsideValidity")
# Of an ingredient whose credentials lie elsewhere nothing is known, which is no tampering.
_NO_INGREDIENT_FAULT = (*_TRUST_CODES, store_of.INACCESSIBLE)
# What binds the manifest to the bytes of the picture: all that may fail in the credentials of a re-encoded copy.
_BINDING_CODES = ("assertion.dataHash.", "assertion.bmffHash.", "assertion.boxesHash.", "assertion.multiAssetHash.")

State = Literal["absent", "valid", "invalid", "corrupt", "remote"]
Trust = Literal["trusted", "development identity", "untrusted"]
TimeStamp = Literal["none", "trusted", "untrusted", "invalid"]


@dataclass(frozen=True)
class CredentialReport:
    """What the credentials of a file say.

    `state`: `absent`; `valid` (the content is what was signed); `invalid` (it is not: see `failures`); `corrupt` (there is a manifest that
    cannot be read: see `detail`); `remote` (only the address of a manifest, in `detail`; it is not fetched).
    `trust_failures` concern the signer alone; `ingredient_failures` are integrity failures of what the picture was made from.
    `soft_bindings`: (algorithm, value) pairs. `trust` is None where there is no readable manifest. `created`, `software_agent`: of the
    first action; `record`: the assertion of ours that holds the facts. `time_stamp`: of the claim, with the time it states in `signed_at`.
    """

    state: State
    detail: str = ""
    label: str = ""
    signer: str = ""
    organization: str = ""
    claim_generator: str = ""
    spec_version: str = ""
    trust: Trust | None = None
    failures: tuple[str, ...] = ()
    trust_failures: tuple[str, ...] = ()
    ingredient_failures: tuple[str, ...] = ()
    ingredients: tuple[Ingredient, ...] = ()
    actions: tuple[str, ...] = ()
    digital_source_type: str = ""
    soft_bindings: tuple[tuple[str, str], ...] = ()
    created: str = ""
    software_agent: str = ""
    time_stamp: TimeStamp = "none"
    signed_at: str = ""
    record: dict[str, str] | None = None

    @property
    def detached(self) -> bool:
        """Whether the credentials are whole and nothing but their bond to these very bytes fails: those of a copy's original."""
        return self.state == "invalid" and bool(self.failures) and all(code.startswith(_BINDING_CODES) for code in self.failures)


def read(data: bytes, mime: str, trust: TrustLists | bytes = b"", *, manifest: bytes | None = None) -> CredentialReport:
    """Reads and validates the credentials of a picture: those embedded, or a `manifest` store that was kept elsewhere.

    `trust`: whom to believe; bytes are PEM roots of claim signers. Raises nothing.
    """
    lists = TrustLists(signers=trust) if isinstance(trust, bytes) else trust
    parsed = _parsed(data, mime, lists, manifest)
    if isinstance(parsed, str):
        return _failed(parsed, data if manifest is None else b"c2pa")
    report = _report(parsed, lists)
    return replace(report, **_checked_trust(report, parsed, data, mime, lists, manifest))


def _parsed(
    data: bytes, mime: str, lists: TrustLists, manifest: bytes | None, *, verify_timestamp_trust: bool = True
) -> dict[str, Any] | str:
    """The library's answer, or what it raised as one line."""
    import c2pa  # type: ignore[import-untyped]

    try:
        with (
            reading_context(lists, verify_timestamp_trust=verify_timestamp_trust) as context,
            c2pa.Reader(mime, io.BytesIO(data), manifest, context=context) as reader,
        ):
            answer = json.loads(reader.json())
    except c2pa.C2paError as error:
        return one_line(error)
    except (ValueError, RecursionError):
        return "the manifest cannot be shown as JSON"
    return answer if isinstance(answer, dict) else "the manifest cannot be shown as JSON"


def _checked_trust(
    report: CredentialReport, parsed: dict[str, Any], data: bytes, mime: str, lists: TrustLists, manifest: bytes | None
) -> dict[str, Any]:
    """What changes in a report whose signer the library trusts, once purposes are kept apart."""
    if report.trust != "trusted":
        return {}
    if lists.tsa:
        without = _parsed(data, mime, TrustLists(lists.signers), manifest, verify_timestamp_trust=False)
        if isinstance(without, str) or not _vouched(without):
            return {"trust": "untrusted", "trust_failures": ("signingCredential.untrusted", *report.trust_failures)}
    problem = _certificate_problem(parsed, data if manifest is None else manifest, report.time_stamp)
    if problem is not None:
        code, why = problem
        return {"trust": "untrusted", "trust_failures": (code, *report.trust_failures), "detail": why}
    return {}


def _certificate_problem(parsed: dict[str, Any], data: bytes, time_stamp: TimeStamp) -> tuple[str, str] | None:
    """Why the signing certificate may not be trusted though its root is: a status code, and the reason in words."""
    signature = store_of.active(parsed).get("signature_info") or {}
    serial = str(signature.get("cert_serial_number") or "0")
    certificates = signer_certificates(data, int(serial) if serial.isdecimal() and len(serial) < 60 else 0)
    if not certificates:
        return "signingCredential.invalid", "the signing certificate could not be read, so its purpose could not be checked"
    if not all(certificate.may_sign for certificate in certificates):
        return "signingCredential.invalid", "the signing certificate is not for signing claims"
    if time_stamp != "trusted" and any(certificate.expires < datetime.now(UTC) for certificate in certificates):
        return "signingCredential.expired", "the time stamp that would show when it was signed is not trusted here"
    return None


def _failed(message: str, data: bytes) -> CredentialReport:
    """The meaning of an exception of the library, by its text: classes vary for one cause."""
    said = message.lower()
    if "must fetch remote" in said or said.startswith("remote"):
        return CredentialReport("remote", detail=message[message.find("http") :] if "http" in message else message)
    if "no jumbf data found" in said or not _mentions_manifest(data):
        return CredentialReport("absent")
    return CredentialReport("corrupt", detail=message)


def _mentions_manifest(data: bytes) -> bool:
    """Whether the bytes could hold a manifest store at all: a file that cannot be parsed and holds none is not a broken credential."""
    return b"c2pa" in data or b"jumb" in data or b"caBX" in data


def _report(parsed: dict[str, Any], lists: TrustLists) -> CredentialReport:
    manifest = store_of.active(parsed)
    codes = store_of.failure_codes(parsed)
    failures = {code for code in codes if not code.startswith(_TRUST_CODES)} | _unproven(parsed)
    ingredients = tuple(store_of.ingredients(parsed, _NO_INGREDIENT_FAULT))
    below = {code for code in store_of.delta_codes(parsed) if not code.startswith(_NO_INGREDIENT_FAULT)}
    below = (below | {code for ingredient in ingredients for code in ingredient.failures}) - failures
    signature = manifest.get("signature_info") or {}
    signer = str(signature.get("common_name") or "")
    actions = list(store_of.actions(manifest))
    return CredentialReport(
        state="invalid" if failures or below else "valid",
        label=str(parsed.get("active_manifest") or ""),
        signer=signer,
        organization=str(signature.get("issuer") or ""),
        claim_generator=store_of.generator(manifest),
        spec_version=store_of.spec_version(manifest),
        trust=_trust(parsed, signer),
        failures=tuple(sorted(failures)),
        trust_failures=tuple(sorted(code for code in codes if code.startswith(_TRUST_CODES))),
        ingredient_failures=tuple(sorted(below)),
        ingredients=ingredients,
        actions=tuple(str(action.get("action")) for action in actions),
        digital_source_type=store_of.first_text(actions, "digitalSourceType"),
        soft_bindings=tuple(store_of.soft_bindings(manifest)),
        created=store_of.first_text(actions, "when"),
        software_agent=store_of.agent(actions),
        time_stamp=_time_stamp(parsed, lists),
        signed_at=str(signature.get("time") or ""),
        record=store_of.record(manifest),
    )


def _unproven(parsed: dict[str, Any]) -> set[str]:
    """Failures that the library may leave out: a claim counts as signed only where it says so, not where it says nothing."""
    return set() if "claimSignature.validated" in store_of.codes(parsed, "success") else {"claimSignature.mismatch"}


def _trust(parsed: dict[str, Any], signer: str) -> Trust:
    if signer == DEVELOPMENT_NAME:  # whoever claims this name says that the signature proves nothing
        return "development identity"
    return "trusted" if _vouched(parsed) else "untrusted"


def _vouched(parsed: dict[str, Any]) -> bool:
    """Whether the signature holds and its certificate leads to a root that is believed. Says nothing of the picture's integrity."""
    success = store_of.codes(parsed, "success")
    failed = store_of.failure_codes(parsed)
    return {"signingCredential.trusted", "claimSignature.validated"} <= success and not any(
        code.startswith(("signingCredential.", "claimSignature.")) for code in failed
    )


def _time_stamp(parsed: dict[str, Any], lists: TrustLists) -> TimeStamp:
    """The library calls every well-formed stamp on a claim of version 1 trusted, whoever made it; here it takes a root that is trusted."""
    said = {code for kind in ("success", "informational", "failure") for code in store_of.codes(parsed, kind)}
    if said & {"timeStamp.mismatch", "timeStamp.malformed", "timeStamp.outsideValidity"}:
        return "invalid"
    if "timeStamp.trusted" in said and lists.tsa and store_of.claim_version(parsed) >= 2:
        return "trusted"
    return "untrusted" if said & {"timeStamp.trusted", "timeStamp.validated", "timeStamp.untrusted"} else "none"
