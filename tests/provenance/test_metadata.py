"""Metadata writers: what others read back, prompts only where the rules allow them, rights where the policy has them."""

from __future__ import annotations

import hmac
import io
import json
import re
from collections.abc import Callable
from xml.etree import ElementTree

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from platemark.imaging import WRITABLE, decode, encode, rgb_profile, srgb_profile
from platemark.provenance.metadata.aigc import aigc_label
from platemark.provenance.metadata.rules import MetadataRules
from platemark.provenance.metadata.webui import parameters_text
from platemark.provenance.metadata.xmp import Release, write_xmp
from platemark.provenance.record import COMPOSITE_SOURCE_TYPE, Facts, Licence
from platemark.provenance.xmp import read_xmp

Make = Callable[..., Facts]
RELEASE = Release((512, 640), "2026-08-02T00:00:00Z", "platemark/0.1.0", 7, aigc_label("Studio", 3, 7))
SETTINGS = {"num_inference_steps": "20", "guidance_scale": "7.5", "height": "512", "width": "640", "scheduler": "euler"}
NS = {
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "plus": "http://ns.useplus.org/ldf/xmp/1.0/",
    "xmpRights": "http://ns.adobe.com/xap/1.0/rights/",
    "platemark": "urn:platemark:xmp:1.0:",
}


def description(packet: bytes) -> ElementTree.Element:
    root = ElementTree.fromstring(packet.decode().partition("?>")[2].rpartition("<?")[0])
    found = root.find(".//rdf:Description", NS)
    assert found is not None
    return found


def read_parameters(text: str) -> tuple[str, str, dict[str, str]]:
    """As web UIs read the text: a last line with three or more pairs holds the settings; the lines before it are the prompts."""
    *lines, last = text.strip().split("\n")
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    if len(pairs) < 3:
        lines, pairs = [*lines, last], []
    prompt, negative, at_negative = [], [], False
    for line in lines:
        if line.startswith("Negative prompt:"):
            at_negative, line = True, line.removeprefix("Negative prompt:").strip()
        (negative if at_negative else prompt).append(line)
    values = {name: json.loads(value) if value.startswith('"') else value for name, value in pairs}
    return "\n".join(prompt), "\n".join(negative), values


def test_web_uis_read_the_settings_back(make_facts: Make) -> None:
    facts = make_facts(prompt="a red apple, on a table", negative_prompt="blurry", settings=SETTINGS, seed=2**63)
    prompt, negative, values = read_parameters(parameters_text(facts, size=(512, 640), generator="platemark/0.1.0"))
    assert prompt == "a red apple, on a table"
    assert negative == "blurry"
    assert values == {
        "Steps": "20", "Sampler": "Euler", "CFG scale": "7.5", "Seed": str(2**63), "Size": "640x512", "Model hash": "ab" * 5,
        "Model": "test-model", "Version": "platemark/0.1.0",
    }  # fmt: skip


def test_without_prompts_the_text_is_one_line_of_settings(make_facts: Make) -> None:
    text = parameters_text(make_facts(settings=SETTINGS | {"strength": "0.6"}), size=(64, 64), generator="g")
    prompt, negative, values = read_parameters(text)
    assert (prompt, negative) == ("", "")
    assert values["Denoising strength"] == "0.6"
    own = parameters_text(make_facts(settings=SETTINGS | {"scheduler": "checkpoint"}), size=(64, 64), generator="g")
    assert "Sampler" not in read_parameters(own)[2]
    assert text.startswith("Steps: 20, ")  # what readers of claims look for


@settings(max_examples=100, deadline=None)
@given(name=st.text(min_size=1, max_size=40), prompt=st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), max_size=80))
def test_any_model_name_and_prompt_survive_the_text(name: str, prompt: str) -> None:
    facts = Facts(
        model_name=name, model_sha256="ab" * 32, bundle_sha256="", seed=1, request_hmac="", settings=SETTINGS,
        resampled_from=None, decision={}, prompt=f"a {prompt} b",
    )  # fmt: skip
    got, _, values = read_parameters(parameters_text(facts, size=(64, 64), generator="g/1"))
    assert values["Seed"] == "1"
    assert got == f"a {prompt} b"
    if name.strip() == name:
        assert values["Model"] == name


@pytest.mark.parametrize("file_format", WRITABLE)
def test_texts_and_packets_are_in_the_files(picture: np.ndarray, make_facts: Make, file_format: str) -> None:
    text = "ein Bär 猫\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1"
    packet = write_xmp(make_facts(), RELEASE)
    decoded = decode(encode(picture, file_format, xmp=packet, text={"parameters": text}))
    assert decoded.xmp is not None
    assert read_xmp(decoded.xmp)["content_id"] == "7"
    key = {"png": "parameters", "jpeg": "exif:UserComment", "webp": "exif:UserComment", "avif": "exif:UserComment"}.get(file_format)
    assert (decoded.text.get(key) if key else text) == text


