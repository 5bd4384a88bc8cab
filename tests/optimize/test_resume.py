"""A build that was killed, anywhere, goes on: the same bundle comes out, and what was finished is not made again."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from platemark import errors  # noqa: E402
from platemark.errors import CheckpointError, EngineError, InputError  # noqa: E402
from platemark.optimize import apart, components, work  # noqa: E402
from platemark.optimize.build import build  # noqa: E402
from platemark.optimize.checkpoint import Added  # noqa: E402
from platemark.optimize.journal import NAME, Journal, key_of  # noqa: E402
from platemark.optimize.staging import copy_file, keep_only, stage_for  # noqa: E402
from platemark.optimize.weights import file_sha256  # noqa: E402
from platemark.optimize.work import load_recorded, save_recorded  # noqa: E402
from platemark.runtime.bundle import open_bundle  # noqa: E402
from platemark.runtime.manifest import Manifest  # noqa: E402
from platemark.runtime.parity import Recorded  # noqa: E402


def files(root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): file_sha256(path) for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def exports(graphs: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lets `build` take the graphs that were exported once, and tells which it asked for."""
    asked: list[str] = []

    def take(spec: Any, *rest: Any) -> bytes:
        asked.append(spec.component)
        return graphs[spec.component]

    monkeypatch.setattr(components, "export_linked", take)
    return asked


def interrupt_at(note: str) -> Any:
    def watch(done: int, total: int, said: str) -> None:
        if said == note:
            raise KeyboardInterrupt

    return watch


