"""The audit log: chained, located where it was changed, safe under several writers and kill -9, and never a prompt in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from platemark.errors import InputError, RenderError, SafetyUnavailable
from platemark.safety import audit
from platemark.safety.audit import AuditLog, since
from platemark.safety.audit_chain import HEAD, read_head, segment_path
from platemark.safety.audit_record import Subject, decision_record, failure_record, image_sha256
from platemark.safety.decision import Action, Decision, Entry, Severity
from platemark.safety.policy_model import AuditRules

RULES = AuditRules(enabled=True)


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    return AuditLog(tmp_path, RULES)


def fill(log: AuditLog, count: int, **more: Any) -> list[bytes]:
    for number in range(count):
        log.write({"kind": "decision", "number": number, **more})
    return segment_path(log.folder, 1).read_bytes().splitlines(keepends=True)


def decision(**more: Any) -> Decision:
    entry = Entry(detector="nsfw", category="sexual", score=0.9, threshold=0.7, severity=Severity.HIGH, model_sha256="ab" * 32, ms=8.5)
    return Decision(stage="output_image", action=Action.BLOCK, entries=(entry,), policy_id="p", policy_sha256="cd" * 32,
                    rule="categories.sexual.output_image", reason_code="nsfw_class", category="sexual", severity=Severity.HIGH, faces=2,
                    consent="case-7", **more)  # fmt: skip


def test_a_record_has_what_an_operator_must_answer_for(log: AuditLog) -> None:
    image = np.arange(48 * 48 * 3, dtype=np.uint32).astype(np.uint8).reshape(48, 48, 3)
    subject = Subject("r1", "ee" * 32).of(3, 2**64 - 1, 1, 77)
    log.write(decision_record(decision(), subject, image))
    (record,) = log.search()
    assert record["detectors"] == [{"detector": "nsfw", "category": "sexual", "score": 0.9, "threshold": 0.7, "severity": "high",
                                    "model_sha256": "ab" * 32, "ms": 8.5}]  # fmt: skip
    expected = {"request_id": "r1", "policy_id": "p", "policy_sha256": "cd" * 32, "stage": "output_image", "image_index": 3, "attempt": 1,
                "seed": str(2**64 - 1), "rule": "categories.sexual.output_image", "action": "block", "reason_code": "nsfw_class",
                "prompt_hmac": "ee" * 32, "image_sha256": image_sha256(image), "faces": 2, "consent": "case-7", "content_id": "77",
                "seq": 1, "prev": "0" * 64, "category": "sexual", "severity": "high"}  # fmt: skip
    assert {key: record[key] for key in expected} == expected
    assert len(record["perceptual_hash"]) == 64
    assert "prompt" not in record
    assert datetime.fromisoformat(record["time"]) > datetime.now(UTC) - timedelta(minutes=1)


def test_prompts_are_in_it_only_in_clear_text_logs(log: AuditLog) -> None:
    log.write(decision_record(decision(), Subject("r", "00", prompt="a secret")))
    assert next(log.search())["prompt"] == "a secret"


def test_failures_are_written_down_too(log: AuditLog) -> None:
    log.write(failure_record(RenderError("flat", "again"), "output_image", Subject("r", "00"), ("p", "cd" * 32)))
    record = next(log.search())
    assert (record["kind"], record["reason_code"], record["error"], record["image_sha256"]) == ("failure", "render_error", "flat", None)


def test_an_intact_log_verifies(log: AuditLog) -> None:
    assert log.verify().as_dict() | {"last": None} == {
        "records": 0, "first_seq": 1, "segments": 0, "sealed": 0, "last": None, "problem": None, "intact": True}  # fmt: skip
    fill(log, 5)
    report = log.verify()
    assert (report.intact, report.records, report.segments) == (True, 5, 1)
    assert [record["number"] for record in log.search()] == [0, 1, 2, 3, 4]
    assert [record["number"] for record in log.search(lambda r: r["number"] > 2)] == [3, 4]
    assert log.folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in log.folder.iterdir()} == {0o600}


def test_a_policy_may_keep_no_log(tmp_path: Path) -> None:
    AuditLog(tmp_path, AuditRules(enabled=False)).write({"kind": "decision"})
    assert list(tmp_path.iterdir()) == []


CHANGES: dict[str, tuple[Callable[[list[bytes]], list[bytes]], int]] = {
    "a word edited": (lambda ls: [*ls[:2], ls[2].replace(b'"number":2', b'"number":9'), *ls[3:]], 4),
    "the last line edited": (lambda ls: [*ls[:4], ls[4].replace(b'"number":4', b'"number":9')], 5),
    "a line removed": (lambda ls: [*ls[:2], *ls[3:]], 3),
    "the first line removed": (lambda ls: ls[1:], 1),
    "two lines swapped": (lambda ls: [ls[0], ls[2], ls[1], *ls[3:]], 2),
    "a line inserted": (lambda ls: [*ls[:2], ls[0], *ls[2:]], 3),
    "a line doubled": (lambda ls: [*ls[:2], ls[1], *ls[2:]], 3),
    "cut after whole lines": (lambda ls: ls[:3], 4),
    "cut inside a line": (lambda ls: [*ls[:3], ls[3][:20]], 4),
    "a line made no JSON": (lambda ls: [*ls[:1], b"{" + ls[1], *ls[2:]], 2),
    "emptied": (lambda ls: [], 1),
    "a line at the end": (lambda ls: [*ls, b'{"seq":6,"prev":"00"}\n'], 6),
}


@pytest.mark.parametrize(("change", "line"), CHANGES.values(), ids=CHANGES)
def test_a_changed_log_is_located_by_its_line(log: AuditLog, change: Any, line: int) -> None:
    segment_path(log.folder, 1).write_bytes(b"".join(change(fill(log, 5))))
    problem = log.verify().problem
    assert problem is not None
    # An edited line shows where the next one does not follow it; the last one has the head for a next line.
    assert (problem.file, problem.line) == ("audit-000001.jsonl", line), str(problem)


@pytest.mark.parametrize("name", ["the last line edited", "cut after whole lines", "cut inside a line", "emptied", "a line at the end"])
def test_a_log_that_is_not_what_was_written_refuses_to_go_on(log: AuditLog, name: str) -> None:
    segment_path(log.folder, 1).write_bytes(b"".join(CHANGES[name][0](fill(log, 5))))
    before = segment_path(log.folder, 1).read_bytes()
    with pytest.raises(SafetyUnavailable, match="audit log"):
        log.write({"kind": "decision"})
    assert segment_path(log.folder, 1).read_bytes() == before


def test_a_cut_inside_an_acknowledged_record_is_no_kill(log: AuditLog) -> None:
    """A kill leaves half of a record that nobody was told of; here the head knows the record."""
    segment_path(log.folder, 1).write_bytes(b"".join(CHANGES["cut inside a line"][0](fill(log, 5))))
    assert "cut short: 2 record(s)" in str(log.verify().problem)
    whole = b"".join(fill(AuditLog(log.folder / "other", AuditRules(enabled=True)), 5))
    path = segment_path(log.folder / "other" / "audit", 1)
    path.write_bytes(whole[:-5])
    problem = AuditLog(log.folder / "other", AuditRules(enabled=True)).verify().problem
    assert str(problem) == "audit-000001.jsonl, line 5: cut short: 1 record(s) are missing at the end"


def test_a_missing_segment_or_head_is_found(log: AuditLog) -> None:
    fill(log, 3)
    (log.folder / HEAD).rename(log.folder / "elsewhere")
    assert "head file is missing" in str(log.verify().problem)
    with pytest.raises(SafetyUnavailable, match="lost its head"):
        log.write({"kind": "decision"})
    (log.folder / HEAD).write_bytes(b'{"seq": "many"}')
    assert "damaged" in str(log.verify().problem)
    with pytest.raises(SafetyUnavailable):
        log.write({"kind": "decision"})
    (log.folder / "elsewhere").rename(log.folder / HEAD)
    segment_path(log.folder, 1).unlink()
    assert "the file is missing" in str(log.verify().problem)
    with pytest.raises(SafetyUnavailable, match="cut short"):
        log.write({"kind": "decision"})


@given(place=st.integers(0, 10**6), value=st.integers(1, 255))
@settings(max_examples=40, deadline=None)
def test_any_changed_byte_is_found(tmp_path_factory: pytest.TempPathFactory, place: int, value: int) -> None:
    log = AuditLog(tmp_path_factory.mktemp("audit"), RULES)
    data = bytearray(b"".join(fill(log, 4)))
    data[place % len(data)] ^= value
    segment_path(log.folder, 1).write_bytes(bytes(data))
    assert not log.verify().intact


def test_a_torn_line_is_found_sealed_and_followed(log: AuditLog) -> None:
    fill(log, 3)
    with segment_path(log.folder, 1).open("ab") as file:
        file.write(b'{"seq":4,"kind":"deci')
    assert "torn" in str(log.verify().problem)
    log.write({"kind": "decision", "number": 3})
    report = log.verify()
    assert (report.intact, report.sealed, report.records) == (True, 1, 5)
    assert [record["number"] for record in log.search()] == [0, 1, 2, 3]
    lines = segment_path(log.folder, 1).read_bytes().splitlines()
    lines[3] = b'{"seq":4,"kind":"other'  # a sealed line cannot be changed either
    segment_path(log.folder, 1).write_bytes(b"\n".join(lines) + b"\n")
    problem = log.verify().problem
    assert problem is not None
    assert problem.line == 4


def test_a_whole_record_that_the_head_does_not_know_is_adopted(log: AuditLog) -> None:
    """A kill between the record and its head loses nothing."""
    fill(log, 2)
    head = (log.folder / HEAD).read_bytes()
    log.write({"kind": "decision", "number": 2})
    (log.folder / HEAD).write_bytes(head)
    assert log.verify().intact
    log.write({"kind": "decision", "number": 3})
    assert [record["number"] for record in log.search()] == [0, 1, 2, 3]
    assert log.verify().intact


def test_rotation_keeps_one_chain_over_all_segments(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    log.rules = AuditRules(enabled=True, rotate_mib=1)
    for number in range(6):
        log.write({"kind": "decision", "number": number, "padding": "x" * 400_000})
    report = log.verify()
    assert (report.intact, report.records, report.segments) == (True, 6, 2)
    assert [record["number"] for record in log.search()] == list(range(6))
    first = segment_path(log.folder, 1)
    data = first.read_bytes()
    first.write_bytes(data[: data.index(b"\n") + 1])
    problem = log.verify().problem
    assert problem is not None
    assert (problem.file, problem.line) == ("audit-000002.jsonl", 1)


def test_a_kill_between_a_segments_first_record_and_its_head(log: AuditLog) -> None:
    log.rules = AuditRules(enabled=True, rotate_mib=1)
    for number in range(3):
        log.write({"kind": "decision", "number": number, "padding": "x" * 400_000})
    head = (log.folder / HEAD).read_bytes()
    log.write({"kind": "decision", "number": 3})
    assert segment_path(log.folder, 2).exists()
    (log.folder / HEAD).write_bytes(head)
    assert log.verify().intact
    log.write({"kind": "decision", "number": 4})
    report = log.verify()
    assert (report.intact, report.records, report.segments) == (True, 5, 2)


def test_segments_past_their_days_are_removed_and_the_rest_still_verifies(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    log.rules = AuditRules(enabled=True, rotate_mib=1, retain_days=30)

    class Later(datetime):
        days = 0

        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(days=cls.days)

    monkeypatch.setattr(audit, "datetime", Later)
    for number in range(9):
        Later.days = number * 10
        log.write({"kind": "decision", "number": number, "padding": "x" * 600_000})
    report = log.verify()
    assert report.intact
    numbers = [record["number"] for record in log.search()]
    assert numbers[0] > 0
    assert numbers == list(range(numbers[0], 9))
    assert (report.first_seq, report.records) == (numbers[0] + 1, len(numbers))
    assert not segment_path(log.folder, 1).exists()


WRITER = textwrap.dedent("""
    import sys
    from pathlib import Path
    from platemark.safety.audit import AuditLog
    from platemark.safety.policy_model import AuditRules
    log = AuditLog(Path(sys.argv[1]), AuditRules(enabled=True))
    for number in range(int(sys.argv[3])):
        log.write({"kind": "decision", "writer": sys.argv[2], "number": number})
        print(number, flush=True)
