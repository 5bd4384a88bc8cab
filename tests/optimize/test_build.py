"""The whole build: a bundle that opens and renders, in place too; refusals leave nothing behind; spoiled weights never pass."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from platemark.errors import BundleError, CheckpointError, InputError, MissingExtra, ParityError  # noqa: E402
from platemark.optimize import build as module  # noqa: E402
from platemark.optimize import endtoend  # noqa: E402
from platemark.optimize.build import build  # noqa: E402
from platemark.optimize.checkpoint import open_checkpoint  # noqa: E402
from platemark.optimize.endtoend import choose_scheduler  # noqa: E402
from platemark.optimize.staging import stage_for  # noqa: E402
from platemark.optimize.weights import file_sha256, read_header  # noqa: E402
from platemark.runtime.bundle import open_bundle  # noqa: E402
from platemark.runtime.pipeline import Pipeline  # noqa: E402
from platemark.runtime.request import GenerationRequest  # noqa: E402

COMPONENTS = {"text_encoder", "unet", "vae_decoder", "vae_encoder", "clip_image", "clip_text"}


def files(root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): file_sha256(path) for path in root.rglob("*") if path.is_file()}


def test_a_bundle_opens_and_renders(bundle_folder: Path) -> None:
    bundle = open_bundle(bundle_folder)
    request = GenerationRequest.make(bundle.manifest, prompt="red apple", seed=7)
    out = Pipeline.load(bundle).generate(request)
    assert out.images.shape == (1, 128, 128, 3)
    assert out.arrays.shape == (1, 64, 64, 3)
    assert not out.flat[0]


def test_the_manifest_says_what_was_done(bundle_folder: Path) -> None:
    manifest = open_bundle(bundle_folder).manifest
    assert set(manifest.components) == COMPONENTS
    assert manifest.native_size == (64, 64)
    assert manifest.output_size == (128, 128)
    assert (manifest.name, manifest.default_steps, manifest.default_guidance) == ("tiny", 4, 2.0)
    assert (manifest.vae_scale_factor, manifest.max_tokens, manifest.latent_channels) == (2, 12, 4)
    assert manifest.default_scheduler is None
    for component in manifest.components.values():
        first, second = component.parity.comparisons
        assert first.shapes != second.shapes
        assert max(first.rel_l2_error, second.rel_l2_error) <= component.parity.bound_rel_l2 == 1e-4
    assert manifest.end_to_end.psnr >= manifest.end_to_end.bound_psnr == 60


def test_weights_are_there_once_with_the_checkpoints_hashes(bundle_folder: Path, checkpoint_folder: Path) -> None:
    manifest, found, source = open_bundle(bundle_folder).manifest, files(bundle_folder), files(checkpoint_folder)
    assert len(manifest.source.weights) == 4
    assert all(manifest.source.weights[name] == found[name] == source[name] for name in manifest.source.weights)
    assert {name for name in found if name.endswith(".safetensors")} == set(manifest.source.weights)
    assert all((bundle_folder / part.graph).stat().st_size < 256 << 10 for part in manifest.components.values())


def test_every_file_is_listed(bundle_folder: Path) -> None:
    found = files(bundle_folder)
    del found["bundle.json"]
    assert open_bundle(bundle_folder).manifest.files == found
    assert {"platemark.json", "clip/golden.json", "clip/preprocess.json", "tokenizer/vocab.json"} <= set(found)


def test_nothing_of_this_machine_is_in_the_bundle(bundle_folder: Path, checkpoint_folder: Path) -> None:
    for path in bundle_folder.rglob("*.json"):
        assert str(checkpoint_folder.parent) not in path.read_text()


def test_a_moved_bundle_works(bundle_folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(bundle_folder, moved)
    bundle = open_bundle(moved)
    out = Pipeline.load(bundle).generate(GenerationRequest.make(bundle.manifest, prompt="red", seed=1))
    assert out.arrays.shape == (1, 64, 64, 3)


@pytest.mark.usefixtures("exported_before")
def test_building_in_place_adds_only_what_is_made(checkpoint_copy: Path, bundle_folder: Path) -> None:
    before = files(checkpoint_copy)
    build(checkpoint_copy, checkpoint_copy)
    after = files(checkpoint_copy)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {name for name in files(bundle_folder) if name.endswith(".onnx")} | {
        "bundle.json",
        "clip/golden.json",
        "clip/preprocess.json",
    }
    assert after == files(bundle_folder)
    with contextlib.chdir(checkpoint_copy):
        build(Path(), Path())
    assert files(checkpoint_copy) == after
    assert [path.name for path in checkpoint_copy.parent.iterdir()] == ["tiny"]


@pytest.mark.usefixtures("exported_before")
def test_given_settings_come_first_and_progress_is_heard(checkpoint_folder: Path, tmp_path: Path) -> None:
    heard: list[tuple[int, int, str]] = []
    manifest = build(
        checkpoint_folder,
        tmp_path / "out",
        settings={"name": "other", "output_size": (64, 96), "default_steps": 2, "default_guidance": 1.0},
        on_progress=lambda *step: heard.append(step),
    )
    assert (manifest.name, manifest.output_size, manifest.default_steps, manifest.default_guidance) == ("other", (64, 96), 2, 1.0)
    assert open_bundle(tmp_path / "out").manifest == manifest
    assert [step[0] for step in heard] == sorted(step[0] for step in heard)
    assert {step[1] for step in heard} == {14}
    assert any("unet" in step[2] for step in heard)


def spoil(weights: Path, tensor: str) -> None:
    """Moves one value of one tensor."""
    place = read_header(weights)[tensor]
    data = bytearray(weights.read_bytes())
    value = np.frombuffer(data, np.float16, 1, place.offset)[0]
    data[place.offset : place.offset + 2] = np.float16(value + np.float16(0.5)).tobytes()
    weights.write_bytes(bytes(data))


@pytest.mark.usefixtures("exported_before")
@pytest.mark.parametrize(
    ("component", "weights", "tensor"),
    [
        ("unet", "unet/diffusion_pytorch_model.safetensors", "mid_block.resnets.0.conv1.weight"),
        ("text_encoder", "text_encoder/model.safetensors", "encoder.layers.1.mlp.fc2.weight"),
        ("clip_image", "clip/open_clip_model.safetensors", "visual.proj"),
    ],
)
def test_one_spoiled_weight_refuses_the_build(checkpoint_folder: Path, tmp_path: Path, component: str, weights: str, tensor: str) -> None:
    out = tmp_path / "out"

    def watch(done: int, total: int, note: str) -> None:
        if note == f"{component}: comparing":
            spoil(out.with_name("out.partial") / weights, tensor)

    with pytest.raises(ParityError, match=f"{component} differs .*rel L2.*bound") as caught:
        build(checkpoint_folder, out, on_progress=watch)
    assert "rel L2" in caught.value.message
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("exported_before")
def test_a_weight_too_small_for_parity_is_still_found(checkpoint_folder: Path, tmp_path: Path) -> None:
    """Spoiled after its own comparison, by the last bit of one value: the hash tells."""
    out = tmp_path / "out"

    def watch(done: int, total: int, note: str) -> None:
        if note == "the whole pipeline: comparing":
            path = out.with_name("out.partial") / "vae" / "diffusion_pytorch_model.safetensors"
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(bytes(data))

    with pytest.raises(ParityError, match=r"vae/diffusion_pytorch_model\.safetensors changed"):
        build(checkpoint_folder, out, on_progress=watch)
    assert not out.exists()


@pytest.mark.usefixtures("exported_before")
def test_a_pipeline_that_differs_refuses_the_build(checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = endtoend.reference_picture
    monkeypatch.setattr(endtoend, "reference_picture", lambda *args: right(*args) + np.float32(0.01))
    with pytest.raises(ParityError, match="whole pipeline"):
        build(checkpoint_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("exported_before")
def test_existing_folders_are_replaced_only_when_asked(checkpoint_folder: Path, bundle_folder: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(bundle_folder, tmp_path / "out"))
    (out / "stray").write_text("x")
    with pytest.raises(InputError, match="exists") as caught:
        build(checkpoint_folder, out)
    assert "--force" in caught.value.remedy
    assert (out / "stray").exists()
    build(checkpoint_folder, out, replace=True)
    assert files(out) == files(bundle_folder)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("exported_before")
def test_a_full_disk_leaves_the_old_bundle(
    checkpoint_folder: Path, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(target: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    out = Path(shutil.copytree(bundle_folder, tmp_path / "out"))
    monkeypatch.setattr(module, "write_file", full)
    with pytest.raises(InputError, match="No space left"):
        build(checkpoint_folder, out, replace=True)
    assert files(out) == files(bundle_folder)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_is_no_bundle_is_never_replaced(checkpoint_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="not a bundle"):
        build(checkpoint_folder, tmp_path / "letters", replace=True)
    assert (tmp_path / "letters" / "letter.txt").read_text() == "dear"


def test_a_bad_checkpoint_leaves_nothing(checkpoint_copy: Path, tmp_path: Path) -> None:
    path = checkpoint_copy / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match="pickle"):
        build(checkpoint_copy, tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "given",
    [{"default_steps": 0}, {"default_guidance": float("nan")}, {"output_size": (0, 64)}, {"output_size": (64, 100000)}, {"no_such": 1}],
)
def test_settings_out_of_range_are_refused(checkpoint_folder: Path, tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="cannot be used"):
        build(checkpoint_folder, tmp_path / "out", settings=given)
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
from platemark.optimize import components
from platemark.optimize.build import build
components.export_linked = lambda spec, *rest: (Path(sys.argv[3]) / spec.graph).read_bytes()
def watch(done, total, note):
    if note == sys.argv[4]:
        os.kill(os.getpid(), signal.SIGKILL)
build(Path(sys.argv[1]), Path(sys.argv[2]), replace=True, on_progress=watch)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.usefixtures("exported_before")
def test_a_killed_build_leaves_no_half_bundle(checkpoint_folder: Path, bundle_folder: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(bundle_folder, tmp_path / "out"))
    run = [sys.executable, "-c", KILLED, str(checkpoint_folder), str(out), str(bundle_folder), "writing"]
    done = subprocess.run(run, env={**os.environ, "PYTHONWARNINGS": "ignore"}, capture_output=True, check=False, timeout=1800)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert files(out) == files(bundle_folder)
    assert not (tmp_path / "out.partial" / "bundle.json").exists()
    build(checkpoint_folder, out, replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("exported_before")
def test_a_bundle_set_aside_by_a_killed_build_comes_back(checkpoint_copy: Path, bundle_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle_folder, tmp_path / "out.replaced")
    (checkpoint_copy / "unet" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError):
        build(checkpoint_copy, tmp_path / "out", replace=True)
    with pytest.raises(InputError, match="exists"):
        build(bundle_folder, tmp_path / "out")
    assert files(tmp_path / "out") == files(bundle_folder)


KILLED_IN_PLACE = """
import os, signal, sys
from pathlib import Path
from platemark.optimize import components, staging
from platemark.optimize.build import build
components.export_linked = lambda spec, *rest: (Path(sys.argv[2]) / spec.graph).read_bytes()
moved = []
def kill_before_the_third(folder):
    if not Path(folder).is_relative_to(Path(sys.argv[1]).resolve()):
        return
    moved.append(folder)
    if len(moved) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
