"""XMP: reads the claims of any packet. Writing is `platemark.provenance.metadata.xmp`. Knows no file format.

For untrusted input: bounded in size and depth, no document type, no entities.
"""

from __future__ import annotations

import re
import xml.parsers.expat
from dataclasses import dataclass
from xml.etree import ElementTree

from platemark.errors import ImageError

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_VALUE = 4096  # characters kept of one value
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_XMP = "http://ns.adobe.com/xap/1.0/"
_OWN = "urn:platemark:xmp:1.0:"
_TC260 = "http://www.tc260.org.cn/ns/AIGC/1.0/"
_DC = "http://purl.org/dc/elements/1.1/"
_RIGHTS = "http://ns.adobe.com/xap/1.0/rights/"
_PLUS = "http://ns.useplus.org/ldf/xmp/1.0/"
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
    f"{{{_OWN}}}Licences": "licences",
    f"{{{_TC260}}}AIGC": "aigc",
    f"{{{_DC}}}creator": "creator",
    f"{{{_DC}}}rights": "rights",
    f"{{{_RIGHTS}}}WebStatement": "rights_url",
    f"{{{_PLUS}}}DataMining": "data_mining",
}
_MARKUP = re.compile(r"<!(?!--|\[CDATA\[)")


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
