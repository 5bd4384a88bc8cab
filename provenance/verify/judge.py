"""From evidence to the three axes and one verdict. Pure: reads nothing.

Verdicts, the first that holds: `corrupt` (pixels or credentials cannot be read) > `tampered` (the content, or what it was made from, is not
what was signed) > `conflict` (layers contradict each other) > `trusted` > `intact-untrusted` > `recovered-by-watermark` >
`unsigned-claims` > `none`.
"""

from __future__ import annotations

from typing import Literal

from platemark.provenance.verify.evidence import Evidence
from platemark.provenance.verify.report import Axes, Verdict

Integrity = Literal["intact", "tampered", "corrupt", "unsigned"]
Recovery = Literal["by-watermark", "by-perceptual-hash", "none"]

_EXIT = {"trusted": 0, "intact-untrusted": 0, "recovered-by-watermark": 0, "none": 1, "unsigned-claims": 1}


def exit_code(verdict: str) -> int:
    """0: traced or intact; 1: nothing that is proven; 6: tampered, corrupt or in conflict."""
    return _EXIT.get(verdict, 6)


def axes(evidence: Evidence) -> Axes:
    """Integrity, trust and recovery, each on its own."""
    return {"integrity": _integrity(evidence), "trust": evidence.credentials.trust or "unsigned", "recovery": _recovery(evidence)}


def judge(evidence: Evidence) -> Verdict:
    """The first verdict that holds."""
    integrity = _integrity(evidence)
    if integrity == "corrupt":
        return "corrupt"
    if integrity == "tampered":
        return "tampered"
    if evidence.conflicts:
        return "conflict"
    if integrity == "intact":
        return "trusted" if evidence.credentials.trust == "trusted" else "intact-untrusted"
    if evidence.marked is not None:
        return "recovered-by-watermark"
    claimed = evidence.metadata.get("claims") or evidence.credentials.state == "remote"
    return "unsigned-claims" if claimed else "none"


def _integrity(evidence: Evidence) -> Integrity:
    state = evidence.credentials.state
    if evidence.damage is not None or state == "corrupt":
        return "corrupt"
    if state == "invalid":
        return "tampered"
    return "intact" if state == "valid" else "unsigned"


def _recovery(evidence: Evidence) -> Recovery:
    if evidence.marked is not None:
        return "by-watermark"
    return "by-perceptual-hash" if evidence.registry["state"] == "similar" else "none"
