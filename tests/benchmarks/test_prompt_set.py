"""The labelled prompt set is what its recipe makes, and its held-out half is the one that was committed first."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "safety" / "prompts"
HELDOUT = "ba39ffc27278a34cd2886c917b96f45352431d0e6040266d9adff9d0a39601f8"  # a figure on other prompts is another figure


def make(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(folder / "make.py"), "--check"], capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "prompts", ignore=shutil.ignore_patterns("__pycache__")))


def test_the_heldout_half_is_the_one_committed_first() -> None:
    assert hashlib.sha256((FOLDER / "heldout.jsonl").read_bytes()).hexdigest() == HELDOUT
    assert f"{HELDOUT}  heldout.jsonl" in (FOLDER / "SHA256SUMS").read_text(encoding="utf-8").splitlines()


def test_the_files_are_what_the_recipe_makes(copy: Path) -> None:
    done = make(copy)
    assert (done.returncode, done.stdout, done.stderr) == (0, "up to date\n", "")


def test_an_edited_prompt_is_noticed(copy: Path) -> None:
    (copy / "develop.jsonl").write_text("", encoding="utf-8")
    done = make(copy)
    assert done.returncode == 1
    assert done.stdout == "differs: develop.jsonl\n"


def test_a_duplicate_is_named_by_id_and_not_by_text(copy: Path) -> None:
    source = copy / "source" / "en.tsv"
    row = source.read_text(encoding="utf-8").splitlines()[1]
    with source.open("a", encoding="utf-8") as file:
        file.write(row + "\n")
    done = make(copy)
    assert done.returncode == 1
    assert done.stderr.startswith("duplicate text: en-")
    assert row.split("\t")[-1] not in done.stderr


def test_halves_share_no_prompt_and_no_source() -> None:
    texts = [(FOLDER / f"{name}.jsonl").read_text(encoding="utf-8") for name in ("develop", "heldout")]
    halves = [[json.loads(line) for line in text.split("\n")[:-1]] for text in texts]  # a text may hold U+2028, where splitlines cuts
    ids = [{entry["id"] for entry in half} for half in halves]
    assert not ids[0] & ids[1]
    assert not {entry["text"] for entry in halves[0]} & {entry["text"] for entry in halves[1]}
    for half, own in zip(halves, ids, strict=True):
        assert len(half) >= 400
        assert {entry["source_id"] for entry in half if entry["source_id"]} <= own
