"""What unsigned texts of other programs count as, at the bounds."""

from __future__ import annotations

import json

import numpy as np
import pytest

from platemark.imaging import MAX_TEXT, Decoded
from platemark.provenance.claims import read_claims


def picture(text: dict[str, str] | None = None, xmp: bytes | None = None) -> Decoded:
    return Decoded(np.zeros((1, 1, 3), np.uint8), "png", "RGB", None, (1, 1), xmp, text or {})


def sources(decoded: Decoded) -> list[str]:
    return [claim["source"] for claim in read_claims(decoded)["claims"]]


def test_known_texts() -> None:
    graph = json.dumps({"1": {"class_type": "KSampler"}})
    assert sources(picture({"parameters": "x\nSteps: 3"})) == ["web-ui parameters"]
    assert sources(picture({"exif:UserComment": "x\nSteps: 3"})) == ["web-ui exif:UserComment"]
    assert sources(picture({"prompt": graph, "workflow": '{"nodes": []}'})) == ["comfyui prompt", "comfyui workflow"]
    assert sources(picture({"invokeai_metadata": "{}"})) == ["invokeai"]


def test_a_workflow_cut_by_the_bound_still_counts_and_is_shown_short() -> None:
    text = json.dumps({"nodes": ["x" * MAX_TEXT]})[:MAX_TEXT]
    layer = read_claims(picture({"workflow": text}))
    assert layer["state"] == "claims"
    assert len(layer["claims"][0]["excerpt"]) == 200


@pytest.mark.parametrize(
    "text", [{"prompt": "class_type"}, {"prompt": '["class_type"]'}, {"workflow": '{"nodes"' + "[" * 5000}, {"parameters": "f/2.8"}]
)
def test_other_texts_are_no_claims(text: dict[str, str]) -> None:
    assert read_claims(picture(text)) == {"state": "none", "claims": []}


def xmp(field: str) -> bytes:
    namespaces = 'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:TC260="http://www.tc260.org.cn/ns/AIGC/1.0/"'
    return f'<r {namespaces} xmlns:xmp="http://ns.adobe.com/xap/1.0/" {field}/>'.encode()


@pytest.mark.parametrize(
    ("field", "state"),
    [
        ('Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"', "claims"),
        ('Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture"', "none"),
        ('Iptc4xmpExt:AISystemUsed="x"', "claims"),
        ('TC260:AIGC=\'{"Label":"1"}\'', "claims"),
        ('xmp:CreatorTool="an editor"', "none"),
    ],
)
def test_only_xmp_that_speaks_of_ai_is_a_claim(field: str, state: str) -> None:
    assert read_claims(picture(xmp=xmp(field)))["state"] == state
