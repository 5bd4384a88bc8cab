"""The registry layer: the record of a picture, how a copy differs from what was registered, and what contradicts what.

Knows nothing of verdicts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from platemark.errors import ProvenanceUnavailable
from platemark.imaging import Decoded, hash_distance, perceptual_hash
from platemark.provenance.claims import AI_SOURCE_TYPES, source_kind
from platemark.provenance.credentials import CredentialReport
from platemark.provenance.registry import Entry, Registry
from platemark.provenance.verify.report import RegistryLayer
from platemark.provenance.watermark.detect import Detection
from platemark.provenance.watermark.payload import Payload

SAME_PICTURE = 31  # bits of 256 that PDQ hashes of copies differ by at most (PDQ's own recommendation)
OTHER_PICTURE = 90  # above this, PDQ hashes of pictures with unmoved edges belong to different pictures (unrelated ones lie near 128)


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
        with Registry.open(home) as registry:
            return _asked(registry, picture, data, said)
    except ProvenanceUnavailable as error:
        return {"state": "unavailable", "detail": error.message, "remedy": error.remedy}, None


def _asked(registry: Registry, picture: Decoded, data: bytes, said: Said) -> tuple[RegistryLayer, Entry | None]:
    payload, looks = said.marked or said.bound, perceptual_hash(picture.array)
    if payload is None:
        near = registry.find_by_hash(looks, SAME_PICTURE)[:1]
        if not near:
            return {"state": "not-found"}, None
        distance, entry = near[0]
        return {"state": "similar", "content_id": entry.content_id, "issuer": entry.issuer, "distance": distance}, None
    found = registry.find(payload.content_id, payload.issuer)
    if found is None:
        return {"state": "not-found"}, None
    return _layer(found, hash_distance(looks, found.perceptual_hash), picture, data, said), found


def _layer(entry: Entry, distance: int, picture: Decoded, data: bytes, said: Said) -> RegistryLayer:
    same = hashlib.sha256(data).hexdigest() == entry.image_sha256
    layer: RegistryLayer = {
        "state": "found",
        "content_id": entry.content_id,
        "issuer": entry.issuer,
        "created": entry.created,
        "distance": distance,
        "same_file": same,
        "differences": [] if same else _differences(entry, distance, picture, said),
    }
    if entry.pruned:
        layer["pruned"] = entry.pruned
    if entry.record is not None:
        layer["record"] = entry.record.as_dict()
    return layer


def _differences(entry: Entry, distance: int, picture: Decoded, said: Said) -> list[str]:
    """How a file differs from the one that was registered, as far as it can be told."""
    out = []
    if said.credentials.state == "absent":
        out.append("the credentials were removed")
    size = entry.record.facts.delivered_size if entry.record else None
    if size is not None and tuple(size) != picture.size:
        out.append(f"the size is {picture.size[1]}x{picture.size[0]}, it was {size[1]}x{size[0]}")
    if said.found is not None and said.found.layout == "full" and not _unmoved(said.found):
        geometry = said.found.geometry
        mirrored = ", mirrored" if geometry["flip"] else ""
        out.append(f"the frame moved: scale {geometry['scale']:.3g}, turned {geometry['rotation']:g}°{mirrored}")
    if distance:
        out.append(f"{distance} of 256 bits of the perceptual hash differ")
    return out or ["the bytes differ, the picture looks the same"]


def conflicts(said: Said, registry: RegistryLayer, entry: Entry | None) -> tuple[str, ...]:
    """What contradicts what, in sentences."""
    marked, bound, out = said.marked, said.bound, []
    if marked is not None and bound is not None and marked != bound:
        out.append(f"The watermark says content id {marked.content_id}, the credentials say {bound.content_id}.")
    kind = source_kind(said.credentials.digital_source_type) if said.credentials.state == "valid" else ""
    if marked is not None and bound is None and kind and kind not in AI_SOURCE_TYPES:
        out.append(f"The watermark says that a model made the picture, the credentials say '{kind}'.")
    if entry is not None:
        out += _against_record(said, registry["distance"], entry)
    return tuple(out)


def _against_record(said: Said, distance: int, entry: Entry) -> list[str]:
    out, bound = [], said.bound
    limit = SAME_PICTURE if bound is not None else OTHER_PICTURE
    if distance > limit and (bound is not None or (said.found is not None and _unmoved(said.found))):
        out.append(f"The picture is not the registered one: {distance} of 256 bits of its perceptual hash differ.")
    if bound is not None and said.credentials.label != entry.manifest_label:
        out.append(f"The registry knows content id {bound.content_id} under other credentials ({entry.manifest_label}).")
    return out


def _unmoved(found: Detection) -> bool:
    """Whether the picture's frame is the one that was marked: hashes of crops, turned and mirrored pictures say nothing.

    The `pixel` layout's tile does not tell a crop from a whole picture.
    """
    geometry = found.geometry
    return found.layout == "full" and abs(geometry["scale"] - 1) < 0.01 and geometry["rotation"] == 0 and not geometry["flip"]
