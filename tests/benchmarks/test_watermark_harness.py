"""The harness counts right, goes on where it stopped, mixes nothing; the tail fit finds what was put in; the committed tables are whole."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy")
pytest.importorskip("skimage")

from benchmarks.watermark import attacks, harness, images, peers, table, tail, trial
from benchmarks.watermark.images import Spec

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def test_wilson_intervals_are_those_of_the_book() -> None:
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    for hits, trials, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)):
        assert table.wilson(hits, trials) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    assert table.wilson(0, 0) == (0.0, 1.0)


def trials(row: str, hits: int, count: int, stage: str = "fast") -> list[table.Record]:
    return [
        {"pair": n, "row": row, "exact": n < hits, "wrong": False, "stage": stage if n < hits else None, "fast_ms": 10.0, "deep_ms": None}
        for n in range(count)
    ]


def test_a_row_says_rate_interval_and_whether_the_target_is_met() -> None:
    rows = table.by_row([*trials("jpeg-30", 98, 100), *trials("none", 100, 100), *trials("crop-10", 50, 100), *trials("jpeg-10", 3, 100)])
    assert list(rows) == ["none", "jpeg-30", "jpeg-10", "crop-10"], "in the order of the attacks"
    cells = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in table.attacked(rows, 512)[2:]}
    assert cells["jpeg-30"][:5] == ["100", "98.0 %", "93.0 to 99.4", "97 %", "yes"]
    assert cells["crop-10"][3:5] == ["60 %", "no"]
    assert cells["jpeg-10"][3:5] == ["", ""]
    assert table.target("resize-25", 512) is None
    assert table.target("resize-25", 1024) == 0.90


def test_a_pair_that_was_run_twice_counts_once() -> None:
    assert len(table.by_row([*trials("none", 5, 5), *trials("none", 5, 5)])["none"]) == 5


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> trial.Setting:
    """Pictures that need no photograph: charts, text and gradients at 256."""
    monkeypatch.setattr(images, "_cache", lambda: tmp_path)
    specs = [Spec(f"noise/tune/{n}", "noise", 256, ()) for n in range(3)]
    monkeypatch.setattr(images, "specs", lambda split, size, kinds=(): specs)
    return trial.Setting("tune", 256, 40.0, ("noise",))


def test_a_trial_marks_attacks_and_reads(small: trial.Setting) -> None:
    (pair,) = trial.pairs(small, 1)
    marked, plain, lost = trial.run(small, pair, ["none", "crop-10"])
    assert marked["psnr"] == pytest.approx(40, abs=0.5)
    assert marked["embed_ms"] > 0
    assert (plain["row"], plain["exact"], plain["stage"], plain["wrong"]) == ("none", True, "fast", False)
    assert plain["deep_ms"] is None
    assert lost["row"] == "crop-10"
    assert lost["deep_ms"] is not None or lost["stage"] == "fast"


def test_the_harness_goes_on_where_it_stopped(
    small: trial.Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, written = tmp_path / "trials.jsonl", tmp_path / "table.md"
    arguments = ["harness", "--split", "tune", "--size", "256", "--psnr", "40", "--kinds", "noise", "--pairs", "3", "--rows", "none,gray"]
    arguments += ["--out", str(out), "--table", str(written)]
    for seconds, code, count in (("0", 75, 1), ("600", 0, 10)):
        monkeypatch.setattr(sys, "argv", [*arguments, "--seconds", seconds])
        with pytest.raises(SystemExit) as left:
            harness.main()
        assert left.value.code == code
        assert len(out.read_text().splitlines()) == count
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit):
        harness.main()
    assert "0 tasks done, 0 left" in capsys.readouterr().err
    assert len(out.read_text().splitlines()) == 10, "one head, three markings, six trials"
    text = written.read_text()
    assert "`python -m benchmarks.watermark.harness --split tune" in text
    assert re.search(r"\| none \| 3 \| \d+\.\d % \|", text)


def test_trials_of_two_algorithms_are_not_mixed(small: trial.Setting, tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    path.write_text(json.dumps({"setting": {**small.as_dict(), "algorithm": "another"}}) + "\n")
    with pytest.raises(SystemExit, match="another setting or algorithm"):
        harness.stored(path, small)
    path.write_text(json.dumps({"setting": small.as_dict()}) + "\n" + '{"pair": 0, "row": "no')  # a killed run's last line
    assert harness.stored(path, small) == [{"setting": small.as_dict()}]


def test_rows_are_chosen_by_name_and_group() -> None:
    assert harness.chosen("jpeg-50,none") == ["jpeg-50", "none"]
    assert set(harness.chosen("warp")) == {name for name, attack in attacks.ATTACKS.items() if attack.group == "warp"}
    assert set(harness.chosen("all")) == {*attacks.ATTACKS, *attacks.COLLUSION}
    promised = harness.chosen("targets")
    assert {"none", "average-10"} <= set(promised)
    assert not {"jpeg-10", "blur-4"} & set(promised)
    with pytest.raises(SystemExit, match="nothing"):
        harness.chosen("nothing")


def test_the_tail_fit_finds_the_model_that_made_the_scores() -> None:
    rng, ratio, spread, hypotheses = np.random.default_rng(0), 50.0, 1.1, 200.0
    uniform = rng.uniform(size=40_000)
    scores = spread * np.sqrt(2 * np.log(hypotheses * ratio / -np.log(uniform)))
    made = tail.fit(scores, hypotheses)
    assert made.spread == pytest.approx(spread, rel=0.1)
    exact = spread * math.sqrt(2 * math.log(hypotheses * ratio / 1e-6))
    assert made.score_at(1e-6, hypotheses) == pytest.approx(exact, rel=0.05)
    assert made.chance(made.score_at(1e-6, hypotheses), hypotheses) == pytest.approx(1e-6, rel=1e-3)
    (low, high), (least, most) = tail.bootstrap(np.split(scores, 40), hypotheses, 1e-6, rounds=60)
    assert low < exact < high
    assert least < 1e-6 < most


def test_the_product_uses_the_same_model_of_the_tail() -> None:
    from platemark.provenance.watermark.calibration import Tail

    for score in (4.0, 5.5, 7.0):
        ours = tail.Fit(80.0, 1.05, 0.0, 0, 0).chance(score, 240)
        assert Tail(80.0, 1.05).p_value(score, 240) == pytest.approx(ours, rel=1e-9)


def test_a_peers_failure_is_a_lost_mark_and_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("cv2")

    def extract(picture: np.ndarray) -> np.ndarray:
        raise RuntimeError("image too small")

    monkeypatch.setattr(images, "_cache", lambda: tmp_path)
    peer = peers.Peer(8, lambda picture, bits: picture, extract)
    records = peers.trial("broken", peer, 0, Spec("noise/tune/0", "noise", 256, ()), ["none"])
    assert records[1]["exact"] is False


@pytest.mark.parametrize("name", ["watermark.md", "watermark_calibration.md", "watermark_peers.md"])
def test_committed_tables_name_command_and_machine(name: str) -> None:
    path = RESULTS / name
    if not path.is_file():
        pytest.skip(f"{name} has not been measured yet")
    text = path.read_text(encoding="utf-8")
    assert "python -m benchmarks.watermark." in text
    assert " cores, Python " in text


def test_the_committed_table_of_attacks_has_every_row_with_an_interval_around_its_rate() -> None:
    path = RESULTS / "watermark.md"
    if not path.is_file():
        pytest.skip("watermark.md has not been measured yet")
    found = re.findall(r"^\| (\S+) \| (\d+) \| ([\d.]+) % \| ([\d.]+) to ([\d.]+) \|", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name for name, *_ in found} >= set(attacks.ATTACKS)
    for name, count, rate, low, high in found:
        assert float(low) - 0.06 <= float(rate) <= float(high) + 0.06, name
        hits = round(float(rate) * int(count) / 100)
        expected = table.wilson(hits, int(count))
        assert (float(low), float(high)) == (pytest.approx(100 * expected[0], abs=0.06), pytest.approx(100 * expected[1], abs=0.06)), name
