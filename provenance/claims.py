"""Unsigned claims: what XMP and text chunks of a file say of its making. Anyone can write them, so they prove nothing.

Reads IPTC and TC260 fields of XMP, the `parameters` text of Stable Diffusion web UIs, and ComfyUI and InvokeAI texts.
Knows nothing of signatures or watermarks.
"""

from __future__ import annotations

import json
from typing import Any

from platemark.errors import ImageError
from platemark.imaging import Decoded
from platemark.provenance.xmp import read_xmp

_AI_SOURCE_TYPES = ("trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia", "compositeSynthetic", "algorithmicMedia")
_EXCERPT = 200  # characters of a text that are shown


def read_claims(decoded: Decoded) -> dict[str, Any]:
    """The metadata layer of a report: `state` is `claims` (something says that the picture is generated), `none` or `unreadable`.

    `claims` holds one entry a source: `source`, and the fields or the excerpt that it gave.
    """
    layer: dict[str, Any] = {"state": "none", "claims": []}
    try:
        fields = read_xmp(decoded.xmp) if decoded.xmp else {}
    except ImageError as error:
        layer |= {"state": "unreadable", "detail": error.message, "remedy": error.remedy}
        fields = {}
    if _speaks_of_ai(fields):
        layer["claims"].append({"source": "xmp", **fields})
    layer["claims"] += [{"source": source, "excerpt": text[:_EXCERPT]} for source, text in _texts(decoded.text)]
    if layer["claims"]:
        layer["state"] = "claims"
    return layer


def _speaks_of_ai(fields: dict[str, str]) -> bool:
    kind = fields.get("digital_source_type", "").rstrip("/").rpartition("/")[2]
    return kind in _AI_SOURCE_TYPES or any(fields.get(name) for name in ("ai_system", "ai_prompt", "aigc"))


def _texts(texts: dict[str, str]) -> list[tuple[str, str]]:
    found = []
    for key in ("parameters", "exif:UserComment"):
        if "Steps: " in (text := texts.get(key, "")):
            found.append((f"web-ui {key}", text))
    if "class_type" in (graph := texts.get("prompt", "")) and _is_json(graph):
        found.append(("comfyui prompt", graph))
    if '"nodes"' in (graph := texts.get("workflow", "")) and _is_json(graph):
        found.append(("comfyui workflow", graph))
    found += [("invokeai", texts[key]) for key in ("invokeai_metadata", "sd-metadata") if texts.get(key)]
    return found


def _is_json(text: str) -> bool:
    """True for a JSON object, and for one that was cut off by the length bound."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return text.lstrip().startswith("{") and len(text) >= 64 * 1024
