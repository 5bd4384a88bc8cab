"""C2PA Content Credentials: signs bytes in memory and reads what is embedded, with c2pa-python. No network, no files, no trust lists.

Contexts of the C2PA library die in forked children, so each call makes its own. The library's answers are translated here: its exceptions
(several classes for one cause) by what they say, its failure codes into integrity and trust, which it mixes in one state.
Knows nothing of watermark signals or of the registry.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from platemark.errors import ProvenanceUnavailable
from platemark.provenance.identity import DEVELOPMENT_NAME, Identity
from platemark.provenance.record import DIGITAL_SOURCE_TYPE, Facts

if TYPE_CHECKING:
    from c2pa import Context  # type: ignore[import-untyped]

SPEC_VERSION = "2.4.0"
WATERMARK_ALGORITHM = "com.platemark.wm.1"
RECORD_LABEL = "com.platemark.record"
_ENHANCED = "http://cv.iptc.org/newscodes/digitalsourcetype/algorithmicallyEnhanced"
# emailProtection, documentSigning, c2pa-kp-claimSigning: by default the library accepts the first alone, and calls the others invalid.
_EKUS = "1.3.6.1.5.5.7.3.4\n1.3.6.1.5.5.7.3.36\n1.3.6.1.4.1.62558.2.1\n"
# These say that nobody we know vouches for the signer, or no longer; every other failure says that the content is not what was signed.
_TRUST_CODES = ("signingCredential.", "timeStamp.", "timestamp.", "cawg.", "claimSignature.outsideValidity")

State = Literal["absent", "valid", "invalid", "corrupt", "remote"]
Trust = Literal["trusted", "development identity", "untrusted"]


@dataclass(frozen=True)
class Signed:
    """Signed bytes, the manifest store alone, and the label of the active manifest."""

    data: bytes
    manifest: bytes
    label: str


@dataclass(frozen=True)
class CredentialReport:
    """What the credentials of a file say.

    `state`: `absent`; `valid` (the content is what was signed); `invalid` (it is not: see `failures`); `corrupt` (there is a manifest that
    cannot be read: see `detail`); `remote` (only the address of a manifest, in `detail`; it is not fetched).
    `trust_failures` concern the signer alone; `ingredient_failures` are integrity failures of what the picture was made from.
    `soft_bindings`: (algorithm, value) pairs. `trust` is None where there is no readable manifest.
    """

    state: State
    detail: str = ""
    label: str = ""
    signer: str = ""
    organization: str = ""
    claim_generator: str = ""
    trust: Trust | None = None
    failures: tuple[str, ...] = ()
    trust_failures: tuple[str, ...] = ()
    ingredient_failures: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    digital_source_type: str = ""
    soft_bindings: tuple[tuple[str, str], ...] = ()


def sign(
    data: bytes, mime: str, facts: Facts, identity: Identity, *, created: str, generator: str, content_id: int, payload: str | None
) -> Signed:
    """Signs encoded picture bytes.

    `created`: RFC 3339; `generator`: "platemark/0.1.0"; `payload`: of the watermark in the pixels (hex), or None.
    The result has been read back once and is valid. Raises `ProvenanceUnavailable`.
    """
    import c2pa

    manifest = _manifest(facts, identity, created=created, generator=generator, content_id=content_id, payload=payload)
    out = io.BytesIO()
    try:
        info = c2pa.C2paSignerInfo(b"es256", identity.chain_pem, identity.private_key_pem, None)
        with _context(b"") as context, c2pa.Signer.from_info(info) as signer, c2pa.Builder(manifest, context=context) as builder:
            store = builder.sign(signer, mime, io.BytesIO(data), out)
    except c2pa.C2paError as error:
        raise ProvenanceUnavailable(
            f"signing failed: {_one_line(error)}", "run `platemark keys show`; the certificate or the format may not do"
        ) from error
    signed = out.getvalue()
    report = read(signed, mime, b"")
    if report.state != "valid":
        why = ", ".join(report.failures) or report.detail or report.state
        raise ProvenanceUnavailable(f"the signed file does not verify: {why}", "report this with the file's format and size")
    return Signed(signed, bytes(store), report.label)


def read(data: bytes, mime: str, anchors: bytes) -> CredentialReport:
    """Reads and validates the embedded credentials; `anchors`: PEM certificates of the CAs that count as trusted. Raises nothing."""
    import c2pa

    try:
        with _context(anchors) as context, c2pa.Reader(mime, io.BytesIO(data), context=context) as reader:
            return _report(json.loads(reader.json()))
    except c2pa.C2paError as error:
        return _failed(_one_line(error), data)


def _context(anchors: bytes) -> Context:
    """A context without network, thumbnails or anchors but ours."""
    import c2pa

    trust = {"trust_config": _EKUS} | ({"trust_anchors": anchors.decode("ascii")} if anchors else {})
    settings = {
        "core": {"allowed_network_hosts": [], "allow_redirects": False},
        "builder": {"thumbnail": {"enabled": False}},
        "verify": {"remote_manifest_fetch": False, "verify_after_sign": False, "ocsp_fetch": False},
        "trust": trust,
    }
    return c2pa.Context(c2pa.Settings.from_dict(settings))


def _manifest(facts: Facts, identity: Identity, *, created: str, generator: str, content_id: int, payload: str | None) -> dict[str, Any]:
    name, _, version = generator.partition("/")
    agent = {"name": name, "version": version}
    assertions = [
        {
            "label": "c2pa.actions.v2",
            "created": True,
            "data": {"allActionsIncluded": True, "actions": _actions(facts, agent, created, payload)},
        },
        {"label": RECORD_LABEL, "created": True, "data": _record(facts, identity, content_id, payload)},
    ]
    if payload is not None:
        binding = {"alg": WATERMARK_ALGORITHM, "blocks": [{"scope": {}, "value": payload}]}
        assertions.insert(1, {"label": "c2pa.soft-binding", "created": True, "data": binding})
    return {"claim_generator_info": [agent | {"specVersion": SPEC_VERSION}], "assertions": assertions}


def _actions(facts: Facts, agent: dict[str, str], created: str, payload: str | None) -> list[dict[str, Any]]:
    """Created, then cropped, resized and blurred where that was done, then watermarked: the order in which they happened."""
    common = {"when": created, "softwareAgent": agent}
    model = {"com.platemark.model": facts.model_name, "com.platemark.seed": str(facts.seed)}
    actions: list[dict[str, Any]] = [{"action": "c2pa.created", "digitalSourceType": DIGITAL_SOURCE_TYPE, "parameters": model, **common}]
    edits: list[tuple[str, dict[str, str]]] = []
    if facts.resampled_from is not None:
        height, width = facts.resampled_from
        source = {"com.platemark.from": f"{width}x{height}"}
        edits += [("c2pa.cropped", source)] if facts.cropped else []
        edits += [("c2pa.resized", {"com.platemark.filter": "lanczos"} | source)] if facts.resampled else []
    if facts.blurred:
        edits.append(("c2pa.filtered", {"com.platemark.filter": "blur", "com.platemark.reason": "policy"}))
    actions += [{"action": name, "digitalSourceType": _ENHANCED, "parameters": how, **common} for name, how in edits]
    if payload is not None:
        actions.append({"action": "c2pa.watermarked.bound", **common})
    return actions


def _record(facts: Facts, identity: Identity, content_id: int, payload: str | None) -> dict[str, Any]:
    """The facts as an assertion of our own. Big integers as strings: the format keeps 63 bits."""
    decision = {key: facts.decision[key] for key in ("action", "policy_id", "policy_sha256") if key in facts.decision}
    return {
        "contentId": str(content_id),
        "issuer": identity.issuer,
        "modelName": facts.model_name,
        "modelSha256": facts.model_sha256,
        "bundleSha256": facts.bundle_sha256,
        "seed": str(facts.seed),
        "requestHmac": facts.request_hmac,
        "settings": facts.settings,
        "decision": decision,
        "watermarkPayload": payload or "",
    }


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


def _report(store: dict[str, Any]) -> CredentialReport:
    manifests = store.get("manifests") or {}
    label = str(store.get("active_manifest") or "")
    active = manifests.get(label) or {}
    results = store.get("validation_results") or {}
    codes = set(_codes(results.get("activeManifest"))) | {str(status.get("code")) for status in store.get("validation_status") or ()}
    failures = {code for code in codes if not code.startswith(_TRUST_CODES)}
    below = {code for code in _ingredient_codes(manifests, results) if not code.startswith(_TRUST_CODES)} - failures
    signature = active.get("signature_info") or {}
    signer = str(signature.get("common_name") or "")
    actions = list(_active_actions(active))
    return CredentialReport(
        state="invalid" if failures or below else "valid",
        label=label,
        signer=signer,
        organization=str(signature.get("issuer") or ""),
        claim_generator=_generator(active),
        trust=_trust(str(store.get("validation_state")), signer, codes),
        failures=tuple(sorted(failures)),
        trust_failures=tuple(sorted(codes - failures - below)),
        ingredient_failures=tuple(sorted(below)),
        actions=tuple(str(action.get("action")) for action in actions),
        digital_source_type=next((str(a["digitalSourceType"]) for a in actions if a.get("digitalSourceType")), ""),
        soft_bindings=tuple(_soft_bindings(active)),
    )


def _trust(state: str, signer: str, codes: set[str]) -> Trust:
    if signer == DEVELOPMENT_NAME:  # whoever claims this name says that the signature proves nothing
        return "development identity"
    return "trusted" if state == "Trusted" and not any(code.startswith("signingCredential.") for code in codes) else "untrusted"


def _codes(results: Any) -> Iterator[str]:
    for failure in (results or {}).get("failure") or ():
        yield str(failure.get("code"))


def _ingredient_codes(manifests: dict[str, Any], results: dict[str, Any]) -> Iterator[str]:
    """Failures of ingredients, also those that the claim recorded when it took the ingredient in: the library's own state ignores these."""
    for delta in results.get("ingredientDeltas") or ():
        yield from _codes(delta.get("validationDeltas"))
    for manifest in manifests.values():
        for ingredient in manifest.get("ingredients") or ():
            recorded = ingredient.get("validation_results") or {}
            yield from _codes(recorded.get("activeManifest"))
            for delta in recorded.get("ingredientDeltas") or ():
                yield from _codes(delta.get("validationDeltas"))


def _assertions(manifest: dict[str, Any], label: str) -> Iterator[dict[str, Any]]:
    for assertion in manifest.get("assertions") or ():
        if str(assertion.get("label")).startswith(label) and isinstance(assertion.get("data"), dict):
            yield assertion["data"]


def _active_actions(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for data in _assertions(manifest, "c2pa.actions"):
        yield from (action for action in _list(data.get("actions")) if isinstance(action, dict))


def _soft_bindings(manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Values may come as text or as a list of bytes, depending on who wrote them."""
    for data in _assertions(manifest, "c2pa.soft-binding"):
        for block in _list(data.get("blocks")):
            value = block.get("value") if isinstance(block, dict) else None
            if isinstance(value, list) and all(isinstance(byte, int) and 0 <= byte < 256 for byte in value):
                value = bytes(value).hex()
            if isinstance(value, str):
                yield str(data.get("alg")), value


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _generator(manifest: dict[str, Any]) -> str:
    info = manifest.get("claim_generator_info") or ()
    if info and isinstance(info[0], dict):
        return "/".join(str(info[0][key]) for key in ("name", "version") if info[0].get(key))
    return str(manifest.get("claim_generator") or "")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
