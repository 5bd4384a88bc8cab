"""XMP: writes the facts of a picture and the policy's rights fields. Reading is `platemark.provenance.xmp`. Knows no file format.

Iptc4xmpExt DigitalSourceType, AISystemUsed, AISystemVersionUsed, AIPromptInformation and AIPromptWriterName (IPTC Photo Metadata Standard
2025.1; the prompt as a keyed hash unless the facts hold it), TC260 AIGC, xmp CreatorTool and CreateDate, dc creator and rights, xmpRights
Marked and WebStatement, plus DataMining (PLUS vocabulary), and Platemark's own ContentId, Processing and Licences.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from platemark.provenance.metadata.rules import DEFAULT_RULES, MetadataRules
from platemark.provenance.record import Facts

_NAMESPACES = {
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "dc": "http://purl.org/dc/elements/1.1/",
    "xmpRights": "http://ns.adobe.com/xap/1.0/rights/",
    "plus": "http://ns.useplus.org/ldf/xmp/1.0/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "TC260": "http://www.tc260.org.cn/ns/AIGC/1.0/",
    "platemark": "urn:platemark:xmp:1.0:",
}
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_NO_TRAINING = "http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED-AIMLTRAINING"
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")


@dataclass(frozen=True)
class Release:
    """What a packet says of the file rather than of its making.

    `size`: (height, width) as delivered; `created`: RFC 3339; `generator`: "platemark/0.1.0"; `aigc`: the TC260 label (JSON), or None.
    """

    size: tuple[int, int]
    created: str
    generator: str
    content_id: int
    aigc: str | None = None


def processing_note(facts: Facts, size: tuple[int, int]) -> str | None:
    """What was done to a picture after it was rendered, or None. `size` is (height, width) as delivered; the text says width x height."""
    facts, said = facts.delivered_at(*size), []
    if facts.resampled_from is not None:
        height, width = facts.resampled_from
        how = " and ".join(["cropped"] * facts.cropped + ["resampled"] * facts.resampled)
        origin = "given" if facts.operation == "upscale" else "rendered"
        said += [f"{origin} at {width}x{height}", f"{how} to {size[1]}x{size[0]}" + f" by {_filter(facts)}" * facts.resampled]
    if facts.blurred:
        said.append("blurred by the policy")
    return ", ".join(said) or None


def _filter(facts: Facts) -> str:
    return "Lanczos" if facts.resampled_by == "lanczos" else facts.resampled_by


def write_xmp(facts: Facts, release: Release, rules: MetadataRules = DEFAULT_RULES) -> bytes:
    """The packet (UTF-8) of one picture. A prompt in the facts is written in clear; without one its keyed hash is."""
    values = _values(facts, release, rules)
    attributes = "\n   ".join(f"{name}={quoteattr(_printable(value))}" for name, value in values.items() if value is not None)
    namespaces = " ".join(f'xmlns:{prefix}="{uri}"' for prefix, uri in _NAMESPACES.items())
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/">\n <rdf:RDF xmlns:rdf="{_RDF}">\n'
        f'  <rdf:Description rdf:about="" {namespaces}\n   {attributes}>{_lists(rules)}</rdf:Description>\n'
        ' </rdf:RDF>\n</x:xmpmeta>\n<?xpacket end="r"?>'
    ).encode()


def _values(facts: Facts, release: Release, rules: MetadataRules) -> dict[str, str | None]:
    return {
        "xmp:CreatorTool": release.generator,
        "xmp:CreateDate": release.created,
        "Iptc4xmpExt:DigitalSourceType": facts.digital_source_type,
        "Iptc4xmpExt:AISystemUsed": f"Platemark {facts.model_name}",
        "Iptc4xmpExt:AISystemVersionUsed": f"{release.generator}, weights sha256 {facts.model_sha256}",
        "Iptc4xmpExt:AIPromptInformation": _prompt(facts),
        "Iptc4xmpExt:AIPromptWriterName": rules.prompt_writer,
        "TC260:AIGC": release.aigc,
        "xmpRights:Marked": "True" if rules.rights else None,
        "xmpRights:WebStatement": rules.rights_url,
        "plus:DataMining": _NO_TRAINING if rules.do_not_train else None,
        "platemark:ContentId": str(release.content_id),
        "platemark:Processing": processing_note(facts, release.size),
        "platemark:Licences": "; ".join(str(licence) for licence in facts.licences) or None,
    }


def _prompt(facts: Facts) -> str:
    if facts.prompt is None:
        return f"hmac-sha256:{facts.request_hmac}"
    return facts.prompt + (f"\nNegative prompt: {facts.negative_prompt}" if facts.negative_prompt else "")


def _lists(rules: MetadataRules) -> str:
    """The Dublin Core fields, which are lists by their schema: creators in order, rights by language."""
    out = ""
    if rules.creator:
        out += f"\n   <dc:creator><rdf:Seq><rdf:li>{_text(rules.creator)}</rdf:li></rdf:Seq></dc:creator>"
    if rules.rights:
        out += f'\n   <dc:rights><rdf:Alt><rdf:li xml:lang="x-default">{_text(rules.rights)}</rdf:li></rdf:Alt></dc:rights>'
    return out


def _text(value: str) -> str:
    return escape(_printable(value))


def _printable(text: str) -> str:
    return _UNPRINTABLE.sub("\ufffd", text)
