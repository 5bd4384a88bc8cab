"""Stamped pictures, and a `look` that holds every report against the committed schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from platemark.provenance.identity import init_keys
from platemark.provenance.metadata.rules import MetadataRules
from platemark.provenance.record import Facts
from platemark.provenance.stamp import Stamp, Stamped, StampRules, open_stamp
from platemark.provenance.verify import VerifyReport, verify

SCHEMA = Path(__file__).parents[3] / "docs" / "verify.schema.json"


@pytest.fixture(scope="session")
def schema() -> Draft202012Validator:
    values = json.loads(SCHEMA.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(values)
    return Draft202012Validator(values)


@pytest.fixture(scope="session")
def look(schema: Draft202012Validator) -> Callable[..., VerifyReport]:
    """`look(source, home=..., ...)`: as `verify`, without the deep search unless asked for."""

    def do(source: Any, **options: Any) -> VerifyReport:
        report = verify(source, **{"deep": False, **options})
        schema.validate({"file": "x"} | report.as_dict())
        return report

    return do


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verifier")
    init_keys(folder, name="Test Studio")
    return folder


@pytest.fixture(scope="session")
def press(home: Path) -> Stamp:
    return open_stamp(home, rules=StampRules(metadata=MetadataRules(prompt_writer="A. Writer", producer="Test Studio")))


@pytest.fixture(scope="session")
def stamped(press: Stamp, picture: np.ndarray, make_facts: Callable[..., Facts]) -> dict[str, Stamped]:
    return {name: press.apply(picture, make_facts(), press.reserve(), name) for name in ("png", "jpeg", "webp")}
