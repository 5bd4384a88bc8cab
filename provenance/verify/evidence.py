"""Gathers what every layer of a picture says, before anything is judged. Nothing is fetched and nothing is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platemark.errors import DamagedImageError, InputError
from platemark.imaging import Decoded, sniff
from platemark.provenance import credentials
from platemark.provenance.claims import read_claims
from platemark.provenance.credentials import CredentialReport
from platemark.provenance.record import WATERMARK_ALGORITHM
from platemark.provenance.registry import Entry
from platemark.provenance.trust import TrustLists
from platemark.provenance.verify.lookup import Said, conflicts, look_up
from platemark.provenance.verify.marks import read_watermark, wild_claim
from platemark.provenance.verify.pixels import decoded
from platemark.provenance.verify.report import CredentialLayer, MetadataLayer, RegistryLayer, WatermarkLayer, plain
from platemark.provenance.watermark.payload import Payload


@dataclass(frozen=True)
class Question:
    """What is verified and how. `manifest`: a store kept beside the picture; `deep`: search the watermark in every geometry."""

    data: bytes
    home: Path
    trust: TrustLists
    deep: bool
    manifest: bytes | None = None


@dataclass(frozen=True)
class Evidence:
    """Everything that was read. `damage`: why the pixels cannot be decoded; `source`: where the credentials lay.

    `recovered`: the credentials that the registry keeps for the picture that its watermark names, read against these bytes.
    """

    credentials: CredentialReport
    source: str
    damage: DamagedImageError | None
    watermark: WatermarkLayer
    marked: Payload | None
    bound: Payload | None
    metadata: MetadataLayer
    registry: RegistryLayer
    conflicts: tuple[str, ...] = ()
    recovered: CredentialReport | None = None


def gather(question: Question) -> Evidence:
    """Reads every layer. Raises `ImageError` (no picture, or a bomb) and `ProvenanceUnavailable` (a damaged key file)."""
    picture, damage = decoded(question.data)
    mime = f"image/{picture.format if picture else sniff(question.data)}"
    report, source = _credentials(question, mime)
    bound = _bound(report)
    if picture is None:
        why = {"detail": damage.message, "remedy": damage.remedy} if damage else {}
        unreadable: WatermarkLayer = {"state": "unreadable", **why}  # type: ignore[typeddict-item]
        metadata: MetadataLayer = {"state": "unreadable", **why}  # type: ignore[typeddict-item]
        return Evidence(report, source, damage, unreadable, None, bound, metadata, {"state": "not-asked"})
    watermark, found = read_watermark(picture.array, question.home, deep=question.deep)
    said = Said(report, found, bound)
    registry, entry = look_up(picture, question.data, said, question.home)
    return Evidence(
        credentials=report,
        source=source,
        damage=None,
        watermark=watermark,
        marked=said.marked,
        bound=bound,
        metadata=_claims(picture),
        registry=registry,
        conflicts=conflicts(said, registry, entry),
        recovered=_recovered(question, mime, report, entry),
    )


def _credentials(question: Question, mime: str) -> tuple[CredentialReport, str]:
    """What is embedded; else what lies beside the picture."""
    report = credentials.read(question.data, mime, question.trust)
    if report.state in ("absent", "remote") and question.manifest is not None:
        return credentials.read(question.data, mime, question.trust, manifest=question.manifest), "sidecar"
    return report, "embedded"


def _recovered(question: Question, mime: str, report: CredentialReport, entry: Entry | None) -> CredentialReport | None:
    """The registered credentials of a picture that lost its own."""
    if report.state not in ("absent", "remote") or entry is None or not entry.manifest:
        return None
    return credentials.read(question.data, mime, question.trust, manifest=entry.manifest)


def _bound(report: CredentialReport) -> Payload | None:
    """The watermark payload that the credentials name, where they are intact and it is one of ours."""
    for algorithm, value in report.soft_bindings if report.state == "valid" else ():
        if algorithm == WATERMARK_ALGORITHM:
            try:
                return Payload.unpack(bytes.fromhex(value))
            except (ValueError, InputError):
                return None
    return None


def _claims(picture: Decoded) -> MetadataLayer:
    layer: MetadataLayer = plain(read_claims(picture))
    wild = wild_claim(picture.array)
    if wild is not None:
        layer["claims"] = [*layer.get("claims", ()), wild]
        layer["state"] = "claims" if layer["state"] == "none" else layer["state"]
    return layer


def credential_layer(evidence: Evidence) -> CredentialLayer:
    """The credentials as plain data, without empty fields."""
    layer: CredentialLayer = _plain_report(evidence.credentials, evidence.source)
    if evidence.recovered is not None:
        layer["recovered"] = _plain_report(evidence.recovered, "registry")
    return layer


def _plain_report(report: CredentialReport, source: str) -> Any:
    if report.state == "absent":
        return {"state": "absent"}
    fields = {name: value for name, value in vars(report).items() if value}
    fields["ingredients"] = [vars(ingredient) for ingredient in report.ingredients[:50]]
    fields["soft_bindings"] = [{"algorithm": algorithm, "value": value} for algorithm, value in report.soft_bindings[:50]]
    fields["actions"] = report.actions[:200]
    filled = {name: value for name, value in fields.items() if value}
    return plain({"state": report.state, "source": source} | filled)
