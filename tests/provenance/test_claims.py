"""What unsigned texts of other programs count as, at the bounds."""

from __future__ import annotations

import json
from typing import Any
from xml.sax.saxutils import quoteattr

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


PARAMETERS = """a cat, <lora:x:1>
Negative prompt: b, Steps: of stone
Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 123, Size: 512x768, Model: m, Lora hashes: "x: 12, y: 34", Version: v1"""


def test_settings_of_web_uis_are_taken_apart() -> None:
    (claim,) = read_claims(picture({"parameters": PARAMETERS}))["claims"]
    assert claim["settings"] == {
        "Steps": "20", "Sampler": "DPM++ 2M Karras", "CFG scale": "7", "Seed": "123", "Size": "512x768", "Model": "m",
        "Lora hashes": "x: 12, y: 34", "Version": "v1",
    }  # fmt: skip
    assert claim["excerpt"].startswith("a cat")


def test_our_own_web_ui_text_reads_back(make_facts: Any) -> None:
    from platemark.provenance.metadata.webui import parameters_text

    text = parameters_text(make_facts(settings={"num_inference_steps": "20"}), size=(512, 768), generator="platemark/0.1.0")
    (claim,) = read_claims(picture({"parameters": text}))["claims"]
    assert claim["source"] == "web-ui parameters"
    assert claim["settings"]["Seed"] == str(2**64 - 1)
    assert claim["settings"]["Size"] == "768x512"


def test_comfyui_graphs_say_models_and_seeds() -> None:
    graph = {
        "3": {"class_type": "KSampler", "inputs": {"seed": 5, "steps": 20, "cfg": 7.5, "sampler_name": "euler", "model": ["4", 0]}},
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd_xl.safetensors"}},
    }
    workflow = {"nodes": [{"id": 3}, {"id": 4}], "links": []}
    prompt, flow = read_claims(picture({"prompt": json.dumps(graph), "workflow": json.dumps(workflow)}))["claims"]
    assert (prompt["nodes"], flow["nodes"]) == (2, 2)
    assert prompt["settings"] == {"seed": "5", "steps": "20", "cfg": "7.5", "sampler_name": "euler", "ckpt_name": "sd_xl.safetensors"}


LABEL = {"Label": "1", "ContentProducer": "p", "ProduceID": "7"}


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (json.dumps(LABEL), "bare"),
        (json.dumps({"AIGC": LABEL}), "wrapped"),
        (json.dumps({"AIGC": json.dumps(LABEL)}), "wrapped"),
        (json.dumps(json.dumps(LABEL)), "bare"),
        ("AIGC:" + json.dumps(LABEL), "bare"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["xmp", "png text", "exif"])
def test_aigc_labels_in_every_place_and_form(place: str, text: str, form: str) -> None:
    if place == "xmp":
        decoded = picture(xmp=xmp(f"TC260:AIGC={quoteattr(text)}"))
    else:
        decoded = picture({"AIGC" if place == "png text" else "exif:UserComment": text})
    claims = [claim for claim in read_claims(decoded)["claims"] if claim["source"].startswith("aigc")]
    if place == "exif" and "\\" in text:
        return  # a label within a label is looked for where labels belong
    assert claims == [{"source": f"aigc label ({place})", "form": form, "label": LABEL}]


@pytest.mark.parametrize("text", ["{", "[]", '{"Lable": "1"}', '{"AIGC": 5}', "yes"])
def test_a_damaged_label_in_xmp_is_said_to_be_one(text: str) -> None:
    claims = read_claims(picture(xmp=xmp(f"TC260:AIGC={quoteattr(text)}")))["claims"]
    assert {"source": "aigc label (xmp)", "form": "damaged", "label": {}, "excerpt": text} in claims
    assert sources(picture({"AIGC": text})) == []
