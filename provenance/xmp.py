"""XMP: writes the facts of a picture in IPTC 2025.1 fields, and reads the claims of any packet. Knows no file format.

Written: Iptc4xmpExt DigitalSourceType, AISystemUsed, AISystemVersionUsed and AIPromptInformation (IPTC Photo Metadata Standard 2025.1; the
prompt only as a keyed hash), xmp CreatorTool and CreateDate, and Platemark's own ContentId and Processing. Reading is for untrusted input:
bounded in size and depth, no document type, no entities.
"""

from __future__ import annotations

import re
import xml.parsers.expat
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from platemark.errors import ImageError
from platemark.provenance.record import DIGITAL_SOURCE_TYPE, Facts

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_VALUE = 4096  # characters kept of one value
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_XMP = "http://ns.adobe.com/xap/1.0/"
_OWN = "urn:platemark:xmp:1.0:"
_TC260 = "http://www.tc260.org.cn/ns/AIGC/1.0/"
_FIELDS = {
    f"{{{_IPTC}}}DigitalSourceType": "digital_source_type",
    f"{{{_IPTC}}}DigitalSourcetype": "digital_source_type",  # the spelling of older IPTC versions
    f"{{{_IPTC}}}AISystemUsed": "ai_system",
    f"{{{_IPTC}}}AISystemVersionUsed": "ai_system_version",
    f"{{{_IPTC}}}AIPromptInformation": "ai_prompt",
    f"{{{_IPTC}}}AIPromptWriterName": "ai_prompt_writer",
    f"{{{_XMP}}}CreatorTool": "creator_tool",
    f"{{{_XMP}}}CreateDate": "created",
    f"{{{_OWN}}}ContentId": "content_id",
    f"{{{_OWN}}}Processing": "processing",
    f"{{{_TC260}}}AIGC": "aigc",
}
_MARKUP = re.compile(r"<!(?!--|\[CDATA\[)")
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")


def processing_note(facts: Facts, size: tuple[int, int]) -> str | None:
    """What was done to a picture after it was rendered, or None. `size` is (height, width) as delivered; the text says width x height."""
    facts, said = facts.delivered_at(*size), []
    if facts.resampled_from is not None:
        height, width = facts.resampled_from
        how = " and ".join(["cropped"] * facts.cropped + ["resampled"] * facts.resampled)
        said += [f"rendered at {width}x{height}", f"{how} to {size[1]}x{size[0]}" + " by Lanczos" * facts.resampled]
    if facts.blurred:
        said.append("blurred by the policy")
    return ", ".join(said) or None


def write_xmp(facts: Facts, *, size: tuple[int, int], created: str, generator: str, content_id: int) -> bytes:
    """The packet (UTF-8) of one picture. `size`: (height, width) as delivered; `created`: RFC 3339; `generator`: "platemark/0.1.0"."""
    values = {
        "xmp:CreatorTool": generator,
        "xmp:CreateDate": created,
        "Iptc4xmpExt:DigitalSourceType": DIGITAL_SOURCE_TYPE,
        "Iptc4xmpExt:AISystemUsed": f"Platemark {facts.model_name}",
        "Iptc4xmpExt:AISystemVersionUsed": f"{generator}, weights sha256 {facts.model_sha256}",
        "Iptc4xmpExt:AIPromptInformation": f"hmac-sha256:{facts.request_hmac}",
        "platemark:ContentId": str(content_id),
        "platemark:Processing": processing_note(facts, size),
    }
    attributes = "\n   ".join(f"{name}={quoteattr(_printable(value))}" for name, value in values.items() if value is not None)
    namespaces = f'xmlns:xmp="{_XMP}" xmlns:Iptc4xmpExt="{_IPTC}" xmlns:platemark="{_OWN}"'
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/">\n <rdf:RDF xmlns:rdf="{_RDF}">\n'
        f'  <rdf:Description rdf:about="" {namespaces}\n   {attributes}/>\n'
        ' </rdf:RDF>\n</x:xmpmeta>\n<?xpacket end="r"?>'
    ).encode()


def read_xmp(packet: bytes) -> dict[str, str]:
    """The known fields of a packet by the names in this module's table; a field that is a list counts with its first item.

    Raises `ImageError`: over 1 MiB, over 64 levels deep, not XML, or with a document type or entity declarations.
    """
    if len(packet) > MAX_BYTES:
        raise _unreadable("the XMP packet is larger than 1 MiB")
    text = _decoded(packet).strip("\x00 \t\r\n\ufeff")
    if _MARKUP.search(text):
        raise _unreadable("the XMP packet has a document type or entity declarations")
    collector = _Collector()
    try:
        parser = ElementTree.XMLParser(target=collector)
        parser.feed(text)
        parser.close()
    except (ElementTree.ParseError, xml.parsers.expat.ExpatError, UnicodeError) as error:
        raise _unreadable("the XMP packet is not XML") from error
    return collector.found


@dataclass
class _Property:
    field: str
    depth: int
    text: str = ""


class _Collector:
    """Keeps the first value of each known field, in attribute or element form. Holds no tree, so size and depth cost nothing."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self._depth = 0
        self._inside: _Property | None = None

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _unreadable(f"the XMP packet is more than {MAX_DEPTH} levels deep")
        if self._inside is None and tag in _FIELDS:
            self._inside = _Property(_FIELDS[tag], self._depth)
            if resource := attributes.get(f"{{{_RDF}}}resource"):
                self._keep(_FIELDS[tag], resource)
        for name, value in attributes.items():
            if name in _FIELDS:
                self._keep(_FIELDS[name], value)

    def data(self, text: str) -> None:
        if self._inside is not None and len(self._inside.text) < MAX_VALUE:
            self._inside.text += text

    def end(self, tag: str) -> None:
        inside = self._inside
        if inside is not None and (tag == f"{{{_RDF}}}li" or inside.depth == self._depth):
            self._keep(inside.field, inside.text)
        if inside is not None and inside.depth == self._depth:
            self._inside = None
        self._depth -= 1

    def close(self) -> None:
        return None

    def _keep(self, field: str, value: str) -> None:
        if value := value.strip():
            self.found.setdefault(field, value[:MAX_VALUE])


def _decoded(packet: bytes) -> str:
    coding = "utf-16" if packet[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return packet.decode(coding)
    except UnicodeError as error:
        raise _unreadable("the XMP packet is not UTF-8 or UTF-16") from error


def _unreadable(why: str) -> ImageError:
    return ImageError(why, "the rest of the file can still be read")


def _printable(text: str) -> str:
    return _UNPRINTABLE.sub("\ufffd", text)
