"""A request through the press that is watched, ended by hand, by time or by Ctrl-C: nothing half done stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from platemark import Control, Watch, load
from platemark.errors import Cancelled, DeadlineExceeded, InputError
from platemark.press import Press
from platemark.runtime.denoise import Step

SMALL: dict[str, Any] = {"height": 128, "width": 128}
LONG: dict[str, Any] = {**SMALL, "num_inference_steps": 900}


@pytest.fixture(scope="module")
def press(tmp_path_factory: pytest.TempPathFactory) -> Press:
    return load(home=tmp_path_factory.mktemp("control"))


def test_previews_come_with_the_steps_of_all_pictures(press: Press) -> None:
    heard: list[Step] = []
    press.generate("a red apple", seed=1, n=9, watch=Watch(on_step=heard.append, previews=True), num_inference_steps=2, **SMALL)
    assert [(one.step, one.total) for one in heard] == [(k, 4) for k in range(1, 5)]
    assert [sorted(one.previews) for one in heard] == [[*range(8)], [*range(8)], [8], [8]]
    assert {preview.shape for one in heard for preview in one.previews.values()} == {(16, 16, 3)}


def test_strict_shows_no_previews(tmp_path: Path) -> None:
    strict = load(policy="strict", home=tmp_path)
    heard: list[Step] = []
    with pytest.raises(InputError, match="strict"):
        strict.generate("a red apple", seed=1, watch=Watch(on_step=heard.append, previews=True), num_inference_steps=2, **SMALL)
    assert heard == []
    strict.generate("a red apple", seed=1, watch=Watch(on_step=heard.append), num_inference_steps=2, **SMALL)
    assert [len(one.previews) for one in heard] == [0, 0]


def test_a_deadline_ends_a_request_and_releases_nothing(press: Press) -> None:
    before = press.stamp.registry.count()
    with pytest.raises(DeadlineExceeded):
        press.generate("a cat", seed=5, watch=Watch(control=Control(0.2)), **LONG)
    assert press.stamp.registry.count() == before
    assert "platemark-ahead" not in {thread.name for thread in threading.enumerate()}


def test_a_request_is_cancelled_from_another_thread_within_a_step(press: Press) -> None:
    control, heard = Control(), list[int]()

    def stop(at: Step) -> None:
        heard.append(at.step)
        if at.step == 3:
            threading.Thread(target=control.cancel).start()
            time.sleep(0.2)

    with pytest.raises(Cancelled):
        press.generate("a cat", seed=5, watch=Watch(on_step=stop, control=control), **LONG)
    assert heard == [1, 2, 3]


def test_what_is_cancelled_while_it_is_checked_is_not_stamped(press: Press) -> None:
    control, before = Control(), press.stamp.registry.count()

    def stage(name: str) -> None:
        assert name != "stamp"
        if name == "check_image":
            control.cancel()

    with pytest.raises(Cancelled):
        press.generate("a cat", seed=5, watch=Watch(on_stage=stage, control=control), num_inference_steps=2, **SMALL)
    assert press.stamp.registry.count() == before


def test_a_caller_that_goes_away_does_not_cancel_its_other_requests(press: Press) -> None:
    control = Control()
    results = press.run(press.admit("a cat", seed=5, n=9, num_inference_steps=2, **SMALL), watch=Watch(control=control))
    next(results)
    results.close()
    control.check()
    assert press.generate("a cat", seed=5, watch=Watch(control=control), num_inference_steps=2, **SMALL)[0].data is not None


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_deadlines_that_cannot_be_are_refused(seconds: float) -> None:
    with pytest.raises(InputError, match="deadline"):
        Control(seconds)


def run(arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "platemark", "generate", "a cat", "--seed", "5", *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes)


def test_the_command_gives_up_in_one_line(tmp_path: Path) -> None:
    process = run(["--steps", "900", "--timeout", "0.3", "-o", str(tmp_path / "cat.png")])
    out, err = process.communicate()
    assert (process.returncode, out, list(tmp_path.iterdir())) == (1, "", [])
    assert err == "error: the request ran out of its time (give it more seconds, or ask for fewer steps or a smaller picture)\n"
    process = run(["--timeout", "0", "-o", str(tmp_path / "cat.png")])
    assert "deadline" in process.communicate()[1]
    assert process.returncode == 2


def test_control_c_is_one_line_and_leaves_nothing(tmp_path: Path, state_home: Path) -> None:
    out = tmp_path / "out"
    process = run(["-n", "40", "--steps", "20", "--size", "128x128", "-o", f"{out}/"])
    while process.poll() is None and not list(out.glob("*.png")):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "error: interrupted (nothing was left half written)"
    assert "Traceback" not in err
    written = sorted(path.name for path in out.iterdir())
    assert 0 < len(written) < 40
    assert all(path.suffix == ".png" for path in out.iterdir())