def test_a_latin_text_is_a_plain_text_chunk(picture: np.ndarray) -> None:
    data = encode(picture[:64, :64], "png", text={"parameters": "Steps: 20"})
    assert b"tEXtparameters\0Steps: 20" in data


@pytest.mark.parametrize("file_format", WRITABLE)
def test_colours_are_said_to_be_srgb_or_the_profile_is_kept(picture: np.ndarray, file_format: str) -> None:
    plain = encode(picture[:64, :64], file_format)
    if file_format == "png":
        assert plain.index(b"sRGB") < plain.index(b"IDAT")
    elif file_format != "gif":
        assert rgb_profile(plain) == srgb_profile()
    other = srgb_profile()[:24] + b"\7" * 12 + srgb_profile()[36:]
    if file_format != "gif":
        kept = encode(picture[:64, :64], file_format, icc=other)
        assert rgb_profile(kept) == other
        assert b"sRGB\0\xae" not in kept  # no second statement on colour


def test_a_profile_of_another_colour_space_is_not_taken_for_rgb(picture: np.ndarray) -> None:
    cmyk = srgb_profile()[:16] + b"CMYK" + srgb_profile()[20:]
    out = io.BytesIO()
    PIL.Image.fromarray(picture[:32, :32]).convert("CMYK").save(out, "jpeg", icc_profile=cmyk)
    assert rgb_profile(out.getvalue()) is None


def test_a_picture_in_tiff_is_the_same_picture(picture: np.ndarray) -> None:
    assert np.array_equal(decode(encode(picture, "tiff", xmp=b"<x/>")).array, picture)


def test_the_aigc_label_is_ascii_json_of_seven_fields() -> None:
    label = aigc_label("工作室 Studio", 12, 2**40, b"key")
    assert label.isascii()
    fields = json.loads(label)
    assert list(fields) == [
        "Label", "ContentProducer", "ProduceID", "ReservedCode1", "ContentPropagator", "PropagateID", "ReservedCode2",
    ]  # fmt: skip
    assert (fields["Label"], fields["ContentProducer"], fields["ProduceID"]) == ("1", "工作室 Studio", f"12-{2**40}")
    assert fields["ReservedCode1"] == hmac.digest(b"key", json.dumps(["1", "工作室 Studio", f"12-{2**40}"]).encode(), "sha256").hex()
    assert json.loads(aigc_label("工作室 Studio", 12, 5, b"key"))["ReservedCode1"] != fields["ReservedCode1"]
    assert json.loads(aigc_label("x", 1, 1))["ReservedCode1"] == ""


def test_the_label_reads_back_from_the_packet(make_facts: Make) -> None:
    fields = json.loads(read_xmp(write_xmp(make_facts(), RELEASE))["aigc"])
    assert fields["ProduceID"] == "3-7"


def test_prompts_are_a_keyed_hash_unless_the_facts_hold_them(make_facts: Make) -> None:
    asked = make_facts(prompt='a "cat" & <dog>', negative_prompt="blur")
    assert read_xmp(write_xmp(asked, RELEASE))["ai_prompt"] == 'a "cat" & <dog>\nNegative prompt: blur'
    hidden = write_xmp(asked.without_prompts(), RELEASE)
    assert read_xmp(hidden)["ai_prompt"] == f"hmac-sha256:{'ef' * 32}"
    assert b"cat" not in hidden
    assert "cat" not in repr(asked)


def test_rights_are_written_where_the_policy_has_them(make_facts: Make) -> None:
    rules = MetadataRules(
        prompt_writer="Ada", creator="Studio & Söhne", rights="© 2026", rights_url="https://example.org/r", do_not_train=True
    )
    licences = (
        Licence(part="model", name="SDXL", licence="OpenRAIL++-M"),
        Licence(part="lora", name="ink", licence="MIT", url="https://x"),
    )
    packet = write_xmp(make_facts(licences=licences), RELEASE, rules)
    found = description(packet)
    assert [li.text for li in found.findall("dc:creator/rdf:Seq/rdf:li", NS)] == ["Studio & Söhne"]
    assert [li.text for li in found.findall("dc:rights/rdf:Alt/rdf:li", NS)] == ["© 2026"]
    assert found.get(f"{{{NS['xmpRights']}}}Marked") == "True"
    assert found.get(f"{{{NS['xmpRights']}}}WebStatement") == "https://example.org/r"
    assert found.get(f"{{{NS['plus']}}}DataMining") == "http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED-AIMLTRAINING"
    assert found.get(f"{{{NS['platemark']}}}Licences") == "model SDXL: OpenRAIL++-M; lora ink: MIT (https://x)"
    assert read_xmp(packet)["ai_prompt_writer"] == "Ada"
    plain = write_xmp(make_facts(), RELEASE)
    for word in (b"DataMining", b"WebStatement", b"dc:creator", b"Licences", b"AIPromptWriterName"):
        assert word not in plain


def test_inpainting_is_said_to_be_a_composite(make_facts: Make) -> None:
    assert read_xmp(write_xmp(make_facts(operation="inpaint"), RELEASE))["digital_source_type"] == COMPOSITE_SOURCE_TYPE
