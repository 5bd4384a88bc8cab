"""The stamp: watermark → metadata → C2PA signature → read back → registry record. Knows nothing of how a picture was made or checked."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from platemark import __version__
from platemark.errors import InputError, ProvenanceUnavailable
from platemark.imaging import decode, encode, perceptual_hash
from platemark.provenance.credentials import Signed, sign
from platemark.provenance.identity import Identity, development_identity
from platemark.provenance.record import Facts, ProvenanceRecord
from platemark.provenance.registry import Registry
from platemark.provenance.watermark.detect import detect
from platemark.provenance.watermark.embed import Marked, embed
from platemark.provenance.watermark.payload import Payload
from platemark.provenance.xmp import write_xmp

GENERATOR = f"platemark/{__version__}"
FORMATS = ("png", "jpeg", "webp")
Observer = Callable[[str], None]


@dataclass(frozen=True)
class Stamped:
    """A released picture: the file, its pixels as decoded from that file (uint8 RGB, height, width, 3), and its committed record."""

    data: bytes
    record: ProvenanceRecord
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class _Draft:
    signed: Signed
    pixels: NDArray[np.uint8]
    created: str


class Stamp:
    """Stamps pictures under one identity into one registry. Safe to share between threads.

    `require_watermark`: a picture that cannot hold a mark fails; else it goes out signed only, and its record says so.
    """

    def __init__(self, home: Path, identity: Identity, registry: Registry, *, require_watermark: bool = True) -> None:
        self.home, self.identity, self.registry = home, identity, registry
        self.require_watermark = require_watermark

    def reserve(self) -> int:
        """A content id for one picture, never given again. Raises `ProvenanceUnavailable`."""
        return self.registry.lease(self.identity.issuer)

    def request_hmac(self, parts: Sequence[str]) -> str:
        """HMAC-SHA256 (hex) of a request's texts under a key of this identity: equal requests compare equal, and nothing can be read."""
        key = self.identity.watermark_key.watermark.subkey("request")
        message = b"".join(len(part.encode()).to_bytes(8, "big") + part.encode() for part in parts)
        return hmac.new(key, message, hashlib.sha256).hexdigest()

    def apply(
        self, image: NDArray[np.uint8], facts: Facts, content_id: int, file_format: str = "png", *, on_stage: Observer | None = None
    ) -> Stamped:
        """Marks, encodes, signs, reads back and records one picture (uint8 RGB, height, width, 3).

        `file_format` is `png`, `jpeg` or `webp`. `on_stage` hears `marked`, `signed` and `recorded`, each when it is done.
        Raises `ProvenanceUnavailable` (then nothing was recorded and nothing may be released) or `InputError` (the format).
        """
        if file_format not in FORMATS:
            raise InputError(f"cannot write the format {file_format[:20]!r}", f"use {', '.join(FORMATS)}")
        say = on_stage or (lambda stage: None)
        payload, facts = Payload(content_id=content_id, issuer=self.identity.issuer), facts.delivered_at(*image.shape[:2])
        marked = self._embed(image, payload)
        say("marked")
        draft = self._draft(image, marked, facts, payload, file_format)
        if marked is not None and not self._reads(draft.pixels, payload):
            self._unmarkable(f"the watermark does not survive the {file_format.upper()} file")
            marked = None
            draft = self._draft(image, None, facts, payload, file_format)
        say("signed")
        record = self._record(draft, marked, facts, payload)
        self.registry.commit(record, draft.signed.manifest)
        say("recorded")
        return Stamped(draft.signed.data, record, draft.pixels)

    def _embed(self, image: NDArray[np.uint8], payload: Payload) -> Marked | None:
        try:
            return embed(image, payload, self.identity.watermark_key.watermark)
        except ProvenanceUnavailable as error:
            self._unmarkable(error.message)
            return None

    def _unmarkable(self, why: str) -> None:
        if self.require_watermark:
            raise ProvenanceUnavailable(why, "another seed or size may do; or set provenance.require_watermark = false in the policy")

    def _draft(self, image: NDArray[np.uint8], marked: Marked | None, facts: Facts, payload: Payload, file_format: str) -> _Draft:
        """Encoded and signed, with the pixels as the file gives them back."""
        created = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        size = (image.shape[0], image.shape[1])
        xmp = write_xmp(facts, size=size, created=created, generator=GENERATOR, content_id=payload.content_id)
        encoded = encode(image if marked is None else marked.image, file_format, xmp=xmp)
        signed = sign(
            encoded,
            f"image/{file_format}",
            facts,
            self.identity,
            created=created,
            generator=GENERATOR,
            content_id=payload.content_id,
            payload=None if marked is None else payload.hex,
        )
        return _Draft(signed, decode(signed.data).array, created)

    def _reads(self, pixels: NDArray[np.uint8], payload: Payload) -> bool:
        found = detect(pixels, self.identity.watermark_key.watermark)
        return found.verdict == "detected" and found.payload == payload

    def _record(self, draft: _Draft, marked: Marked | None, facts: Facts, payload: Payload) -> ProvenanceRecord:
        layout: Literal["full", "pixel", "none"] = "none" if marked is None else marked.layout
        return ProvenanceRecord(
            content_id=payload.content_id,
            issuer=payload.issuer,
            created=draft.created,
            generator=GENERATOR,
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
            facts=facts,
        )


def open_stamp(home: Path, *, require_watermark: bool = True) -> Stamp:
    """The stamp of a state folder: its identity (a development identity is made where there is none) and its registry.

    Raises `ProvenanceUnavailable`: keys expired or damaged, state folder not writable.
    """
    return Stamp(home, development_identity(home), Registry.open(home), require_watermark=require_watermark)
