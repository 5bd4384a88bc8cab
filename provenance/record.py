"""The provenance record: one set of facts, written five ways (watermark, C2PA, XMP, registry, results)."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
DIGITAL_SOURCE_TYPE = f"{_SOURCE_TYPES}trainedAlgorithmicMedia"
ENHANCED_SOURCE_TYPE = f"{_SOURCE_TYPES}algorithmicallyEnhanced"
COMPOSITE_SOURCE_TYPE = f"{_SOURCE_TYPES}compositeWithTrainedAlgorithmicMedia"
WATERMARK_ALGORITHM = "com.platemark.wm.1"  # the name of our watermark in soft bindings
RECORD_LABEL = "com.platemark.record"  # of the assertion that holds the record

Operation = Literal["text2img", "img2img", "inpaint", "upscale"]
TimestampState = Literal["none", "trusted", "unverified"]


class Licence(BaseModel):
    """Under what terms one part of the model was used. `licence`: an SPDX expression or the licence's name; `url`: its text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: Literal["model", "lora"]
    name: str = Field(max_length=200)
    licence: str = Field(max_length=200)
    url: str | None = Field(default=None, max_length=500)

    def __str__(self) -> str:
        return f"{self.part} {self.name}: {self.licence}" + (f" ({self.url})" if self.url else "")


class Facts(BaseModel):
    """What the press knows of a picture before it is stamped.

    `model_sha256` and `bundle_sha256` are hex; `request_hmac` is a keyed hash of the prompt and settings (never the prompt itself);
    `resampled_from` is (height, width) as rendered, where that is not the delivered size, else None: the picture then was fitted, by a
    centred cut to the new aspect and resampling `resampled_by` Lanczos or a network that is named. `delivered_size` (height, width) is
    filled in by the stamp. `decision` is a safety decision as plain JSON types. `operation` says what the model started from: nothing, a
    whole picture, or a picture and a mask; `upscale`: a picture was enlarged and nothing else.
    `prompt` and `negative_prompt` are written in clear wherever they are given, so the stamp drops them unless its rules allow them.
    `face_count`: faces found in the picture; `consent_ref`: the reference under which consent for an input picture was recorded;
    `latent_mark`: the starting noise carried a mark too.
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
    delivered_size: tuple[int, int] | None = None
    operation: Operation = "text2img"
    prompt: str | None = Field(default=None, repr=False)
    negative_prompt: str | None = Field(default=None, repr=False)
    licences: tuple[Licence, ...] = ()
    face_count: int | None = Field(default=None, ge=0)
    consent_ref: str | None = Field(default=None, max_length=200)
    latent_mark: bool = False
    resampled_by: str = Field(default="lanczos", max_length=100)

    def delivered_at(self, height: int, width: int) -> Self:
        """The same facts, of a picture delivered at this size."""
        return self.model_copy(update={"delivered_size": (height, width)})

    def without_prompts(self) -> Self:
        """The same facts with the keyed hash alone to say what was asked for."""
        return self.model_copy(update={"prompt": None, "negative_prompt": None})

    @property
    def digital_source_type(self) -> str:
        """The IPTC term: made by a model; a picture with parts made by one (inpainting, a network that enlarges); enlarged by Lanczos."""
        if self.operation == "upscale":
            return ENHANCED_SOURCE_TYPE if self.resampled_by == "lanczos" else COMPOSITE_SOURCE_TYPE
        return COMPOSITE_SOURCE_TYPE if self.operation == "inpaint" else DIGITAL_SOURCE_TYPE

    @property
    def cropped(self) -> bool:
        """Whether part of the rendered picture was cut away: the delivered one has another aspect."""
        if self.resampled_from is None or self.delivered_size is None:
            return False
        (rows, columns), (height, width) = self.resampled_from, self.delivered_size
        return rows * width != columns * height

    @property
    def resampled(self) -> bool:
        """Whether pixels were interpolated: not where fitting needed a cut alone."""
        if self.resampled_from is None or self.delivered_size is None:
            return self.resampled_from is not None
        (rows, columns), (height, width) = self.resampled_from, self.delivered_size
        return max(height / rows, width / columns) != 1 or (height - rows) % 2 + (width - columns) % 2 > 0

    @property
    def blurred(self) -> bool:
        """Whether the policy had the picture blurred."""
        return bool(self.decision.get("action") == "blur")


class ProvenanceRecord(BaseModel):
    """What was done to one released picture. Times are RFC 3339 UTC; hashes hex; `psnr` is dB of marked against unmarked.

    `watermark`: `full` (geometry search when reading), `pixel` (pictures under 256 px: no geometry search) or `none` (signed only, as the
    policy allows). `timestamp`: `trusted` (an RFC 3161 stamp of an authority that the policy names), `unverified` (the policy names no
    authority's certificate) or `none`. `parent_sha256` is that of the input picture's file.
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
    timestamp: TimestampState = "none"
    parent_sha256: str | None = None
    facts: Facts

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; the seed as a string, as everywhere in JSON; with what was done to the picture as rendered."""
        out = self.model_dump(mode="json")
        out["facts"] |= {"seed": str(self.facts.seed), "cropped": self.facts.cropped, "blurred": self.facts.blurred}
        return out