""")


def writer(home: Path, name: str, count: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(home), name, str(count)], stdout=subprocess.PIPE)


def test_several_writers_make_one_chain(log: AuditLog, tmp_path: Path) -> None:
    writers = [writer(tmp_path, str(n), 15) for n in range(3)]
    assert all(one.wait(120) == 0 for one in writers)
    for one in writers:
        one.communicate()
    report = log.verify()
    assert (report.intact, report.records) == (True, 45)
    for name in "012":
        assert [r["number"] for r in log.search(lambda r, name=name: r["writer"] == name)] == list(range(15))


def test_kill_9_loses_no_record_that_was_acknowledged(log: AuditLog, tmp_path: Path) -> None:
    acknowledged = 0
    for round_ in range(4):
        one = writer(tmp_path, str(round_), 10_000)
        assert one.stdout is not None
        heard = [one.stdout.readline() for _ in range(3 + 2 * round_)]
        os.kill(one.pid, signal.SIGKILL)
        rest = one.communicate()[0].splitlines(keepends=True)
        acknowledged += len(heard) + sum(line.endswith(b"\n") for line in rest)
    log.write({"kind": "decision", "writer": "last"})
    report = log.verify()
    assert report.intact, str(report.problem)
    assert acknowledged + 1 <= sum(1 for _ in log.search()) <= acknowledged + 1 + 4


def test_what_cannot_be_written_refuses(tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("in the way")
    log = AuditLog(tmp_path, RULES)
    with pytest.raises(SafetyUnavailable, match="cannot be written"):
        log.write({"kind": "decision"})


@pytest.mark.parametrize("call", ["fsync", "replace", "write"])
def test_a_disk_that_fails_refuses_and_the_log_recovers(log: AuditLog, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    fill(log, 2)
    with monkeypatch.context() as patch:
        if call == "fsync":
            patch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        elif call == "replace":
            patch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        else:
            patch.setattr(audit, "append_bytes", lambda path, data: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(SafetyUnavailable, match="No space left"):
            log.write({"kind": "decision", "number": 2})
    log.write({"kind": "decision", "number": 3})
    assert log.verify().intact


def test_the_head_says_where_the_chain_ends(log: AuditLog) -> None:
    data = fill(log, 3)
    head = read_head(log.folder)
    assert head is not None
    assert (head.seq, head.bytes) == (3, sum(map(len, data)))
    assert json.loads(data[-1])["prev"] != head.last == log.verify().last


def test_dates() -> None:
    assert since("2026-01-31") == datetime(2026, 1, 31, tzinfo=UTC)
    assert since("2026-01-31T12:00:00Z").hour == 12
    with pytest.raises(InputError):
        since("yesterday")
