"""Trust lists: kept apart by purpose, refused where they hold something else; settings refused where a key is unknown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from platemark.errors import InputError, ProvenanceUnavailable
from platemark.provenance.certificates import make_authority
from platemark.provenance.identity import authorities
from platemark.provenance.trust import TrustLists, certificates_in, check_settings, held_trust, reading_context, trust_from

ONE, TWO = make_authority("One")[0], make_authority("Two")[0]


def test_lists_of_the_state_folder_are_kept_apart(own_home: Path, tmp_path: Path) -> None:
    assert held_trust(tmp_path / "nowhere") == TrustLists()
    assert held_trust(own_home) == TrustLists(signers=authorities(own_home))
    for place, data in {"a.pem": ONE, "tsa/b.pem": TWO, "cawg/c.pem": ONE + TWO}.items():
        path = tmp_path / "trust" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"a comment\n" + data)
    assert held_trust(tmp_path) == TrustLists(signers=ONE, tsa=TWO, cawg=ONE + TWO)


@pytest.mark.parametrize(
    ("place", "data", "said"),
    [
        ("a.pem", b"nothing", "holds no PEM certificate"),
        ("tsa/a.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", "damaged certificate"),
        ("a.crt", ONE, "is no trust list"),
        ("tsa/deeper/a.pem", ONE, "is no trust list"),
        ("tsaa/a.pem", ONE, "is no trust list"),
    ],
)  # fmt: skip
def test_what_would_be_ignored_is_refused(tmp_path: Path, place: str, data: bytes, said: str) -> None:
    path = tmp_path / "trust" / place
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    with pytest.raises(ProvenanceUnavailable, match=said):
        held_trust(tmp_path)


def test_lists_named_by_the_user(tmp_path: Path) -> None:
    (tmp_path / "one.pem").write_bytes(ONE)
    (tmp_path / "two.pem").write_bytes(TWO)
    found = trust_from([tmp_path / "one.pem", tmp_path / "two.pem"], tsa=[tmp_path / "two.pem"])
    assert found == TrustLists(signers=ONE + TWO, tsa=TWO)
    assert TrustLists(ONE).plus(TrustLists(TWO, ONE)) == TrustLists(ONE + TWO, ONE)
    with pytest.raises(InputError, match="cannot read"):
        trust_from([tmp_path / "none.pem"])
    with pytest.raises(InputError, match="holds no PEM certificate"):
        certificates_in(b"", "x")


@pytest.mark.parametrize(
    "values",
    [
        {"trust": {"trust_anchor": "x"}}, {"trsut": {}}, {"verify": {"remote_fetch": False}}, {"core": {"allowed_network_hosts": "x"}},
        {"verify": {"verify_timestamp_trust": "no"}}, {"verify": {"verify_trust": False}}, {"cawg_trust": {"anchors": ""}},
    ],
)  # fmt: skip
def test_unknown_and_wrong_settings_are_refused(values: dict[str, Any]) -> None:
    """The library itself takes any key without a word."""
    with pytest.raises(InputError, match="the reading setting"):
        check_settings(values)


def test_reading_never_reaches_the_network() -> None:
    settings = check_settings({})
    assert settings["core"] == {"allowed_network_hosts": [], "allow_redirects": False}
    assert settings["verify"]["remote_manifest_fetch"] is False
    assert settings["verify"]["ocsp_fetch"] is False
    with reading_context(TrustLists(ONE, TWO, ONE)):
        pass
