"""The registry layer: the record of a picture, how a copy differs from what was registered, and what contradicts what.

Knows nothing of verdicts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from platemark.errors import InputError, ProvenanceUnavailable
from platemark.imaging import Decoded, hash_distance, perceptual_hash
from platemark.provenance.claims import AI_SOURCE_TYPES, source_kind
from platemark.provenance.credentials import CredentialReport
from platemark.provenance.registry import Entry, Registry
from platemark.provenance.verify.frame import laid_back, moved
from platemark.provenance.verify.report import RegistryLayer
from platemark.provenance.watermark.detect import Detection
from platemark.provenance.watermark.payload import Payload

SAME_PICTURE = 31  # bits of 256 that PDQ hashes of copies differ by at most (PDQ's own recommendation)
OTHER_PICTURE = 90  # above this, PDQ hashes of whole frames belong to different pictures (unrelated ones lie near 128)


@dataclass(frozen=True)
class Said:
    """What the layers that can be compared say. `bound`: what the credentials say that the watermark says."""

    credentials: CredentialReport
    found: Detection | None
    bound: Payload | None

    @property
    def marked(self) -> Payload | None:
        return self.found.payload if self.found else None


def look_up(picture: Decoded, data: bytes, said: Said, home: Path) -> tuple[RegistryLayer, Entry | None]:
    """The registry's record of the picture: by the id of its watermark or credentials, else whether a registered picture looks the same."""
    try:
        if not Registry.exists(home):
            return {"state": "no-registry"}, None
        with Registry.open(home, create=False) as registry:
            return _asked(registry, picture, data, said)
    except (InputError, ProvenanceUnavailable) as error:
        return {"state": "unavailable", "detail": error.message, "remedy": error.remedy}, None


def _asked(registry: Registry, picture: Decoded, data: bytes, said: Said) -> tuple[RegistryLayer, Entry | None]:
    payload = said.marked or said.bound
    if payload is None:
        near = registry.find_by_hash(perceptual_hash(picture.array), SAME_PICTURE, limit=1)
        if not near:
            return {"state": "not-found"}, None
        distance, entry = near[0]
        return {"state": "similar", "content_id": entry.content_id, "issuer": entry.issuer, "distance": distance}, None
    found = registry.find(payload.content_id, payload.issuer)
    if found is None:
        return {"state": "not-found"}, None
    return _layer(found, picture, data, said), found


def _layer(entry: Entry, picture: Decoded, data: bytes, said: Said) -> RegistryLayer:
    same, distance = hashlib.sha256(data).hexdigest() == entry.image_sha256, _distance(entry, picture, said)
    layer: RegistryLayer = {
        "state": "found",
        "content_id": entry.content_id,
        "issuer": entry.issuer,
        "created": entry.created,
        "compared": distance is not None,
        "same_file": same,
        "differences": [] if same else _differences(entry, distance, picture, said),
    }
    if distance is not None:
        layer["distance"] = distance
    if entry.pruned:
        layer["pruned"] = entry.pruned
    if entry.record is not None:
        layer["record"] = entry.record.as_dict()
    return layer


def _distance(entry: Entry, picture: Decoded, said: Said) -> int | None:
    """Bits between the registered hash and that of the picture, laid back as its watermark says; None where they cannot be compared.

    Intact credentials that name the watermark say that these are the very pixels that were marked, so nothing needs to be undone.
    """
    array = picture.array
    if said.bound is None and said.found is not None:
        laid = laid_back(array, said.found, _marked_size(entry))
        if laid is None:
            return None
        array = laid
    return hash_distance(perceptual_hash(array), entry.perceptual_hash)


def _marked_size(entry: Entry) -> tuple[int, int] | None:
    return entry.record.facts.delivered_size if entry.record else None


def _differences(entry: Entry, distance: int | None, picture: Decoded, said: Said) -> list[str]:
    """How a file differs from the one that was registered, as far as it can be told."""
    out, size = [], _marked_size(entry)
    if said.credentials.state == "absent":
        out.append("the credentials were removed")
    if size is not None and tuple(size) != picture.size:
        out.append(f"the size is {picture.size[1]}x{picture.size[0]}, it was {size[1]}x{size[0]}")
    how = moved(said.found) if said.found is not None else None
    if how is not None:
        out.append(f"the frame was {how}")
    if distance:
        out.append(f"{distance} of 256 bits of the perceptual hash differ")
    return out or ["the bytes differ, the picture looks the same"]


def conflicts(said: Said, registry: RegistryLayer, entry: Entry | None) -> tuple[str, ...]:
    """What contradicts what, in sentences."""
    marked, bound, out = said.marked, said.bound, []
    if marked is not None and bound is not None and marked != bound:
        out.append(f"The watermark says content id {marked.content_id}, the credentials say {bound.content_id}.")
    recorded = _recorded_id(said.credentials) if bound is None else None
    if marked is not None and recorded is not None and recorded != (str(marked.content_id), str(marked.issuer)):
        out.append(f"The watermark says content id {marked.content_id}, the credentials say {recorded[0]}.")
    kind = source_kind(said.credentials.digital_source_type) if said.credentials.state == "valid" else ""
    if marked is not None and bound is None and kind and kind not in AI_SOURCE_TYPES:
        out.append(f"The watermark says that a model made the picture, the credentials say '{kind}'.")
    if entry is not None:
        out += _against_record(said, registry.get("distance"), entry)
    return tuple(out)


def _recorded_id(credentials: CredentialReport) -> tuple[str, str] | None:
    """Content id and issuer in intact credentials of ours."""
    record = credentials.record if credentials.state == "valid" else None
    return (record["contentId"], record["issuer"]) if record and "contentId" in record and "issuer" in record else None


def _against_record(said: Said, distance: int | None, entry: Entry) -> list[str]:
    out, bound = [], said.bound
    if distance is not None and distance > (OTHER_PICTURE if bound is None else SAME_PICTURE):
        out.append(f"This is another picture than the registered one: {distance} of 256 bits of its perceptual hash differ.")
    if bound is not None and said.credentials.label != entry.manifest_label:
        out.append(f"The registry knows content id {bound.content_id} under other credentials ({entry.manifest_label}).")
    return out
