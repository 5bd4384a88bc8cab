"""Verdicts, axes and exit codes: every combination of what the layers may say, against the order of precedence."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest

from platemark.errors import DamagedImageError
from platemark.provenance.credentials import CredentialReport
from platemark.provenance.verify.evidence import Evidence
from platemark.provenance.verify.judge import axes, exit_code, judge
from platemark.provenance.verify.report import VERDICTS, Verdict
from platemark.provenance.watermark.payload import Payload

MARK = Payload(7, 9)
CREDENTIALS = {
    "absent": CredentialReport("absent"),
    "remote": CredentialReport("remote", detail="http://x"),
    "corrupt": CredentialReport("corrupt", detail="?"),
    "invalid": CredentialReport("invalid", trust="trusted", failures=("assertion.dataHash.mismatch",)),
    "trusted": CredentialReport("valid", trust="trusted"),
    "untrusted": CredentialReport("valid", trust="untrusted"),
    "development": CredentialReport("valid", trust="development identity"),
}


def evidence(credentials: str, *, damaged: bool, marked: bool, conflict: bool, claims: bool, similar: bool = False) -> Evidence:
    layer: Any = {"state": "claims", "claims": [{"source": "xmp"}]} if claims else {"state": "none", "claims": []}
    return Evidence(
        credentials=CREDENTIALS[credentials],
        source="embedded",
        damage=DamagedImageError("the picture is damaged", "get another") if damaged else None,
        watermark={"state": "detected" if marked else "not-detected"},
        marked=MARK if marked else None,
        bound=None,
        metadata=layer,
        registry={"state": "similar" if similar else "not-found"},
        conflicts=("They contradict.",) if conflict else (),
    )


def expected(credentials: str, *, damaged: bool, marked: bool, conflict: bool, claims: bool) -> str:
    """The issue's order, written another way: the first name in VERDICTS that holds."""
    holds = {
        "corrupt": damaged or credentials == "corrupt",
        "tampered": credentials == "invalid",
        "conflict": conflict,
        "trusted": credentials == "trusted",
        "intact-untrusted": credentials in ("untrusted", "development"),
        "recovered-by-watermark": marked,
        "unsigned-claims": claims or credentials == "remote",
        "none": True,
    }
    return next(name for name in VERDICTS if holds[name])


def test_the_order_of_verdicts_is_that_of_the_contract() -> None:
    said = "corrupt > tampered > conflict > trusted > intact-untrusted > recovered-by-watermark > unsigned-claims > none"
    assert tuple(said.split(" > ")) == VERDICTS
    assert set(VERDICTS) == set(get_args(Verdict))


@pytest.mark.parametrize("credentials", CREDENTIALS)
def test_every_combination_gets_the_first_verdict_that_holds(credentials: str) -> None:
    seen = set()
    for damaged, marked, conflict, claims in itertools.product((False, True), repeat=4):
        facts = {"damaged": damaged, "marked": marked, "conflict": conflict, "claims": claims}
        verdict = judge(evidence(credentials, **facts))
        assert verdict == expected(credentials, **facts), facts
        seen.add(verdict)
    assert len(seen) >= 1


def test_the_axes_are_kept_apart() -> None:
    clean = {"damaged": False, "marked": False, "conflict": False, "claims": False}
    assert axes(evidence("invalid", **clean)) == {"integrity": "tampered", "trust": "trusted", "recovery": "none"}
    assert axes(evidence("development", **clean | {"marked": True})) == {
        "integrity": "intact", "trust": "development identity", "recovery": "by-watermark",
    }  # fmt: skip
    assert axes(evidence("absent", **clean, similar=True)) == {
        "integrity": "unsigned", "trust": "unsigned", "recovery": "by-perceptual-hash",
    }  # fmt: skip
    assert axes(evidence("trusted", **clean | {"damaged": True}))["integrity"] == "corrupt"


def test_exit_codes_are_those_of_the_contract() -> None:
    codes = {verdict: exit_code(verdict) for verdict in VERDICTS}
    assert codes == {
        "corrupt": 6, "tampered": 6, "conflict": 6, "trusted": 0, "intact-untrusted": 0, "recovered-by-watermark": 0,
        "unsigned-claims": 1, "none": 1,
    }  # fmt: skip