def test_an_interrupted_build_goes_on_component_by_component(
    checkpoint_folder: Path, bundle_folder: Path, tmp_path: Path, exports: list[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        build(checkpoint_folder, out, on_progress=interrupt_at("vae_decoder: exporting"))
    assert exports == ["text_encoder", "unet"]
    exports.clear()
    with pytest.raises(KeyboardInterrupt):
        build(checkpoint_folder, out, on_progress=interrupt_at("writing"))
    assert exports == ["vae_decoder", "vae_encoder", "clip_image", "clip_text"]
    exports.clear()
    (out.with_name("out.partial") / "stray").write_text("x")
    heard: list[str] = []
    build(checkpoint_folder, out, on_progress=lambda done, total, note: heard.append(note))
    assert not exports
    assert "the whole pipeline: reference" not in heard
    assert files(out) == files(bundle_folder)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("change", ["graph", "recording", "weights", "option", "journal"])
def test_what_was_damaged_or_made_from_something_else_is_made_again(
    checkpoint_copy: Path, bundle_folder: Path, tmp_path: Path, exports: list[str], change: str
) -> None:
    out, stage = tmp_path / "out", tmp_path / "out.partial"
    with pytest.raises(KeyboardInterrupt):
        build(checkpoint_copy, out, on_progress=interrupt_at("text_encoder: comparing"))
    exports.clear()
    settings = {"default_steps": 2} if change == "option" else {}
    if change == "graph":
        (stage / "unet" / "model.onnx").write_bytes(b"half")
    elif change == "recording":
        (stage / ".work" / "unet.npz").unlink()
    elif change == "weights":
        path = checkpoint_copy / "vae" / "diffusion_pytorch_model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(bytes(data))
    elif change == "journal":
        (stage / NAME).write_bytes(b"{")
    build(checkpoint_copy, out, settings=settings)
    wanted = {"graph": ["unet"], "recording": ["unet"], "weights": ["vae_decoder", "vae_encoder"], "option": []}
    assert exports == wanted.get(change, ["text_encoder", "unet", "vae_decoder", "vae_encoder", "clip_image", "clip_text"])
    if change in ("graph", "recording", "journal"):
        assert files(out) == files(bundle_folder)
    assert open_bundle(out).manifest.default_steps == (2 if change == "option" else 4)


KILLED = """
import os, sys
from pathlib import Path
from platemark.optimize import components, compare, endtoend, engines, modules, parity, work
from platemark.optimize.build import build
from platemark.runtime.backends import onnxruntime
import diffusers, onnxruntime as library
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
checkpoint, out, graphs = (Path(name) for name in sys.argv[1:4])
components.export_linked = lambda spec, *rest: (graphs / spec.graph).read_bytes()
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            build(checkpoint, out, replace=True)
        except BaseException as error:
            sys.stderr.write(repr(error))
            os._exit(1)
        os._exit(0)
    sys.stdout.write(f"{child}\\n")
    sys.stdout.flush()
    sys.stdout.write(f"{os.waitpid(child, 0)[1]}\\n")
    sys.stdout.flush()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_killed_at_ten_random_moments_the_build_ends_with_the_same_bytes(
    checkpoint_folder: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    """One process loads the libraries and forks; each child builds until it is killed. A whole build first says how long one takes."""
    random.seed(3)
    out, run = tmp_path / "out", [sys.executable, "-W", "ignore", "-c", KILLED]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*run, *map(str, (checkpoint_folder, out, bundle_folder))], **pipes) as parent:  # type: ignore[call-overload]

        def start() -> int:
            parent.stdin.write("\n")
            parent.stdin.flush()
            return int(parent.stdout.readline())

        start()
        began = time.monotonic()
        assert int(parent.stdout.readline()) == 0
        whole, killed = time.monotonic() - began, 0
        for _ in range(10):
            child = start()
            time.sleep(random.uniform(0, 0.9 * whole))
            with contextlib.suppress(ProcessLookupError):  # it was faster
                os.kill(child, signal.SIGKILL)
            status = int(parent.stdout.readline())
            killed += os.WIFSIGNALED(status)
            assert status in (0, signal.SIGKILL)
            assert not out.exists() or files(out) == files(bundle_folder)
        assert killed >= 5
        start()
        assert int(parent.stdout.readline()) == 0
        parent.stdin.close()
    assert files(out) == files(bundle_folder)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def a_job(root: Path, stage: Path, manifest: Manifest, *todo: str) -> work.Job:
    return work.Job(checkpoint=root, added=Added(), stage=stage, todo=dict.fromkeys(todo, "k"), draft=manifest)


def test_torch_in_a_process_of_its_own_makes_the_same(checkpoint_folder: Path, bundle_folder: Path, tmp_path: Path) -> None:
    manifest, stage, notes = open_bundle(bundle_folder).manifest, tmp_path / "stage", list[str]()
    stage.mkdir()
    apart.run(a_job(checkpoint_folder, stage, manifest, "text_encoder", "clip_image"), notes.append)
    assert notes == ["text_encoder: exporting", "clip_image: exporting"]
    journal = Journal(stage)
    for component, names in {"text_encoder": {"text_encoder/model.onnx"}, "clip_image": {"clip/image.onnx", "clip/golden.json"}}.items():
        entry = journal.find(component, "k")
        assert entry is not None
        assert names <= set(entry.files)
        assert all(manifest.files[name] == sha256 for name, sha256 in entry.files.items())
        assert len(load_recorded(stage / next(iter(entry.scratch)))) == 2


def test_errors_of_that_process_are_its_own(checkpoint_copy: Path, bundle_folder: Path, tmp_path: Path) -> None:
    manifest = open_bundle(bundle_folder).manifest
    config = json.loads((checkpoint_copy / "vae" / "config.json").read_text())
    (checkpoint_copy / "vae" / "config.json").write_text(json.dumps(config | {"norm_num_groups": 3}))
    with pytest.raises(CheckpointError, match="vae: config and weights do not fit") as caught:
        apart.run(a_job(checkpoint_copy, tmp_path, manifest, "vae_decoder"), lambda note: None)
    assert "belong together" in caught.value.remedy
    assert not list(tmp_path.glob(NAME))


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize(("wrapped", "said"), [("ulimit -v 1500000", "memory ran out at"), ("kill -9 $$", "memory ran out at starting")])
def test_memory_that_runs_out_is_said_in_one_line(
    checkpoint_folder: Path, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrapped: str, said: str
) -> None:
    manifest, line = open_bundle(bundle_folder).manifest, apart.command()
    monkeypatch.setattr(apart, "command", lambda: ["/bin/sh", "-c", f'{wrapped}; exec "$@"', "sh", *line])
    with pytest.raises(EngineError) as caught:
        apart.run(a_job(checkpoint_folder, tmp_path, manifest, "unet"), lambda note: None)
    assert "\n" not in str(caught.value)
    assert said in caught.value.message or "exporting process failed" in caught.value.message
    if wrapped.startswith("kill"):
        assert "--plan" in caught.value.remedy


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_memory_that_runs_out_here_names_the_component_and_leaves_nothing(
    checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exports: list[str], error: Exception
) -> None:
    def fail(*args: Any) -> bytes:
        raise error

    monkeypatch.setattr(components, "export_linked", fail)
    with pytest.raises(EngineError, match="memory ran out at text_encoder"):
        build(checkpoint_folder, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_every_error_crosses_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (errors.CheckpointError, errors.ParityError, errors.MissingExtra, errors.PolicyBlocked):
        found = apart._error({"code": kind.code, "message": "what", "remedy": "do"})
        assert (type(found), found.message, found.remedy) == (kind, "what", "do")


def test_recordings_come_back_as_they_were(tmp_path: Path) -> None:
    recorded = [
        Recorded({"sample": np.random.rand(2, 3).astype(np.float32), "ids": np.arange(4)}, {"out": np.ones((2, 1), np.float32)})
    ] * 2
    save_recorded(tmp_path / "r.npz", recorded)
    for a, b in zip(recorded, load_recorded(tmp_path / "r.npz"), strict=True):
        assert all(np.array_equal(value, b.inputs[name]) and value.dtype == b.inputs[name].dtype for name, value in a.inputs.items())
        assert np.array_equal(a.outputs["out"], b.outputs["out"])


def test_a_journal_counts_only_what_is_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    Journal(tmp_path).add("x", key_of("k", 1), ["a"], facts={"n": 1})
    entry = Journal(tmp_path).find("x", key_of("k", 1))
    assert entry is not None
    assert entry.facts == {"n": 1}
    assert Journal(tmp_path).find("x", key_of("k", 2)) is None
    (tmp_path / "a").write_text("2")
    assert Journal(tmp_path).find("x", key_of("k", 1)) is None
    for damage in (b"[]", b"{", b'{"x": 1}', b'{"x": {"key": 1}}'):
        (tmp_path / NAME).write_bytes(damage)
        assert Journal(tmp_path).find("x", key_of("k", 1)) is None


def test_copies_are_kept_where_they_are_the_same_and_strays_go(tmp_path: Path) -> None:
    source, target = tmp_path / "s", tmp_path / "t" / "a" / "f"
    source.write_bytes(b"new")
    copy_file(source, target)
    before = target.stat().st_ino
    assert copy_file(source, target) == file_sha256(source)
    assert target.stat().st_ino == before
    target.write_bytes(b"old")
    assert copy_file(source, target) == file_sha256(source)
    assert target.read_bytes() == b"new"
    (tmp_path / "t" / "b").mkdir()
    (tmp_path / "t" / "b" / "stray").write_text("x")
    (tmp_path / "t" / "link").symlink_to(source)
    keep_only(tmp_path / "t", {"a/f"})
    assert [path.relative_to(tmp_path).as_posix() for path in sorted((tmp_path / "t").rglob("*"))] == ["t/a", "t/a/f"]
    assert source.exists()


def test_a_stage_is_resumed_only_where_asked_and_errors_clear_it(tmp_path: Path) -> None:
    out, stage = tmp_path / "out", tmp_path / "out.partial"
    for resume, kept in ((True, ["half"]), (False, [])):
        stage.mkdir(exist_ok=True)
        (stage / "half").write_text("x")
        with stage_for(out, in_place=False, replace=False, resume=resume) as found:
            assert [path.name for path in found.iterdir()] == kept


@pytest.mark.parametrize(("error", "left"), [(KeyboardInterrupt, True), (ValueError, False)])
def test_an_interrupted_stage_stays_and_a_failed_one_goes(tmp_path: Path, error: type[BaseException], left: bool) -> None:
    with pytest.raises(error), stage_for(tmp_path / "out", in_place=False, replace=False, resume=True):
        raise error
    assert (tmp_path / "out.partial").exists() == left


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_target_that_is_read_only_is_refused_before_any_work(checkpoint_folder: Path, tmp_path: Path, exports: list[str]) -> None:
    place = tmp_path / "closed"
    place.mkdir(mode=0o555)
    with pytest.raises(InputError, match="cannot be written"):
        build(checkpoint_folder, place / "out")
    assert not exports
