"""XMP: what is written is read back, and hostile packets end in one kind of error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from platemark.errors import ImageError, PlatemarkError
from platemark.provenance.metadata.xmp import Release, processing_note, write_xmp
from platemark.provenance.record import DIGITAL_SOURCE_TYPE, Facts
from platemark.provenance.xmp import read_xmp

Make = Callable[..., Facts]
HEAD = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:TC260="http://www.tc260.org.cn/ns/AIGC/1.0/">'
)
TAIL = "</rdf:Description></rdf:RDF></x:xmpmeta>"


def packet(facts: Facts) -> bytes:
    return write_xmp(facts, Release((512, 640), "2026-08-02T00:00:00Z", "platemark/0.1.0", 7))


def test_round_trip(make_facts: Make) -> None:
    fields = read_xmp(packet(make_facts(resampled_from=(128, 160))))
    assert fields == {
        "digital_source_type": DIGITAL_SOURCE_TYPE,
        "ai_system": "Platemark test-model",
        "ai_system_version": f"platemark/0.1.0, weights sha256 {'ab' * 32}",
        "ai_prompt": f"hmac-sha256:{'ef' * 32}",
        "creator_tool": "platemark/0.1.0",
        "created": "2026-08-02T00:00:00Z",
        "content_id": "7",
        "processing": "rendered at 160x128, resampled to 640x512 by Lanczos",
    }


BLUR = {"action": "blur", "policy_id": "standard", "policy_sha256": "12" * 32}


@pytest.mark.parametrize(
    ("rendered", "decision", "said"),
    [
        ((128, 160), {}, "rendered at 160x128, resampled to 640x512 by Lanczos"),
        ((512, 512), {}, "rendered at 512x512, cropped and resampled to 640x512 by Lanczos"),
        ((512, 1024), {}, "rendered at 1024x512, cropped to 640x512"),
        ((512, 641), {}, "rendered at 641x512, cropped and resampled to 640x512 by Lanczos"),  # half a pixel each side
        ((128, 160), BLUR, "rendered at 160x128, resampled to 640x512 by Lanczos, blurred by the policy"),
        (None, BLUR, "blurred by the policy"),
    ],
)
def test_what_was_done_to_the_picture_is_said(make_facts: Make, rendered: Any, decision: dict[str, str], said: str) -> None:
    facts = make_facts(resampled_from=rendered, decision=decision)
    assert processing_note(facts, (512, 640)) == said
    assert read_xmp(packet(facts))["processing"] == said


def test_nothing_is_said_where_nothing_was_done(make_facts: Make) -> None:
    assert processing_note(make_facts(), (512, 512)) is None
    assert "processing" not in read_xmp(packet(make_facts()))


@settings(max_examples=100, deadline=None)
@given(name=st.text(max_size=60))
def test_any_model_name_makes_well_formed_xml(name: str) -> None:
    facts = Facts(
        model_name=name, model_sha256="", bundle_sha256="", seed=0, request_hmac="", settings={}, resampled_from=None, decision={}
    )  # fmt: skip
    data = packet(facts)
    ElementTree.fromstring(data.decode().partition("?>")[2].rpartition("<?")[0])
    assert read_xmp(data)["ai_system"].startswith("Platemark")


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16"])
def test_forms_that_others_write(coding: str) -> None:
    text = (
        f"{HEAD}<Iptc4xmpExt:AISystemUsed><rdf:Alt><rdf:li>one</rdf:li><rdf:li>two</rdf:li></rdf:Alt></Iptc4xmpExt:AISystemUsed>"
        f'<Iptc4xmpExt:DigitalSourceType rdf:resource="http://x/trainedAlgorithmicMedia"/><TC260:AIGC>{{"Label":"1"}}</TC260:AIGC>{TAIL}'
    )
    fields = read_xmp(text.encode(coding))
    assert fields == {"ai_system": "one", "digital_source_type": "http://x/trainedAlgorithmicMedia", "aigc": '{"Label":"1"}'}


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + "".join(f'<!ENTITY {c} "{("&" + chr(ord(c) - 1) + ";") * 10}">' for c in "bcdefghi") + "]>"


@pytest.mark.parametrize(
    "hostile",
    [
        (BOMB + "<x>&i;</x>").encode(),
        (BOMB + "<x>&i;</x>").encode("utf-16"),
        b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><x/>',
        b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>',
        b"<x>" * 100 + b"</x>" * 100,
        b"<x>" * 200_000,
        b"<x/>" + b" " * (1 << 20),
        b"<x>&undefined;</x>",
        b"\xff\xfe\x00",
        b"\xc3\x28",
        b"",
        b"not xml",
        b"<x></y>",
        b'<?xml version="1.0" encoding="no-such"?><x',
    ],
)
def test_hostile_packets_are_refused(hostile: bytes) -> None:
    with pytest.raises(ImageError):
        read_xmp(hostile)


def test_long_values_are_cut() -> None:
    fields = read_xmp(f"{HEAD}<Iptc4xmpExt:AISystemUsed>{'a' * 100_000}</Iptc4xmpExt:AISystemUsed>{TAIL}".encode())
    assert len(fields["ai_system"]) == 4096


SEEDS = [f"{HEAD}<Iptc4xmpExt:AISystemUsed>é</Iptc4xmpExt:AISystemUsed>{TAIL}".encode(), BOMB.encode()]


PIECES = st.sampled_from([b"<", b">", b"&", b"<!", b"]]>", b"\xff", b"<?", b"x:"]) | st.binary(max_size=6)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 600), st.integers(0, 30), PIECES)))
def test_mutated_packets_raise_only_our_errors(seed: bytes, edits: list[tuple[int, int, bytes]]) -> None:
    data = bytearray(seed)
    for at, length, new in edits:
        data[at : at + length] = new
    with contextlib.suppress(PlatemarkError):
        assert all(isinstance(value, str) for value in read_xmp(bytes(data)).values())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_raise_only_our_errors(data: bytes) -> None:
    with contextlib.suppress(PlatemarkError):
        assert read_xmp(data) == {}
