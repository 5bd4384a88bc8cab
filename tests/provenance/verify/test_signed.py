"""Signed reports: what they say, that they can be checked, and that nothing in them can be changed."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from platemark import __version__
from platemark.errors import InputError
from platemark.provenance.certificates import ALGORITHMS
from platemark.provenance.identity import authorities, development_identity, init_keys
from platemark.provenance.stamp import Stamped
from platemark.provenance.trust import TrustLists
from platemark.provenance.verify import VerifyReport
from platemark.provenance.verify.signed import check_report, sign_report

ERROR = {"file": "x/broken.png", "error": {"code": "bad_image", "message": "no picture", "remedy": "use one"}}


@pytest.fixture(scope="module")
def lines(look: Callable[..., VerifyReport], stamped: dict[str, Stamped], home: Path) -> list[dict[str, Any]]:
    report = look(stamped["png"].data, home=home)
    return [{"file": "/somewhere/secret/x.png"} | report.as_dict(), ERROR]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_report_is_signed_and_checked(algorithm: Any, lines: list[dict[str, Any]], stamped: dict[str, Stamped], tmp_path: Path) -> None:
    init_keys(tmp_path, name="Checker", algorithm=algorithm)
    found = check_report(sign_report(lines, home=tmp_path), home=tmp_path)
    assert (found.signature, found.trust, found.signer) == ("valid", "trusted", "Checker")
    assert found.verifier == f"platemark/{__version__}"
    assert found.time.endswith("Z")
    first, second = found.files
    assert first["sha256"] == hashlib.sha256(stamped["png"].data).hexdigest()
    assert (first["verdict"], first["file"]) == ("trusted", "x.png")  # no folders of the one who checked
    assert first["layers"] == {"c2pa": "valid", "watermark": "detected", "metadata": "claims", "registry": "found"}
    assert second == {"file": "broken.png", "error": ERROR["error"]}
    assert "record" not in json.dumps(found.files)


def test_trust_is_that_of_whoever_checks(lines: list[dict[str, Any]], home: Path, tmp_path: Path) -> None:
    report = sign_report(lines, home=home)
    assert check_report(report, home=tmp_path).trust == "untrusted"
    assert check_report(report, home=tmp_path, trust=TrustLists(signers=authorities(home))).trust == "trusted"
    assert check_report(report, home=tmp_path, trust=TrustLists(tsa=authorities(home))).trust == "untrusted"
    development_identity(tmp_path / "dev")
    found = check_report(sign_report(lines, home=tmp_path / "dev"), home=tmp_path / "dev")
    assert (found.signature, found.trust) == ("valid", "development identity")


def opened(part: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return values


def closed(values: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).rstrip(b"=").decode()


def test_any_change_is_seen(lines: list[dict[str, Any]], home: Path, tmp_path: Path) -> None:
    whole = json.loads(sign_report(lines, home=home))
    payload = opened(whole["payload"])
    payload["files"][0]["verdict"] = "none"
    assert check_report(json.dumps(whole | {"payload": closed(payload)}).encode(), home=home).signature == "invalid"
    payload = opened(whole["payload"]) | {"time": "2020-01-01T00:00:00Z"}
    assert check_report(json.dumps(whole | {"payload": closed(payload)}).encode(), home=home).signature == "invalid"
    for algorithm in ("none", "HS256", "ES384", "PS256", "EdDSA"):
        header = opened(whole["protected"]) | {"alg": algorithm}
        assert check_report(json.dumps(whole | {"protected": closed(header)}).encode(), home=home).signature == "invalid"
    init_keys(tmp_path, name="Test Studio")
    other = opened(json.loads(sign_report(lines, home=tmp_path))["protected"])
    assert check_report(json.dumps(whole | {"protected": closed(other)}).encode(), home=home).signature == "invalid"
    for signature in ("", "AAAA", whole["signature"][:-4]):
        assert check_report(json.dumps(whole | {"signature": signature}).encode(), home=home).signature == "invalid"


NO_REPORTS = [b"", b"rubbish", b"{}", b"[]", b"[" * 5000]
NO_REPORTS += [b'{"payload": "", "protected": "", "signature": ""}', b'{"payload": 1, "protected": 2, "signature": 3}']


@pytest.mark.parametrize("data", NO_REPORTS)
def test_what_is_no_report_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="signed report"):
        check_report(data, home=tmp_path)


@pytest.mark.parametrize("chain", [None, [], "x", [1], ["!"], ["AAAA"], ["AAAA"] * 20])
def test_a_broken_chain_is_refused(lines: list[dict[str, Any]], home: Path, chain: Any) -> None:
    whole = json.loads(sign_report(lines, home=home))
    header = opened(whole["protected"]) | {"x5c": chain}
    with pytest.raises(InputError, match="certificate chain"):
        check_report(json.dumps(whole | {"protected": closed(header)}).encode(), home=home)


def test_without_an_identity_nothing_is_signed(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no identity"):
        sign_report(lines, home=tmp_path)
    assert list(tmp_path.iterdir()) == []
