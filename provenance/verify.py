"""The verifier: reads credentials, watermark, metadata and registry, and gives one verdict with what each layer said.

Verdicts, the first that holds: `corrupt` (pixels or credentials cannot be read) > `tampered` (the content is not what was signed) >
`conflict` (layers contradict each other) > `trusted` > `intact-untrusted` > `recovered-by-watermark` > `unsigned-claims` > `none`.
Nothing is fetched from a network and nothing is written. Knows nothing of how the layers are stored or encoded.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from platemark.errors import DamagedImageError, InputError, PlatemarkError, ProvenanceUnavailable
from platemark.imaging import Decoded, decode, hash_distance, perceptual_hash, read_bytes, sniff
from platemark.provenance import credentials
from platemark.provenance.claims import read_claims
from platemark.provenance.credentials import CredentialReport
from platemark.provenance.home import home as default_home
from platemark.provenance.identity import authorities
from platemark.provenance.keyring import held_keys
from platemark.provenance.registry import Entry, Registry
from platemark.provenance.watermark.detect import INCONCLUSIVE, Detection, detect
from platemark.provenance.watermark.payload import Payload

Verdict = Literal[
    "trusted", "intact-untrusted", "tampered", "corrupt", "recovered-by-watermark", "unsigned-claims", "conflict", "none"
]  # fmt: skip
Layer = dict[str, Any]
SAME_PICTURE = 31  # bits of 256 that PDQ hashes of copies differ by at most (PDQ's own recommendation)
OTHER_PICTURE = 90  # above this, PDQ hashes of pictures with unmoved edges belong to different pictures (unrelated ones lie near 128)
SMALLEST = 16  # pixels a side, below which the detector does not look
_EXIT = {"trusted": 0, "intact-untrusted": 0, "recovered-by-watermark": 0, "none": 1, "unsigned-claims": 1}


class VerifyReport(BaseModel):
    """What a file says of its origin.

    `layers` has `c2pa`, `watermark`, `metadata` and `registry`; each has a `state` and what was found. `content_id` and `issuer` are those
    of the watermark, else of the credentials. `summary` says it in sentences.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Verdict
    content_id: int | None
    issuer: int | None
    summary: list[str]
    layers: dict[str, Layer]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return self.model_dump(mode="json")


@dataclass(frozen=True)
class _Evidence:
    """Everything that was read, before it is judged."""

    credentials: CredentialReport
    damage: DamagedImageError | None  # why the pixels cannot be decoded
    watermark: Layer
    marked: Payload | None
    bound: Payload | None  # what the credentials say that the watermark says
    metadata: Layer
    registry: Layer
    conflicts: tuple[str, ...]


def verify(source: bytes | str | Path, *, home: str | Path | None = None) -> VerifyReport:
    """Verifies one picture, given as bytes or a path, with the keys and the registry of the state folder `home` (None: the default).

    Raises `InputError` (unreadable path), `ImageError` (no picture of a known format, or too big to decode), `ProvenanceUnavailable` (a key
    file of the state folder is damaged). A picture that is damaged is a verdict, not an error.
    """
    data = read_bytes(source)
    evidence = _gather(data, default_home(home))
    verdict = _judge(evidence)
    known = evidence.marked or evidence.bound
    return VerifyReport(
        verdict=verdict,
        content_id=known.content_id if known else None,
        issuer=known.issuer if known else None,
        summary=_summary(verdict, evidence),
        layers={
            "c2pa": _credential_layer(evidence.credentials),
            "watermark": evidence.watermark,
            "metadata": evidence.metadata,
            "registry": evidence.registry,
        },
    )


def exit_code(verdict: str) -> int:
    """0: traced or intact; 1: nothing that is proven; 6: tampered, corrupt or in conflict."""
    return _EXIT.get(verdict, 6)


def _gather(data: bytes, home: Path) -> _Evidence:
    decoded, damage = _decode(data)
    report = credentials.read(data, f"image/{decoded.format if decoded else sniff(data)}", authorities(home))
    if decoded is None:
        unreadable: Layer = {"state": "unreadable"} | (_explained(damage) if damage else {})
        return _Evidence(report, damage, unreadable, None, _bound(report), unreadable, {"state": "not-asked"}, ())
    watermark, found = _read_watermark(decoded.array, home)
    marked, bound = (found.payload if found else None), _bound(report)
    registry, entry = _look_up(decoded.array, data, marked or bound, home)
    conflicts = _conflicts(report, marked, bound, registry, entry, found)
    return _Evidence(report, None, watermark, marked, bound, read_claims(decoded), registry, conflicts)


