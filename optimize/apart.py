"""Runs the torch half of a build in a process of its own, so that its memory is back before an engine is compiled. Holds no torch."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from typing import Any

from platemark import errors
from platemark.optimize.work import Job, Say, out_of_memory

_KILLED = -9


def command() -> list[str]:
    """The command line of the process."""
    return [sys.executable, "-m", "platemark.optimize.work"]


def run(job: Job, say: Say) -> None:
    """As `work.run`, which see; the process ends when this one does.

    Raises what it raised, and `EngineError` where it was killed, which systems do to a process when memory runs out.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        child = subprocess.Popen(command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, encoding="utf-8")
        last = "starting"
        try:
            last = _follow(child, job, say)
        finally:
            if child.poll() is None:
                child.kill()
            child.communicate()
        if child.returncode == _KILLED:
            raise out_of_memory(f"{last} (the process was killed)")
        if child.returncode != 0:
            said.seek(0)
            tail = (said.read().strip().splitlines() or ["it gave no reason"])[-1][:200]
            if "MemoryError" in tail or "allocate" in tail:
                raise out_of_memory(last)
            raise errors.EngineError(f"the exporting process failed at {last}: {tail}", "run it again; if it fails again, report it")


def _follow(child: subprocess.Popen[str], job: Job, say: Say) -> str:
    """Passes on what the process says until it ends; returns its last note."""
    assert child.stdin is not None
    assert child.stdout is not None
    last = "starting"
    try:
        child.stdin.write(job.model_dump_json() + "\n")
        child.stdin.flush()
    except BrokenPipeError:
        pass  # it ended at once: its exit says why
    for line in child.stdout:
        message = json.loads(line)
        if "error" in message:
            raise _error(message["error"])
        if "os_error" in message:
            raise OSError(*message["os_error"])
        last = message["note"]
        say(last)
    child.wait()
    return last


def _error(told: dict[str, Any]) -> errors.PlatemarkError:
    """The error of that code."""
    kinds = {kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.PlatemarkError)}
    kind = kinds.get(told["code"], errors.EngineError)
    error = kind.__new__(kind)  # some take more arguments
    errors.PlatemarkError.__init__(error, told["message"], told["remedy"])
    return error
