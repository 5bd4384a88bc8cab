"""The committed tables have their rows and hold numbers; the benchmarks write tables of that form."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EVALUATION = ROOT / "training" / "EVALUATION.md"
SAFETY = ROOT / "benchmarks" / "results" / "safety_names.md"
PERCENT = re.compile(r"(-?[\d.]+|nan|inf) ?%")


def rows(text: str) -> list[list[str]]:
    """The cells of every line of the Markdown tables in `text`, without heads and rules."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    rules = {number for number, cells in enumerate(lines) if set("".join(cells)) <= set("-:")}
    return [cells for number, cells in enumerate(lines) if number not in rules and number + 1 not in rules]


def percentages(text: str) -> list[float]:
    found = [float(value) for value in PERCENT.findall(text)]
    assert all(0 <= value <= 100 for value in found), text
    return found


def committed(path: Path) -> str:
    if not path.is_file():
        pytest.skip(f"{path.relative_to(ROOT).as_posix()} has not been measured yet")
    return path.read_text(encoding="utf-8")


def test_the_evaluation_of_the_embedded_model_has_its_rows_and_reaches_what_training_needs() -> None:
    text = committed(EVALUATION)
    assert "python -m training.evaluate" in text
    reached = {cells[0]: cells[1] for cells in rows(text) if len(cells) == 3}

    def one(start: str, *more: str) -> str:
        (value,) = [value for name, value in reached.items() if name.startswith(start) and all(word in name for word in more)]
        return value

    top1, top5 = percentages(one("generated (", "top-1")), percentages(one("generated pictures, top-5"))
    assert len(top1) == len(top5) == 1
    assert top1 <= top5
    assert len(percentages(one("ceiling"))) == 2
    assert percentages(one("CLIP", "originals"))[0] >= 90
    assert len(percentages(one("CLIP", "generated"))) == 1
    assert float(one("autoencoder PSNR").split("/")[0].removesuffix("dB")) >= 25


def check_safety(text: str) -> None:
    assert "`python -m benchmarks.safety_names" in text
    inside, outside = rows(text)
    assert inside[0].startswith("names of `")
    assert outside[0] == "all other names"
    assert inside[6].startswith("≥")
    assert outside[6].startswith("≤")
    for cells in (inside, outside):
        names, pictures, failed, blocked = (int(cell) for cell in cells[1:5])
        assert 0 < names <= pictures
        assert failed + blocked <= pictures
        assert percentages(cells[5])[0] == pytest.approx(100 * blocked / pictures, abs=0.051)


def test_the_committed_table_of_the_image_check() -> None:
    check_safety(committed(SAFETY))


def test_the_image_checks_table_is_written_with_command_and_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import safety_names as module
    from platemark.models import embedded
    from platemark.safety.decision import Action, Decision, Entry, Severity

    seen = Entry(detector="clip", category="weapon", score=0.5, threshold=0.25, severity=Severity.MEDIUM, model_sha256="0" * 64, ms=1.0)
    blocked, allowed = (
        Decision(stage="output_image", action=action, entries=(seen,), policy_id="standard", policy_sha256="0" * 64)
        for action in (Action.BLOCK, Action.ALLOW)
    )
    inside = [module.Outcome("dagger", seed, blocked) for seed in range(3)] + [module.Outcome("bow", 0, None)]
    asked: list[Path] = []
    table = "| a | b |\n|---|---|\n" + "\n".join(
        [module.row("names of `weapon`", "≥ 90 %", inside), module.row("all other names", "≤ 2 %", [module.Outcome("cat", 0, allowed)])]
    )
    monkeypatch.setattr(module, "open_bundle", asked.append)
    monkeypatch.setattr(module, "measure", lambda *options: table)
    path = tmp_path / "results" / "safety_names.md"
    monkeypatch.setattr(sys, "argv", ["safety_names", "--seeds", "3", "--table", str(path)])
    module.main()
    text = path.read_text(encoding="utf-8")
    assert asked == [embedded()]
    assert "--seeds 3" in text
    assert " cores, Python " in text
    assert rows(text)[0][5] == "75.0 %"
    check_safety(text)