def _decode(data: bytes) -> tuple[Decoded | None, DamagedImageError | None]:
    try:
        return decode(data), None
    except DamagedImageError as error:
        return None, error


def _explained(error: PlatemarkError) -> Layer:
    return {"detail": error.message, "remedy": error.remedy}


def _read_watermark(array: NDArray[np.uint8], home: Path) -> tuple[Layer, Detection | None]:
    """Tries every held key; the first detection counts, else the lowest p-value. p-values are corrected for the number of keys tried."""
    keys = held_keys(home)
    if not keys:
        return {"state": "no-key"}, None
    if min(array.shape[:2]) < SMALLEST:
        return {"state": "not-detected", "p_value": 1.0, "detail": f"under {SMALLEST} pixels a side"}, None
    tried: list[Detection] = []
    for key in keys:
        tried.append(detect(array, key.watermark))
        if tried[-1].verdict == "detected":
            return _watermark_layer(tried[-1], len(tried)), tried[-1]
    return _watermark_layer(min(tried, key=lambda found: found.p_value), len(tried)), None


def _watermark_layer(found: Detection, keys_tried: int) -> Layer:
    """`p_value`: that a picture without any of the marks looked for gives a finding this strong with one of the keys (Bonferroni)."""
    p_value = min(1.0, found.p_value * keys_tried)
    state = "not-detected" if found.verdict == "inconclusive" and p_value >= INCONCLUSIVE else found.verdict
    layer: Layer = {"state": state, "p_value": p_value, "keys_tried": keys_tried}
    if found.payload is None:
        return layer
    return layer | {
        "key_id": found.key_id,
        "layout": found.layout,
        "payload": found.payload.hex,
        "content_id": found.payload.content_id,
        "issuer": found.payload.issuer,
        "symbol_error_rate": found.symbol_error_rate,
        "geometry": found.geometry,
    }


def _bound(report: CredentialReport) -> Payload | None:
    """The watermark payload that the credentials name, where they are intact and it is one of ours."""
    for algorithm, value in report.soft_bindings if report.state == "valid" else ():
        if algorithm == credentials.WATERMARK_ALGORITHM:
            try:
                return Payload.unpack(bytes.fromhex(value))
            except (ValueError, InputError):
                return None
    return None


def _look_up(array: NDArray[np.uint8], data: bytes, payload: Payload | None, home: Path) -> tuple[Layer, Entry | None]:
    """The registry's record of the picture: by its id, else whether a registered picture looks the same."""
    if not Registry.exists(home):
        return {"state": "no-registry"}, None
    picture = perceptual_hash(array)
    try:
        with Registry.open(home) as registry:
            if payload is None:
                near = registry.find_by_hash(picture, SAME_PICTURE)[:1]
                return (
                    {"state": "similar", "content_id": near[0][1].content_id, "distance": near[0][0]} if near else {"state": "not-found"}
                ), None
            entry = registry.find(payload.content_id, payload.issuer)
    except ProvenanceUnavailable as error:
        return {"state": "unavailable", **_explained(error)}, None
    if entry is None:
        return {"state": "not-found"}, None
    layer = {
        "state": "found",
        "content_id": entry.content_id,
        "created": entry.record.created,
        "distance": hash_distance(picture, entry.record.perceptual_hash),
        "same_file": hashlib.sha256(data).hexdigest() == entry.record.image_sha256,
        "record": entry.record.as_dict(),
    }
    return layer, entry


def _conflicts(
    report: CredentialReport, marked: Payload | None, bound: Payload | None, registry: Layer, entry: Entry | None, found: Detection | None
) -> tuple[str, ...]:
    said = []
    if marked is not None and bound is not None and marked != bound:
        said.append(f"The watermark says content id {marked.content_id}, the credentials say {bound.content_id}.")
    if entry is not None:
        distance = registry["distance"]
        limit = SAME_PICTURE if bound is not None else OTHER_PICTURE
        if distance > limit and (bound is not None or (found is not None and _unmoved(found))):
            said.append(f"The picture is not the registered one: {distance} of 256 bits of its perceptual hash differ.")
        if bound is not None and report.label != entry.record.manifest_label:
            said.append(f"The registry knows content id {bound.content_id} under other credentials ({entry.record.manifest_label}).")
    return tuple(said)


