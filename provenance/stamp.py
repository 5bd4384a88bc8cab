"""The stamp: watermark → metadata → C2PA signature → read back → registry record. Knows nothing of how a picture was made or checked."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from platemark.errors import InputError, ProvenanceUnavailable
from platemark.imaging import WRITABLE, decode, encode, perceptual_hash, rgb_profile
from platemark.provenance.identity import Identity, development_identity
from platemark.provenance.metadata.aigc import aigc_label
from platemark.provenance.metadata.rules import DEFAULT_RULES, MetadataRules
from platemark.provenance.metadata.webui import parameters_text
from platemark.provenance.metadata.xmp import Release, write_xmp
from platemark.provenance.png import skeleton
from platemark.provenance.record import Facts, Licence, ProvenanceRecord
from platemark.provenance.registry import Registry
from platemark.provenance.signing import GENERATOR, Signed, SignOptions, sign, verified
from platemark.provenance.timestamps import NO_TIMESTAMP, TimestampRule
from platemark.provenance.trust import held_trust
from platemark.provenance.watermark.detect import detect
from platemark.provenance.watermark.embed import Marked, embed
from platemark.provenance.watermark.payload import Payload

FORMATS = WRITABLE
_FAINTEST = (48.0, 44.5, 41.0)  # dB: a mark that the file loses is tried again, stronger
Observer = Callable[[str], None]


@dataclass(frozen=True)
class StampRules:
    """What the policy says of released pictures. `licences`: of the model and what was added to it, beside those in the facts.

    `require_watermark`: a picture that cannot hold a mark fails; else it goes out signed only, and its record says so.
    """

    require_watermark: bool = True
    metadata: MetadataRules = DEFAULT_RULES
    timestamp: TimestampRule = NO_TIMESTAMP
    licences: tuple[Licence, ...] = ()


DEFAULT_STAMP_RULES = StampRules()


@dataclass(frozen=True)
class Stamped:
    """A released picture: the file, its pixels as decoded from that file (uint8 RGB, height, width, 3), and its committed record.

    `notes`: sentences on what the rules asked for and could not be had (a time stamp that was only tried for).
    """

    data: bytes
    record: ProvenanceRecord
    pixels: NDArray[np.uint8]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Draft:
    signed: Signed
    marked: Marked | None
    pixels: NDArray[np.uint8]
    created: str


@dataclass(frozen=True)
class _Order:
    """One picture to stamp."""

    image: NDArray[np.uint8]
    facts: Facts
    payload: Payload
    file_format: str
    parent: bytes | None


class Stamp:
    """Stamps pictures under one identity into one registry. Safe to share between threads."""

    def __init__(self, home: Path, identity: Identity, registry: Registry, rules: StampRules = DEFAULT_STAMP_RULES) -> None:
        self.home, self.identity, self.registry, self.rules = home, identity, registry, rules

    def reserve(self) -> int:
        """A content id for one picture, never given again. Raises `ProvenanceUnavailable`."""
        return self.registry.lease(self.identity.issuer)

    def request_hmac(self, parts: Sequence[str]) -> str:
        """HMAC-SHA256 (hex) of a request's texts under a key of this identity: equal requests compare equal, and nothing can be read."""
        key = self.identity.watermark_key.watermark.subkey("request")
        message = b"".join(len(part.encode()).to_bytes(8, "big") + part.encode() for part in parts)
        return hmac.new(key, message, hashlib.sha256).hexdigest()

    def apply(
        self,
        image: NDArray[np.uint8],
        facts: Facts,
        content_id: int,
        file_format: str = "png",
        *,
        parent: bytes | None = None,
        on_stage: Observer | None = None,
    ) -> Stamped:
        """Marks, encodes, signs, reads back and records one picture (uint8 RGB, height, width, 3).

        `file_format` is one of `FORMATS`. `parent`: the file that img2img or inpainting started from; it becomes the C2PA ingredient, with
        the credentials that it carries, and its colour profile stays. `on_stage` hears `marked`, `signed` and `recorded`, each when done.
        Raises `ProvenanceUnavailable` (then nothing was recorded and nothing may be released) or `InputError` (the format, or a parent
        whose own credentials are broken).
        """
        if file_format not in FORMATS:
            raise InputError(f"cannot write the format {file_format[:20]!r}", f"use {', '.join(FORMATS)}")
        say = on_stage or (lambda stage: None)
        payload = Payload(content_id=content_id, issuer=self.identity.issuer)
        order = _Order(image, self._ruled(facts).delivered_at(*image.shape[:2]), payload, file_format, parent)
        draft = self._marked(order, say) or self._draft(order, None)
        verified(draft.signed, f"image/{file_format}")
        say("signed")
        record = self._record(draft, order)
        self.registry.commit(record, draft.signed.manifest, skeleton=skeleton(draft.signed.data))
        say("recorded")
        failure = draft.signed.timestamp_failure
        return Stamped(draft.signed.data, record, draft.pixels, (failure,) if failure else ())

    def _ruled(self, facts: Facts) -> Facts:
        """The facts as the rules let them be written."""
        facts = facts.model_copy(update={"licences": (*facts.licences, *self.rules.licences)})
        return facts if self.rules.metadata.prompts_in_clear else facts.without_prompts()

    def _marked(self, order: _Order, say: Observer) -> _Draft | None:
        """A draft whose mark reads from its file. None where there can be none and the rules do without."""
        why = ""
        for faintest in _FAINTEST:
            try:
                marked = embed(order.image, order.payload, self.identity.watermark_key.watermark, max_psnr=faintest)
            except ProvenanceUnavailable as error:
                why = why or error.message
                break
            say("marked")
            draft = self._draft(order, marked)
            if self._reads(draft.pixels, order.payload):
                return draft
            why = f"the watermark does not survive the {order.file_format.upper()} file"
        if self.rules.require_watermark:
            raise ProvenanceUnavailable(why, "another seed or size may do; or set provenance.require_watermark = false in the policy")
        return None

    def _draft(self, order: _Order, marked: Marked | None) -> _Draft:
        """Encoded and signed, with the pixels as the file gives them back."""
        created = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        signed = sign(
            self._encoded(order, marked, created),
            f"image/{order.file_format}",
            order.facts,
            self.identity,
            created=created,
            generator=GENERATOR,
            content_id=order.payload.content_id,
            payload=None if marked is None else order.payload.hex,
            options=SignOptions(order.parent, self.rules.timestamp, self.rules.metadata),
        )
        return _Draft(signed, marked, decode(signed.data).array, created)

    def _encoded(self, order: _Order, marked: Marked | None, created: str) -> bytes:
        """The picture's file before it is signed, with all metadata that the signature is to cover."""
        rules, identity, size = self.rules.metadata, self.identity, (order.image.shape[0], order.image.shape[1])
        seal = identity.watermark_key.watermark.subkey("aigc")
        label = aigc_label(rules.producer or identity.subject, identity.issuer, order.payload.content_id, seal)
        release = Release(size, created, GENERATOR, order.payload.content_id, label)
        text = {"parameters": parameters_text(order.facts, size=size, generator=GENERATOR)} if rules.web_ui_text else None
        return encode(
            order.image if marked is None else marked.image,
            order.file_format,
            xmp=write_xmp(order.facts, release, rules),
            icc=None if order.parent is None else rgb_profile(order.parent),
            text=text,
        )

    def _reads(self, pixels: NDArray[np.uint8], payload: Payload) -> bool:
        found = detect(pixels, self.identity.watermark_key.watermark)
        return found.verdict == "detected" and found.payload == payload

    def _record(self, draft: _Draft, order: _Order) -> ProvenanceRecord:
        marked, payload = draft.marked, order.payload
        layout: Literal["full", "pixel", "none"] = "none" if marked is None else marked.layout
        return ProvenanceRecord(
            content_id=payload.content_id,
            issuer=payload.issuer,
            created=draft.created,
            generator=GENERATOR,
            digital_source_type=order.facts.digital_source_type,
            watermark=layout,
            watermark_key_id=None if marked is None else self.identity.watermark_key.key_id,
            watermark_payload=None if marked is None else payload.hex,
            psnr=None if marked is None else marked.psnr,
            headroom_shift=0 if marked is None else marked.headroom_shift,
            identity=self.identity.subject,
            development_identity=self.identity.development,
            manifest_label=draft.signed.label,
            image_sha256=hashlib.sha256(draft.signed.data).hexdigest(),
            perceptual_hash=perceptual_hash(draft.pixels),
            timestamp=draft.signed.timestamp,
            parent_sha256=None if order.parent is None else hashlib.sha256(order.parent).hexdigest(),
            facts=order.facts,
        )


def open_stamp(home: Path, *, rules: StampRules = DEFAULT_STAMP_RULES, require_watermark: bool | None = None) -> Stamp:
    """The stamp of a state folder: its identity (a development identity is made where there is none) and its registry.

    `require_watermark` overrides the rule of that name. Time stamps count as trusted under the roots of the state folder's `trust/tsa`,
    unless the rules bring their own. Raises `ProvenanceUnavailable`: keys expired or damaged, state folder not writable.
    """
    if require_watermark is not None:
        rules = replace(rules, require_watermark=require_watermark)
    if rules.timestamp.mode != "off" and not rules.timestamp.anchors:
        rules = replace(rules, timestamp=replace(rules.timestamp, anchors=held_trust(home).tsa))
    return Stamp(home, development_identity(home), Registry.open(home), rules)
