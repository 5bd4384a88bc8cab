"""The implicit label of GB 45438-2025 (TC260): a JSON text in the XMP property `TC260:AIGC`. Knows nothing of XMP.

Fields after Annex E of the standard: `Label` "1" (generated), the producing service and its number for the content, and two reserved fields
that each service may use to protect its label; the propagation fields are for platforms that pass the picture on, and stay empty here.
"""

from __future__ import annotations

import hashlib
import hmac
import json

_MAX_PRODUCER = 128  # characters


def aigc_label(producer: str, issuer: int, content_id: int, key: bytes | None = None) -> str:
    """The label as ASCII JSON. `key`: seals producer and number (HMAC-SHA256, hex, in `ReservedCode1`), so that a copied label shows."""
    produce_id = f"{issuer}-{content_id}"
    producer = producer[:_MAX_PRODUCER]
    seal = "" if key is None else hmac.new(key, json.dumps(["1", producer, produce_id]).encode(), hashlib.sha256).hexdigest()
    fields = {
        "Label": "1",
        "ContentProducer": producer,
        "ProduceID": produce_id,
        "ReservedCode1": seal,
        "ContentPropagator": "",
        "PropagateID": "",
        "ReservedCode2": "",
    }
    return json.dumps(fields, separators=(",", ":"))
