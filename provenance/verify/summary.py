"""The report in sentences, for people. Knows nothing that the evidence does not say."""

from __future__ import annotations

from platemark.provenance.credentials import CredentialReport
from platemark.provenance.verify.evidence import Evidence
from platemark.provenance.verify.report import RegistryLayer, Verdict, WatermarkLayer

_NAMED = 5  # ingredients, or sources of claims, that are named
_TRUST = {
    "trusted": "This machine trusts the signer: its certificate leads to a root that is trusted here.",
    "development identity": "The signer is a development identity, which proves nothing about who made the picture.",
    "untrusted": "Nobody whom this machine knows vouches for the signer.",
}


def summarize(verdict: Verdict, evidence: Evidence) -> list[str]:
    """One sentence a fact, the most important first."""
    said = [*_of_credentials(evidence), *evidence.conflicts]
    if evidence.marked is not None:
        said.append(f"The watermark says content id {evidence.marked.content_id} of issuer {evidence.marked.issuer}.")
    elif evidence.watermark["state"] == "no-key":
        said.append("No watermark key is held here, so the watermark was not looked for.")
    elif evidence.damage is None:
        said.append(_of_no_mark(evidence.watermark))
    said += _of_registry(evidence.registry)
    if evidence.marked is not None and evidence.bound is None:
        said += _of_no_comparison(evidence.registry)
    if evidence.recovered is not None:
        said.append(_of_recovered(evidence.recovered))
    said += _of_claims(evidence)
    claims = evidence.metadata.get("claims", ())
    if verdict == "unsigned-claims" and claims:
        sources = ", ".join(str(claim["source"]) for claim in claims[:_NAMED])
        said.append(f"The metadata claims an origin ({sources}), but nothing proves it.")
    return said


def _of_no_mark(watermark: WatermarkLayer) -> str:
    keys = watermark.get("keys_tried", 1)
    counted = f", corrected for the {keys} keys tried" if keys > 1 else ""
    return f"Watermark {watermark['state'].replace('-', ' ')} (p = {watermark['p_value']:.2g}{counted})."


def _of_credentials(evidence: Evidence) -> list[str]:
    report = evidence.credentials
    if evidence.damage is not None:
        return [f"{evidence.damage.message[:1].upper()}{evidence.damage.message[1:]}; {evidence.damage.remedy}."]
    if report.state == "absent":
        return ["There are no Content Credentials."]
    if report.state == "remote":
        return [f"The Content Credentials lie elsewhere and were not fetched: {report.detail}."]
    if report.state == "corrupt":
        return [f"There are Content Credentials, but they cannot be read: {report.detail}."]
    if report.state == "invalid":
        whose = "the picture" if report.failures else "something it was made from"
        return [f"The Content Credentials do not fit {whose}: {', '.join(report.failures or report.ingredient_failures)}."]
    beside = " (from the file beside the picture)" if evidence.source == "sidecar" else ""
    by = f"Signed by '{report.signer}' with {report.claim_generator or 'an unnamed program'}{beside}; the content is what was signed."
    return [by, *_of_signer(report), *_of_remote_ingredients(report)]


def _of_remote_ingredients(report: CredentialReport) -> list[str]:
    return [
        f"The Content Credentials of what it was made from ('{one.title}') lie elsewhere and were not fetched: {one.remote}."
        for one in report.ingredients[:_NAMED]
        if one.remote
    ]


def _of_signer(report: CredentialReport) -> list[str]:
    said = [_TRUST[report.trust or "untrusted"]]
    if any("expired" in code for code in report.trust_failures):
        said.append("The signer's certificate has expired, and no time stamp that is trusted here shows that it had not when it signed.")
    if report.detail:
        said.append(f"{report.detail[:1].upper()}{report.detail[1:]}.")
    if report.time_stamp in ("trusted", "untrusted") and report.signed_at:
        by = "an authority that is trusted here" if report.time_stamp == "trusted" else "an authority that nobody here knows"
        said.append(f"Time-stamped {report.signed_at} by {by}.")
    return said


def _of_registry(registry: RegistryLayer) -> list[str]:
    if registry["state"] == "found":
        if registry["same_file"]:
            return [f"The registry here recorded it on {registry['created']}; this is the very file."]
        return [f"The registry here recorded it on {registry['created']}; this is a copy: {'; '.join(registry['differences'])}."]
    if registry["state"] == "similar":
        return [f"It looks like registered content id {registry['content_id']} ({registry['distance']} of 256 bits differ)."]
    if registry["state"] == "unavailable":
        return [f"The registry could not be asked: {registry['detail']}; {registry['remedy']}."]
    return []


def _of_no_comparison(registry: RegistryLayer) -> list[str]:
    """A mark can be copied onto another picture, so it must be said where the looks were not compared."""
    if registry["state"] == "found" and not registry["compared"]:
        return [
            "It could not be compared with the registered picture, as it was cut or turned: the mark may have been copied from that one."
        ]
    if registry["state"] in ("not-found", "no-registry"):
        where = "The registry here does not know it" if registry["state"] == "not-found" else "There is no registry here"
        return [f"{where}, so it could not be compared with the registered picture."]
    return []


def _of_recovered(report: CredentialReport) -> str:
    if report.state == "valid":
        return f"The registry's credentials for it, signed by '{report.signer}', fit this very file."
    if report.detached:
        return f"The registry's credentials for it were signed by '{report.signer}'; this copy is not the very file that they bind."
    return f"The registry's credentials for it do not hold: {', '.join(report.failures or report.ingredient_failures) or report.detail}."


def _of_claims(evidence: Evidence) -> list[str]:
    """Open watermarks alone: what the texts say is listed in the layer."""
    return [
        f"It carries the open watermark of a {claim['name']} ({claim['matching_bits']} of {claim['bits']} bits), which anybody can write."
        for claim in evidence.metadata.get("claims", ())
        if claim["source"].startswith("open watermark")
    ]