def _unmoved(found: Detection) -> bool:
    """Whether the picture's frame is the one that was marked: hashes of crops, turned and mirrored pictures say nothing.

    The `pixel` layout's tile does not tell a crop from a whole picture.
    """
    geometry = found.geometry
    return found.layout == "full" and abs(geometry["scale"] - 1) < 0.01 and geometry["rotation"] == 0 and not geometry["flip"]


def _judge(evidence: _Evidence) -> Verdict:
    report = evidence.credentials
    if evidence.damage is not None or report.state == "corrupt":
        return "corrupt"
    if report.state == "invalid":
        return "tampered"
    if evidence.conflicts:
        return "conflict"
    if report.state == "valid":
        return "trusted" if report.trust == "trusted" else "intact-untrusted"
    if evidence.marked is not None:
        return "recovered-by-watermark"
    return "unsigned-claims" if evidence.metadata["state"] == "claims" or report.state == "remote" else "none"


def _credential_layer(report: CredentialReport) -> Layer:
    """What was found, without the fields that are empty."""
    fields = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(report).items() if value}
    if report.soft_bindings:
        fields["soft_bindings"] = [{"algorithm": algorithm, "value": value} for algorithm, value in report.soft_bindings]
    return fields


def _summary(verdict: Verdict, evidence: _Evidence) -> list[str]:
    said = [*_said_of_credentials(evidence), *evidence.conflicts]
    if evidence.marked is not None:
        said.append(f"The watermark says content id {evidence.marked.content_id} of issuer {evidence.marked.issuer}.")
    elif evidence.watermark["state"] == "no-key":
        said.append("No watermark key is held here, so the watermark was not looked for.")
    elif evidence.damage is None:
        said.append(_said_of_no_mark(evidence.watermark))
    said += _said_of_registry(evidence.registry)
    if verdict == "unsigned-claims":
        said.append("The metadata claims an origin, but nothing proves it.")
    return said


def _said_of_no_mark(watermark: Layer) -> str:
    keys = watermark.get("keys_tried", 1)
    counted = f", corrected for the {keys} keys tried" if keys > 1 else ""
    return f"Watermark {watermark['state'].replace('-', ' ')} (p = {watermark['p_value']:.2g}{counted})."


def _said_of_credentials(evidence: _Evidence) -> list[str]:
    report = evidence.credentials
    if evidence.damage is not None:
        return [f"{evidence.damage.message[:1].upper()}{evidence.damage.message[1:]}; {evidence.damage.remedy}."]
    if report.state == "absent":
        return ["There are no Content Credentials."]
    if report.state == "remote":
        return [f"The Content Credentials lie elsewhere and were not fetched: {report.detail}."]
    if report.state == "corrupt":
        return [f"There are Content Credentials, but they cannot be read: {report.detail}."]
    if report.state == "invalid":
        whose = "the picture" if report.failures else "something it was made from"
        return [f"The Content Credentials do not fit {whose}: {', '.join(report.failures or report.ingredient_failures)}."]
    by = f"Signed by '{report.signer}' with {report.claim_generator or 'an unnamed program'}; the content is what was signed."
    trust = {
        "trusted": "This machine trusts the signer: its certificate comes from a CA made here.",
        "development identity": "The signer is a development identity, which proves nothing about who made the picture.",
        "untrusted": "Nobody whom this machine knows vouches for the signer.",
    }
    expired = ["The signer's certificate has expired."] if any("expired" in code for code in report.trust_failures) else []
    return [by, trust[report.trust or "untrusted"], *expired]


def _said_of_registry(registry: Layer) -> list[str]:
    if registry["state"] == "found":
        same = "the very file" if registry["same_file"] else f"a copy ({registry['distance']} of 256 bits of the perceptual hash differ)"
        return [f"The registry here recorded it on {registry['created']}; this is {same}."]
    if registry["state"] == "similar":
        return [f"It looks like registered content id {registry['content_id']} ({registry['distance']} of 256 bits differ)."]
    if registry["state"] == "unavailable":
        return [f"The registry could not be asked: {registry['detail']}; {registry['remedy']}."]
    return []
