"""Unsigned claims: what XMP and text chunks of a file say of its making. Anyone can write them, so they prove nothing.

Reads IPTC and TC260 fields of XMP, the AIGC label (GB 45438) in XMP, PNG text or EXIF, the `parameters` text of Stable Diffusion web UIs,
ComfyUI's prompt and workflow, and texts of InvokeAI and NovelAI. Knows nothing of signatures or watermarks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from platemark.errors import ImageError
from platemark.imaging import MAX_TEXT, Decoded
from platemark.provenance.xmp import read_xmp

Claim = dict[str, Any]
AI_SOURCE_TYPES = (
    "trainedAlgorithmicMedia",
    "compositeWithTrainedAlgorithmicMedia",
    "compositeSynthetic",
    "algorithmicMedia",
    "algorithmicallyEnhanced",
)
AIGC_KEYS = ("Label", "ContentProducer", "ProduceID", "ReservedCode1", "ContentPropagator", "PropagateID", "ReservedCode2")
_EXCERPT = 200  # characters of a text that are shown
_VALUE = 500  # characters of one value that are shown
_PAIR = re.compile(r'\s*([\w /+]{1,60}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_LINE = 20_000  # characters of a settings line that are parsed
_NODES = 2000  # of a graph


def read_claims(decoded: Decoded) -> dict[str, Any]:
    """The metadata layer of a report: `state` is `claims` (something says that the picture is generated), `none` or `unreadable`.

    `claims` holds one entry a source: `source`, and the fields or the excerpt that it gave. `fields` holds every XMP field that was read.
    """
    layer: dict[str, Any] = {"state": "none", "claims": []}
    try:
        fields = read_xmp(decoded.xmp) if decoded.xmp else {}
    except ImageError as error:
        layer |= {"state": "unreadable", "detail": error.message, "remedy": error.remedy}
        fields = {}
    if fields:
        layer["fields"] = fields
    if _speaks_of_ai(fields):
        layer["claims"].append({"source": "xmp", **fields})
    label = read_aigc(fields.get("aigc"), decoded.text)
    if label is not None:
        layer["claims"].append(label)
    layer["claims"] += list(_texts(decoded.text))
    if layer["claims"]:
        layer["state"] = "claims"
    return layer


def read_aigc(xmp: str | None, texts: dict[str, str]) -> Claim | None:
    """The AIGC label of GB 45438: from XMP, else from the PNG text `AIGC`, else from the EXIF user comment.

    Bare (`{"Label": …}`) or wrapped (`{"AIGC": {…}}`), as JSON or as text in JSON. `form` says which; `label` holds its values as texts.
    """
    places = (("xmp", xmp), ("png text", texts.get("AIGC")), ("exif", texts.get("exif:UserComment")))
    for place, text in places:
        if text and (place != "exif" or '"Label"' in text):
            fields, form = _unwrapped(text)
            if fields is not None:
                label = {str(key)[:80]: _shown(value) for key, value in list(fields.items())[:50]}
                return {"source": f"aigc label ({place})", "form": form, "label": label}
            if place == "xmp":
                return {"source": "aigc label (xmp)", "form": "damaged", "label": {}, "excerpt": text[:_EXCERPT]}
    return None


def _unwrapped(text: str) -> tuple[dict[str, Any] | None, str]:
    value, form = _json(text.strip().removeprefix("AIGC").lstrip(":= ")), "bare"
    if isinstance(value, dict) and "AIGC" in value:
        value, form = value["AIGC"], "wrapped"
    if isinstance(value, str):
        value = _json(value)
    return (value, form) if isinstance(value, dict) and any(key in value for key in AIGC_KEYS) else (None, form)


def _speaks_of_ai(fields: dict[str, str]) -> bool:
    return source_kind(fields.get("digital_source_type", "")) in AI_SOURCE_TYPES or any(
        fields.get(name) for name in ("ai_system", "ai_prompt", "aigc")
    )


def source_kind(uri: str) -> str:
    """The last part of a digital source type: `trainedAlgorithmicMedia`."""
    return uri.rstrip("/").rpartition("/")[2]


def _texts(texts: dict[str, str]) -> Iterator[Claim]:
    for key in ("parameters", "exif:UserComment"):
        if "Steps: " in (text := texts.get(key, "")):
            yield {"source": f"web-ui {key}", "excerpt": text[:_EXCERPT], **_settings(text)}
    if "class_type" in (graph := texts.get("prompt", "")) and _is_json(graph):
        yield {"source": "comfyui prompt", "excerpt": graph[:_EXCERPT], **_graph(graph)}
    if '"nodes"' in (graph := texts.get("workflow", "")) and _is_json(graph):
        yield {"source": "comfyui workflow", "excerpt": graph[:_EXCERPT], **_workflow(graph)}
    for key in ("invokeai_metadata", "sd-metadata"):
        if metadata := texts.get(key):
            yield {"source": "invokeai", "excerpt": metadata[:_EXCERPT]}
    if texts.get("Software") == "NovelAI":
        yield {"source": "novelai", "excerpt": (texts.get("Comment") or texts.get("Description") or "")[:_EXCERPT]}


def _settings(text: str) -> dict[str, Any]:
    """The settings line of a web UI's text: `settings` with its names as they stand. Prompts are in the excerpt alone."""
    line = text[text.rfind("\n", 0, text.rfind("Steps: ")) + 1 :][:_LINE]
    found = {name.strip(): _plain(value)[:_VALUE] for name, value in _PAIR.findall(line)}
    return {"settings": found} if found else {}


def _plain(value: str) -> str:
    parsed = _json(value) if value.startswith('"') else None
    return parsed if isinstance(parsed, str) else value.strip()


def _graph(text: str) -> dict[str, Any]:
    """What a ComfyUI prompt says of models and seeds: `nodes`, and the texts of known inputs under `settings`."""
    value = _json(text)
    nodes = list(value.values())[:_NODES] if isinstance(value, dict) else []
    settings: dict[str, str] = {}
    for node in nodes:
        inputs = node.get("inputs") if isinstance(node, dict) else None
        for name in ("ckpt_name", "unet_name", "lora_name", "seed", "noise_seed", "steps", "cfg", "sampler_name"):
            found = inputs.get(name) if isinstance(inputs, dict) else None
            if isinstance(found, str | int | float):
                settings.setdefault(name, str(found)[:_VALUE])
    return {"nodes": len(nodes)} | ({"settings": settings} if settings else {})


def _workflow(text: str) -> dict[str, Any]:
    value = _json(text)
    nodes = value.get("nodes") if isinstance(value, dict) else None
    return {"nodes": len(nodes)} if isinstance(nodes, list) else {}


def _is_json(text: str) -> bool:
    """True for a JSON object, and for one that was cut off by the length bound."""
    return isinstance(_json(text), dict) or (text.lstrip().startswith("{") and len(text) >= MAX_TEXT)


def _json(text: str) -> Any:
    """The value, or None where the text is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _shown(value: Any) -> str:
    """A value as text, cut: a JSON text for what is not text already."""
    return (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))[:_VALUE]
