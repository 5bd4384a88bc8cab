"""The committed JSON schema: it is the one of the code, and it is strict."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator, ValidationError

from platemark.errors import InputError
from platemark.imaging import encode
from platemark.provenance.stamp import Stamped
from platemark.provenance.verify import VerifyReport
from platemark.provenance.verify.batch import Settings, verify_one
from platemark.provenance.verify.profiles import names
from platemark.provenance.verify.report import schema_text

COMMITTED = Path(__file__).parents[3] / "docs" / "verify.schema.json"


def test_the_committed_schema_is_that_of_the_code() -> None:
    wanted = schema_text()
    assert COMMITTED.read_text(encoding="utf-8") == wanted, (
        "write platemark.provenance.verify.report.schema_text() to docs/verify.schema.json"
    )


@pytest.fixture(scope="module")
def line(stamped: dict[str, Stamped], home: Path) -> dict[str, Any]:
    return verify_one(stamped["png"].data, "x.png", Settings(home=str(home), deep=False, profile="iptc")).values


def test_lines_of_reports_and_errors_fit(line: dict[str, Any], home: Path, schema: Draft202012Validator, tmp_path: Path) -> None:
    schema.validate(line)
    (tmp_path / "text.png").write_text("no picture")
    for path in (tmp_path / "text.png", tmp_path / "none.png", tmp_path):
        failed = verify_one(path, str(path), Settings(home=str(home), deep=False))
        schema.validate(failed.values)
        assert failed.code == 2
        assert set(failed.values) == {"file", "error"}


@pytest.mark.parametrize("profile", [None, *names()])
@pytest.mark.parametrize("kind", ["signed", "plain", "cut", "stripped", "tiny"])
def test_every_kind_of_report_fits(
    look: Callable[..., VerifyReport], stamped: dict[str, Stamped], home: Path, kind: str, profile: str | None
) -> None:
    data = stamped["png"].data
    made = {
        "signed": data,
        "plain": encode(np.full((40, 40, 3), 9, np.uint8)),
        "cut": data[:5000],
        "stripped": encode(stamped["png"].pixels),
        "tiny": encode(np.zeros((1, 1, 3), np.uint8)),
    }
    report = look(made[kind], home=home, profile=profile)  # `look` holds it against the schema
    assert (report.profile is None) == (profile is None)


@pytest.mark.parametrize(
    "path",
    [("verdict",), ("axes",), ("axes", "trust"), ("layers",), ("layers", "registry"), ("layers", "c2pa", "state"), ("sha256",), ("file",)],
)  # fmt: skip
def test_the_schema_misses_what_is_missing(line: dict[str, Any], schema: Draft202012Validator, path: tuple[str, ...]) -> None:
    broken = copy.deepcopy(line)
    inner = broken
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    with pytest.raises(ValidationError):
        schema.validate(broken)


@pytest.mark.parametrize("path", [(), ("axes",), ("layers",), ("layers", "c2pa"), ("layers", "watermark"), ("layers", "metadata")])
def test_the_schema_takes_no_strange_fields(line: dict[str, Any], schema: Draft202012Validator, path: tuple[str, ...]) -> None:
    broken = copy.deepcopy(line)
    inner = broken
    for key in path:
        inner = inner[key]
    inner["strange"] = 1
    with pytest.raises(ValidationError):
        schema.validate(broken)
    with pytest.raises(ValidationError):
        schema.validate(line | {"verdict": "fine"})


def test_an_unknown_profile_is_refused(look: Callable[..., VerifyReport], home: Path) -> None:
    with pytest.raises(InputError, match="there is no profile"):
        look(encode(np.zeros((8, 8, 3), np.uint8)), home=home, profile="../iptc")
