"""The public C2PA fixture files, where somebody has them: each must get the verdict in data/c2pa/expected.tsv.

The files are not part of the project. `PLATEMARK_C2PA_FIXTURES` names the folder that holds them; the tamper table covers the same kinds
with files of our own.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from platemark.provenance.verify import VERDICTS, VerifyReport

with (Path(__file__).parents[1] / "data" / "c2pa" / "expected.tsv").open(encoding="utf-8", newline="") as handle:
    EXPECTED = list(csv.DictReader(handle, delimiter="\t"))
FOLDER = os.environ.get("PLATEMARK_C2PA_FIXTURES")


def test_the_table_is_whole() -> None:
    assert len(EXPECTED) == len({row["file"] for row in EXPECTED}) == 20
    assert {row["verdict"] for row in EXPECTED} <= set(VERDICTS)
    assert sum(row["note"].startswith("disputed") for row in EXPECTED) == 2


@pytest.mark.skipif(FOLDER is None, reason="PLATEMARK_C2PA_FIXTURES does not name a folder with the public C2PA fixture files")
@pytest.mark.parametrize("row", EXPECTED, ids=[row["file"] for row in EXPECTED])
def test_public_files_get_their_verdict(row: dict[str, Any], look: Callable[..., VerifyReport], tmp_path: Path) -> None:
    data = (Path(FOLDER or "") / row["file"]).read_bytes()
    assert hashlib.sha256(data).hexdigest() == row["sha256"], "another version of the file"
    report = look(data, home=tmp_path)
    c2pa = report.layers["c2pa"]
    assert (report.verdict, c2pa["state"]) == (row["verdict"], row["c2pa"])
    assert c2pa.get("failures", []) == [code for code in row["failures"].split(",") if code]
    assert c2pa.get("ingredient_failures", []) == [code for code in row["ingredient_failures"].split(",") if code]
    assert report.axes["trust"] != "trusted"
