"""The provenance record: one set of facts, written five ways (watermark, C2PA, XMP, registry, results)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


class Facts(BaseModel):
    """What the press knows of a picture before it is stamped.

    `model_sha256` and `bundle_sha256` are hex; `request_hmac` is a keyed hash of the prompt and settings (never the prompt itself);
    `resampled_from` is (height, width) before Lanczos resampling, or None; `decision` is a safety decision as plain JSON types.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_name: str
    model_sha256: str
    bundle_sha256: str
    seed: int
    request_hmac: str
    settings: dict[str, str]
    resampled_from: tuple[int, int] | None
    decision: dict[str, Any]


class ProvenanceRecord(BaseModel):
    """What was done to one released picture. Times are RFC 3339 UTC; hashes hex; `psnr` is dB of marked against unmarked.

    `watermark`: `full` (geometry search when reading), `pixel` (pictures under 256 px: no geometry search) or `none` (signed only, as the
    policy allows).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    content_id: int
    issuer: int
    created: str
    generator: str  # "platemark/0.1.0"
    digital_source_type: str = DIGITAL_SOURCE_TYPE
    watermark: Literal["full", "pixel", "none"]
    watermark_key_id: str | None
    watermark_payload: str | None  # 16 hex digits
    psnr: float | None
    headroom_shift: int  # levels by which the picture was moved off pure white or black before marking (0 to 3)
    identity: str  # subject of the signing certificate
    development_identity: bool
    manifest_label: str
    image_sha256: str  # of the delivered bytes
    perceptual_hash: str  # 64 hex digits (PDQ, 256 bits)
    facts: Facts

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; the seed as a string, as everywhere in JSON."""
        out = self.model_dump(mode="json")
        out["facts"]["seed"] = str(self.facts.seed)
        return out
