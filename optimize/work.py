"""The half of a build that holds torch: every network to a graph and recorded outputs, then the reference picture.

Run in the caller's process, or in one of its own that ends before any engine is compiled (see `apart`). Writes into the stage and its
journal, and compares nothing.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from platemark.errors import EngineError, PlatemarkError
from platemark.optimize.checkpoint import Added, Checkpoint, open_checkpoint
from platemark.optimize.journal import SCRATCH, Journal
from platemark.optimize.parts import CHECKER
from platemark.optimize.staging import write_file
from platemark.runtime.manifest import Manifest
from platemark.runtime.parity import Recorded

if TYPE_CHECKING:
    from torch import nn

    from platemark.optimize.specs import Spec

Say = Callable[[str], None]
PICTURE = "picture"
_KEPT = 64 << 20  # bytes of float32 weights up to which a network stays for the picture, instead of being loaded again
_TORCH_MEMORY = "can't allocate memory"  # torch's CPU allocator, in a RuntimeError


class Job(BaseModel):
    """What is still to be made: component (or `picture`) → the key of its journal entry, in order. `draft` describes the picture."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: Path
    added: Added
    stage: Path
    todo: dict[str, str]
    draft: Manifest


@dataclass
class _Nets:
    """The networks in memory, in float32. Large ones are let go of as soon as they were exported."""

    checkpoint: Checkpoint
    held: dict[str, nn.Module] = field(default_factory=dict)

    def get(self, part: str) -> nn.Module:
        from platemark.optimize.modules import load_part

        if part not in self.held:
            self.held[part] = load_part(self.checkpoint.parts[part])
        return self.held[part]

    def drop_large(self, but: str | None) -> None:
        for part in [part for part in self.held if part != but and fp32_bytes(self.checkpoint, part) > _KEPT]:
            del self.held[part]


def fp32_bytes(checkpoint: Checkpoint, part: str) -> int:
    """The size of a part's weights in float32."""
    return 4 * sum(tensor.size for tensor in checkpoint.parts[part].tensors.values() if tensor.is_float)


def run(job: Job, say: Say) -> None:
    """Does the job. Raises `CheckpointError`, `EngineError`."""
    from platemark.optimize.specs import specs

    checkpoint = open_checkpoint(job.checkpoint, job.added)
    nets, journal = _Nets(checkpoint), Journal(job.stage)
    found = [spec for spec in specs(checkpoint).values() if spec.component in job.todo]
    for spec in found:
        say(f"{spec.component}: exporting")
        nets.drop_large(spec.part)
        with memory_errors(spec.component):
            _export(job, spec, nets, journal)
    if PICTURE in job.todo:
        say("the whole pipeline: reference")
        nets.drop_large(None)
        with memory_errors("the reference picture"):
            _picture(job, nets, journal)


def _export(job: Job, spec: Spec, nets: _Nets, journal: Journal) -> None:
    import torch

    from platemark.optimize.components import export_linked, reference
    from platemark.optimize.modules import wrapped
    from platemark.optimize.parity import make_cases, record

    net = nets.get(spec.part)
    module = wrapped(spec, net, nets.checkpoint.family)
    cases = make_cases(spec)
    write_file(job.stage / spec.graph, export_linked(spec, module, nets.checkpoint.parts[spec.part], cases[0]))
    place = f"{SCRATCH}/{spec.component}.npz"
    save_recorded(job.stage / place, record(spec, cases, reference(spec, module)))
    made = [spec.graph, *_beside(job.stage, spec.component, net, nets.checkpoint)]
    journal.add(spec.component, job.todo[spec.component], made, [place], {"reference": f"torch {torch.__version__} fp32"})


def _beside(stage: Path, component: str, net: nn.Module, checkpoint: Checkpoint) -> list[str]:
    """Writes what a reader of the graph needs beside it; returns the files' names."""
    files: dict[str, Any] = {}
    if component == "clip_image":
        from platemark.optimize.clip import golden, preprocessing

        part = checkpoint.parts["clip"]
        preprocess = preprocessing(net, part)
        files = {"clip/preprocess.json": preprocess, "clip/golden.json": golden(net, part, preprocess)}
    elif component == CHECKER:
        from platemark.optimize.safety_checker import FILE, checker_file

        files = {f"{CHECKER}/{FILE}": checker_file(net, checkpoint.root)}
    for name, value in files.items():
        write_file(stage / name, json_file(value))
    return list(files)


def _picture(job: Job, nets: _Nets, journal: Journal) -> None:
    from platemark.optimize.endtoend import compared_request, reference_picture

    parts = {name: nets.get(name) for name in nets.checkpoint.pipeline}
    place = f"{SCRATCH}/{PICTURE}.npz"
    request = compared_request(nets.checkpoint, job.draft)
    save_arrays(job.stage / place, {"picture": reference_picture(nets.checkpoint, parts, request)})
    journal.add(PICTURE, job.todo[PICTURE], [], [place])


def save_recorded(path: Path, recorded: list[Recorded]) -> None:
    """Writes recordings: `<case>/inputs/<name>` and `<case>/outputs/<name>`."""
    sides = [(f"{case}/{side}", getattr(one, side)) for case, one in enumerate(recorded) for side in ("inputs", "outputs")]
    arrays = {f"{place}/{name}": value for place, arrays in sides for name, value in arrays.items()}
    save_arrays(path, arrays)


def load_recorded(path: Path) -> list[Recorded]:
    """What `save_recorded` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        cases: dict[int, dict[str, dict[str, Any]]] = {}
        for key in stored.files:
            case, side, name = key.split("/", 2)
            cases.setdefault(int(case), {"inputs": {}, "outputs": {}})[side][name] = stored[key]
    return [Recorded(**one) for _, one in sorted(cases.items())]


def save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def json_file(value: Any) -> bytes:
    """JSON as bundles hold it: readable, one value a line."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


@contextmanager
def memory_errors(what: str) -> Iterator[None]:
    """Memory that ran out becomes an `EngineError` that names what was being made."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or _TORCH_MEMORY in str(error):
            raise out_of_memory(what) from error
        raise


def out_of_memory(what: str) -> EngineError:
    """The error of a build that ran out of memory."""
    return EngineError(f"memory ran out at {what}", "end other programs and run it again; `platemark build --plan` says what it needs")


def _follow_parent() -> None:
    """Ends this process with the one that started it, however that ends: nobody else may write into the stage then."""
    sys.stdin.read()
    os._exit(1)


def main() -> int:
    """The process of `apart`: the job as one line on stdin, `{"note"}` and `{"error"}` lines on stdout."""
    protocol = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints

    def send(**message: Any) -> None:
        protocol.write(json.dumps(message) + "\n")
        protocol.flush()

    job = Job.model_validate_json(sys.stdin.readline())
    threading.Thread(target=_follow_parent, daemon=True).start()
    try:
        run(job, lambda note: send(note=note))
    except PlatemarkError as error:
        send(error=error.as_dict())
        return error.exit_code
    except OSError as error:
        send(os_error=[error.errno, error.strerror, error.filename])
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
