"""Profiles: a file that carries everything, and the one row that each missing or wrong field flips."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest

from platemark.imaging import decode, encode
from platemark.provenance.metadata.rules import MetadataRules
from platemark.provenance.stamp import StampRules, open_stamp
from platemark.provenance.timestamps import TimestampRule
from platemark.provenance.verify import VerifyReport
from platemark.provenance.verify.profiles import apply_profile, facts_of, judge_row, load, names
from tests.provenance.test_timestamps import good, make_authority, serving

Look = Callable[..., VerifyReport]
ROWS = [(name, row.id) for name in names() for row in load(name).rows]


@pytest.fixture(scope="module")
def full(look: Look, home: Path, picture: np.ndarray, make_facts: Any, tmp_path_factory: pytest.TempPathFactory) -> VerifyReport:
    """The report of a picture with every field of every profile: time-stamped too."""
    folder = tmp_path_factory.mktemp("tsa")
    root = make_authority(folder)
    with serving(good(folder)) as url:
        rules = StampRules(metadata=MetadataRules(prompt_writer="A. Writer"), timestamp=TimestampRule("required", url, root))
        press = open_stamp(home, rules=rules)
        return look(press.apply(picture, make_facts(), press.reserve()).data, home=home)


def statuses(profile: str, report: VerifyReport) -> dict[str, str]:
    return {row["id"]: row["status"] for row in apply_profile(profile, report)["rows"]}


def test_the_profiles_are_those_of_the_contract() -> None:
    assert names() == ("ca-sb942", "cn-gb45438", "eu-art50", "iptc")


@pytest.mark.parametrize("name", names())
def test_a_complete_file_has_every_field(name: str, full: VerifyReport) -> None:
    found = apply_profile(name, full)
    assert {row["id"]: row["status"] for row in found["rows"]} == dict.fromkeys((row.id for row in load(name).rows), "present")
    assert "no legal advice" in found["notice"]
    for row in found["rows"]:
        assert re.search(r"Article|Code of Practice|§|Annex|IPTC 2025", row["clause"]), row
        assert row["where"] in ("c2pa", "xmp", "aigc", "watermark")


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_removing_one_field_flips_exactly_its_row(name: str, row: str, full: VerifyReport) -> None:
    """Taken away: every fact that the row may be read from."""
    chosen = next(one for one in load(name).rows if one.id == row)
    facts = {key: value for key, value in facts_of(full).items() if key not in chosen.sources}
    after = {one.id: judge_row(one, facts)["status"] for one in load(name).rows}
    assert after == statuses(name, full) | {row: "missing"}


WRONG = {
    "source-type": "http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture",
    "source-uri": "trainedAlgorithmicMedia",
    "time": "last summer",
    "one-of": "4",
    "state": "something else",
}


@pytest.mark.parametrize(
    ("name", "row"), [(name, row) for name, row in ROWS if next(one for one in load(name).rows if one.id == row).rule in WRONG]
)
def test_a_wrong_value_flips_exactly_its_row_to_wrong(name: str, row: str, full: VerifyReport) -> None:
    chosen = next(one for one in load(name).rows if one.id == row)
    facts = facts_of(full) | dict.fromkeys(chosen.sources, WRONG[chosen.rule])
    judged = {one.id: judge_row(one, facts) for one in load(name).rows}
    assert {key: found["status"] for key, found in judged.items()} == statuses(name, full) | {row: "wrong"}
    assert judged[row]["why"]


# The same with real files, for the two regimes whose fields are all metadata

IPTC = {
    "DigitalSourceType": "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
    "AISystemUsed": "Engine",
    "AISystemVersionUsed": "2",
    "AIPromptInformation": "a cat",
    "AIPromptWriterName": "A. Writer",
}
AIGC = dict.fromkeys(("ContentProducer", "ProduceID", "ReservedCode1", "ContentPropagator", "PropagateID", "ReservedCode2"), "x")
AIGC["Label"] = "1"


def packet(fields: dict[str, str], label: str | None = None) -> bytes:
    said = "".join(f" Iptc4xmpExt:{key}={quoteattr(value)}" for key, value in fields.items())
    said += f" TC260:AIGC={quoteattr(label)}" if label is not None else ""
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:TC260="http://www.tc260.org.cn/ns/AIGC/1.0/"'
        f"{said}/></rdf:RDF></x:xmpmeta>"
    ).encode()


def rows_of(look: Look, home: Path, profile: str, xmp: bytes, file_format: str) -> dict[str, str]:
    data = encode(np.full((32, 32, 3), 80, np.uint8), file_format, xmp=xmp)
    assert decode(data).xmp == xmp
    report = look(data, home=home, profile=profile)
    assert report.verdict == "unsigned-claims"
    assert report.profile is not None
    return {row["id"]: row["status"] for row in report.profile["rows"]}


@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("field", IPTC)
def test_iptc_in_files(look: Look, home: Path, field: str, file_format: str) -> None:
    present = dict.fromkeys(IPTC, "present")
    assert rows_of(look, home, "iptc", packet(IPTC), file_format) == present
    left = {key: value for key, value in IPTC.items() if key != field}
    assert rows_of(look, home, "iptc", packet(left), file_format) == present | {field: "missing"}


@pytest.mark.parametrize("form", ["bare", "wrapped"])
@pytest.mark.parametrize("field", AIGC)
def test_aigc_in_files(look: Look, home: Path, field: str, form: str) -> None:
    def label(fields: dict[str, str]) -> bytes:
        return packet({}, json.dumps(fields if form == "bare" else {"AIGC": fields}))

    present = dict.fromkeys(AIGC, "present") | {"label-object": "present"}
    assert rows_of(look, home, "cn-gb45438", label(AIGC), "png") == present
    left = {key: value for key, value in AIGC.items() if key != field}
    assert rows_of(look, home, "cn-gb45438", label(left), "png") == present | {field: "missing"}
    assert rows_of(look, home, "cn-gb45438", label(AIGC | {"Label": "yes"}), "png") == present | {"Label": "wrong"}


def test_without_a_key_the_watermark_is_not_checked(full: VerifyReport) -> None:
    layers: Any = copy.deepcopy(full.layers)
    layers["watermark"] = {"state": "no-key"}
    blind = full.model_copy(update={"layers": layers})
    assert statuses("eu-art50", blind) == statuses("eu-art50", full) | {"watermark": "not-checked"}
    assert statuses("ca-sb942", blind) == statuses("ca-sb942", full) | {"permanent": "not-checked"}


def test_a_development_identity_is_no_provider(full: VerifyReport) -> None:
    layers: Any = copy.deepcopy(full.layers)
    layers["c2pa"]["trust"] = "development identity"
    nobody = full.model_copy(update={"layers": layers})
    for name in ("eu-art50", "ca-sb942"):
        assert statuses(name, nobody) == statuses(name, full) | {"provider": "missing"}


@pytest.mark.parametrize("name", names())
def test_a_plain_picture_has_nothing(look: Look, home: Path, name: str) -> None:
    report = look(encode(np.full((32, 32, 3), 80, np.uint8)), home=home, profile=name)
    assert report.profile is not None
    assert {row["status"] for row in report.profile["rows"]} == {"missing"}