staging.sync_folder = kill_before_the_third
build(Path(sys.argv[1]), Path(sys.argv[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.usefixtures("exported_before")
def test_killed_in_place_there_is_no_manifest_rather_than_a_stale_one(bundle_folder: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(bundle_folder, tmp_path / "tiny"))
    run = [sys.executable, "-c", KILLED_IN_PLACE, str(out), str(bundle_folder)]
    done = subprocess.run(run, env={**os.environ, "PYTHONWARNINGS": "ignore"}, capture_output=True, check=False, timeout=1800)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert not (out / "bundle.json").exists()
    with pytest.raises(BundleError, match=r"bundle\.json"):
        open_bundle(out)
    build(out, out)
    assert files(out) == files(bundle_folder)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("at_home", [False, True])
def test_a_second_build_to_one_output_is_refused(tmp_path: Path, replace: bool, at_home: bool) -> None:
    out = tmp_path / "out"
    with stage_for(out, in_place=False, replace=False) as stage:
        (stage / "half").write_text("x")
        with (
            pytest.raises(InputError, match=rf"another build to .*{out.name} is under way") as caught,
            stage_for(out, in_place=at_home, replace=replace),
        ):
            pytest.fail("two builds at once")
        assert "wait" in caught.value.remedy
        assert (stage / "half").read_text() == "x"
    with stage_for(out, in_place=False, replace=False):
        pass


HOLD = """
import sys
from pathlib import Path
from platemark.optimize.staging import stage_for
with stage_for(Path(sys.argv[1]), in_place=False, replace=False):
    sys.stdout.write("held\\n")
    sys.stdout.flush()
    sys.stdin.read()
"""


def test_a_build_of_another_process_is_seen_and_its_death_lets_go(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another build"), stage_for(out, in_place=False, replace=True):
            pytest.fail("two builds at once")
        other.kill()
    with stage_for(out, in_place=False, replace=False) as stage:
        assert not list(stage.iterdir())


def test_a_missing_extra_says_how_to_get_it(checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else real(name))
    with pytest.raises(MissingExtra, match="onnxscript") as caught:
        module.build(checkpoint_folder, tmp_path / "out")
    assert "[build]" in caught.value.remedy


def test_the_scheduler_is_the_checkpoints_own_where_it_can_be(checkpoint_copy: Path) -> None:
    path = checkpoint_copy / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    assert choose_scheduler(open_checkpoint(checkpoint_copy), None) is None
    assert choose_scheduler(open_checkpoint(checkpoint_copy), "euler") == "euler"
    path.write_text(json.dumps(config | {"_class_name": "PNDMScheduler", "skip_prk_steps": True}))
    assert choose_scheduler(open_checkpoint(checkpoint_copy), None) is None
    path.write_text(json.dumps(config | {"_class_name": "PNDMScheduler", "skip_prk_steps": False}))
    with pytest.raises(CheckpointError, match="skip_prk_steps"):
        choose_scheduler(open_checkpoint(checkpoint_copy), None)
    path.write_text(json.dumps(config | {"_class_name": "IPNDMScheduler"}))
    assert choose_scheduler(open_checkpoint(checkpoint_copy), None) == "ddim"
    path.write_text(json.dumps(config | {"prediction_type": "flow"}))
    with pytest.raises(CheckpointError, match="prediction_type"):
        choose_scheduler(open_checkpoint(checkpoint_copy), None)
