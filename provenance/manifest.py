"""What a C2PA manifest of ours says: the definition that the C2PA library turns into a claim. Signs nothing and reads nothing.

After C2PA 2.4 and the asset rubric of its conformance program: `specVersion` in the claim generator info; every assertion created, none
gathered; the actions complete, `c2pa.created` with a digital source type or `c2pa.opened` with one ingredient and none, a source type on
every perceptible edit; our own names with a dot in them.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from platemark.provenance.metadata.rules import DEFAULT_RULES, MetadataRules
from platemark.provenance.record import ENHANCED_SOURCE_TYPE, RECORD_LABEL, WATERMARK_ALGORITHM, Facts

SPEC_VERSION = "2.4.0"
PARENT_ID = "parent"  # ties the opened action to its ingredient inside a definition
_NO_TRAINING = ("cawg.ai_generative_training", "cawg.ai_training")
_SCHEMAS = {"dc": "http://purl.org/dc/elements/1.1/", "xmpRights": "http://ns.adobe.com/xap/1.0/rights/"}


@dataclass(frozen=True)
class Signing:
    """What a claim says of the signing. `created`: RFC 3339; `generator`: "platemark/0.1.0"; `payload`: of the watermark (hex), or None.

    `opened`: the claim begins with an ingredient, which the signer adds under `PARENT_ID`.
    """

    created: str
    generator: str
    opened: bool = False
    payload: str | None = None
    rules: MetadataRules = DEFAULT_RULES

    @property
    def agent(self) -> dict[str, str]:
        name, _, version = self.generator.partition("/")
        return {"name": name, "version": version}


def generated(facts: Facts, signing: Signing, *, content_id: int, issuer: int) -> dict[str, Any]:
    """The manifest of a picture that we made. Its label, a fresh URN, is under `label`."""
    assertions = [_created("c2pa.actions.v2", {"allActionsIncluded": True, "actions": _actions(facts, signing)})]
    if signing.payload is not None:
        binding = {"alg": WATERMARK_ALGORITHM, "blocks": [{"scope": {}, "value": signing.payload}]}
        assertions.append(_created("c2pa.soft-binding", binding))
    assertions.append(_created(RECORD_LABEL, _record(facts, signing, content_id, issuer)))
    return _definition(assertions, signing)


def existing(signing: Signing, source_type: str | None) -> dict[str, Any]:
    """The manifest of a file that was made elsewhere and is signed as it is.

    `source_type`: an IPTC term (a URI) where the signer states how the file was made; else it says no more than that the file was opened.
    """
    action: dict[str, Any] = {"action": "c2pa.created", "digitalSourceType": source_type} if not signing.opened else _opening()
    action |= {"when": signing.created, "softwareAgent": signing.agent}
    return _definition([_created("c2pa.actions.v2", {"allActionsIncluded": True, "actions": [action]})], signing)


def _definition(assertions: list[dict[str, Any]], signing: Signing) -> dict[str, Any]:
    info = [signing.agent | {"specVersion": SPEC_VERSION}]
    return {
        "label": f"urn:c2pa:{uuid.uuid4()}",
        "claim_generator_info": info,
        "assertions": assertions + _rights(signing.rules),
    }


def _created(label: str, data: dict[str, Any], **more: str) -> dict[str, Any]:
    return {"label": label, "created": True, "data": data, **more}


def _opening() -> dict[str, Any]:
    return {"action": "c2pa.opened", "parameters": {"ingredientIds": [PARENT_ID]}}


def _rights(rules: MetadataRules) -> list[dict[str, Any]]:
    """Do-not-train and rights as CAWG assertions, where the policy has them."""
    assertions = []
    if rules.do_not_train:
        assertions.append(_created("cawg.training-mining", {"entries": {name: {"use": "notAllowed"} for name in _NO_TRAINING}}))
    fields: dict[str, Any] = {"dc:creator": [rules.creator]} if rules.creator else {}
    fields |= {"dc:rights": {"x-default": rules.rights}} if rules.rights else {}
    fields |= {"xmpRights:WebStatement": rules.rights_url} if rules.rights_url else {}
    if fields:
        assertions.append(_created("cawg.metadata", {"@context": _SCHEMAS, **fields}, kind="Json"))
    return assertions


def _actions(facts: Facts, signing: Signing) -> list[dict[str, Any]]:
    """Made (or opened and edited), then cropped, resized and blurred where that was done, then watermarked: in the order of happening."""
    model = {"com.platemark.model": facts.model_name, "com.platemark.seed": str(facts.seed)}
    making = {"action": "c2pa.edited" if signing.opened else "c2pa.created", "digitalSourceType": facts.digital_source_type}
    actions: list[dict[str, Any]] = [_opening()] if signing.opened else []
    actions.append({**making, "parameters": model | {"com.platemark.operation": facts.operation}})
    actions += [{"action": name, "digitalSourceType": ENHANCED_SOURCE_TYPE, "parameters": how} for name, how in _edits(facts)]
    if signing.payload is not None:
        actions.append({"action": "c2pa.watermarked.bound"})
    return [action | {"when": signing.created, "softwareAgent": signing.agent} for action in actions]


def _edits(facts: Facts) -> list[tuple[str, dict[str, str]]]:
    edits: list[tuple[str, dict[str, str]]] = []
    if facts.resampled_from is not None:
        height, width = facts.resampled_from
        source = {"com.platemark.from": f"{width}x{height}"}
        edits += [("c2pa.cropped", source)] if facts.cropped else []
        edits += [("c2pa.resized", {"com.platemark.filter": facts.resampled_by} | source)] if facts.resampled else []
    if facts.blurred:
        edits.append(("c2pa.filtered", {"com.platemark.filter": "blur", "com.platemark.reason": "policy"}))
    return edits


def _record(facts: Facts, signing: Signing, content_id: int, issuer: int) -> dict[str, Any]:
    """The facts as an assertion of our own. Big integers as strings: the format keeps 63 bits. What is not known is left out."""
    decision = {key: facts.decision[key] for key in ("action", "policy_id", "policy_sha256") if key in facts.decision}
    record = {
        "contentId": str(content_id),
        "issuer": issuer,
        "operation": facts.operation,
        "modelName": facts.model_name,
        "modelSha256": facts.model_sha256,
        "bundleSha256": facts.bundle_sha256,
        "seed": str(facts.seed),
        "requestHmac": facts.request_hmac,
        "settings": facts.settings,
        "decision": decision,
        "watermarkPayload": signing.payload or "",
        "latentMark": facts.latent_mark,
        "faceCount": facts.face_count,
        "consentRef": facts.consent_ref,
        "licences": [licence.model_dump(exclude_none=True) for licence in facts.licences] or None,
        "prompt": facts.prompt,
        "negativePrompt": facts.negative_prompt,
    }
    return {name: value for name, value in record.items() if value is not None}
