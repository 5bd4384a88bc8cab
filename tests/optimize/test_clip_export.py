"""Any open_clip model becomes a folder that picture checks read without open_clip: both towers, proven, every file hashed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

import open_clip  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from platemark.cli.build import command  # noqa: E402
from platemark.errors import CheckpointError, InputError, ParityError, SafetyUnavailable  # noqa: E402
from platemark.optimize import clip as clip_export  # noqa: E402
from platemark.optimize.clip import export_clip  # noqa: E402
from platemark.optimize.clip_source import staged_clip  # noqa: E402
from platemark.safety.detectors.clip_files import read_manifest  # noqa: E402
from platemark.safety.detectors.clip_loading import clip_filter, clip_of_folder  # noqa: E402

NAME = "platemark-test-tiny"
TEXTS = ["a red apple", "two dogs, 1950s film grain", "Ünïcode & punctuation!"]
MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 1, "head_width": 16, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 4},  # masks as large as a real model's
}


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model under a name that open_clip knows, with open_clip's own vocabulary: the safetensors file of its weights."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / f"{NAME}.json").write_text(json.dumps(MODEL))
    open_clip.add_model_config(folder / f"{NAME}.json")
    torch.manual_seed(7)
    net = open_clip.create_model(NAME)
    file = folder / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in net.state_dict().items() if k != "attn_mask"}, file, metadata={"format": "pt"})
    return file


@pytest.fixture(scope="module")
def exported(named: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That model exported by its name, in 8 bits."""
    out = tmp_path_factory.mktemp("exported") / "clip"
    export_clip(NAME, out, weights=named, precision="int8", domain="test")
    return out


@pytest.fixture(scope="module")
def exported_folder(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint's own CLIP, exported alone by the command line from its `local-dir:` folder."""
    out = tmp_path_factory.mktemp("exported") / "local"
    done = CliRunner().invoke(
        command, ["--clip", f"local-dir:{checkpoint_folder / 'clip'}", "-o", str(out), "--json"], standalone_mode=False
    )
    assert done.exception is None
    assert json.loads(done.stdout)["manifest"] == json.loads((out / "clip.json").read_text())
    return out


def pictures(side: int) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    cells = [rng.integers(0, 256, (5, 5, 3), dtype=np.uint8) for _ in range(3)]
    return [np.asarray(Image.fromarray(cell).resize((side, side), Image.Resampling.BICUBIC)) for cell in cells]


def cosines(rows: np.ndarray, wanted: torch.Tensor) -> np.ndarray:
    return np.asarray((rows * wanted.numpy()).sum(axis=1))


def test_towers_by_name_see_and_read_as_open_clip_does(named: Path, exported: Path) -> None:
    net, _, transform = open_clip.create_model_and_transforms(NAME, pretrained=str(named))
    net.eval()
    model = clip_of_folder(exported)
    seen = pictures(32)
    with torch.no_grad():
        images = net.encode_image(torch.stack([transform(Image.fromarray(one)) for one in seen]), normalize=True)
        texts = net.encode_text(open_clip.get_tokenizer(NAME)(TEXTS), normalize=True)
    assert cosines(np.stack([model.embed_image(one) for one in seen]), images).min() > 0.99  # 8 bits
    assert cosines(model.embed_texts(TEXTS), texts).min() > 0.99999
    assert model.preprocess.domain == "test"


def test_a_local_folder_is_exported_exactly(checkpoint_folder: Path, exported_folder: Path) -> None:
    net, _, transform = open_clip.create_model_and_transforms(f"local-dir:{checkpoint_folder / 'clip'}", precision="fp32")
    net.eval()
    model, seen = clip_of_folder(exported_folder), pictures(16)
    with torch.no_grad():
        images = net.encode_image(torch.stack([transform(Image.fromarray(one)) for one in seen]), normalize=True)
    assert cosines(np.stack([model.embed_image(one) for one in seen]), images).min() > 0.99999


@pytest.mark.parametrize(("kind", "precision"), [("exported", "int8"), ("exported_folder", "fp32")])
def test_the_manifest_lists_every_file_and_its_parity(kind: str, precision: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    manifest = read_manifest(folder)
    assert set(manifest.files) == {path.name for path in folder.iterdir()} - {"clip.json"}
    assert (manifest.image.precision, manifest.text.precision) == (precision, "fp32")
    assert min(manifest.image.cosines) >= manifest.image.bound_cosine >= 0.99
    assert min(manifest.text.cosines) >= manifest.text.bound_cosine >= 0.9999
    assert len(manifest.image.cosines) >= 5


def test_eight_bits_leave_the_float_weights_of_the_image_tower_out(exported: Path) -> None:
    from safetensors import safe_open

    assert not (exported / "open_clip_model.safetensors").exists()
    with safe_open(exported / "text.safetensors", framework="numpy") as stored:
        assert not [name for name in stored.keys() if name.startswith("visual.")]  # noqa: SIM118


FAULTS = ("changed", "missing", "stranger", "off its bound", "no manifest", "other golden")


@pytest.mark.parametrize("fault", FAULTS)
def test_what_nobody_hashed_or_proved_does_not_score(exported: Path, tmp_path: Path, fault: str) -> None:
    """Replay: weights that never loaded score happily."""
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    manifest = json.loads((copy / "clip.json").read_text())
    match fault:
        case "changed":
            (copy / "image.onnx").write_bytes((copy / "image.onnx").read_bytes()[:-1] + b"!")
        case "missing":
            (copy / "text.onnx").unlink()
        case "stranger":
            (copy / "more.onnx").write_bytes(b"nobody knows")
        case "off its bound":
            manifest["image"]["cosines"][0] = 0.9
        case "no manifest":
            manifest = {}
        case _:
            import hashlib

            golden = json.loads((copy / "golden.json").read_text())
            golden["image"]["embedding"].reverse()
            (copy / "golden.json").write_text(json.dumps(golden))
            manifest["files"]["golden.json"] = hashlib.sha256((copy / "golden.json").read_bytes()).hexdigest()
    (copy / "clip.json").write_text(json.dumps(manifest))
    with pytest.raises(SafetyUnavailable):
        clip_of_folder(copy)


SERVING = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "open_clip", "transformers", "diffusers", "scipy"):
            raise AssertionError(f"serving imports {name}")
sys.meta_path.insert(0, Refuse())
from pathlib import Path
import numpy as np
from platemark.safety.detectors.clip_loading import clip_filter
folder, cache = Path(sys.argv[1]), Path(sys.argv[2])
picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
for concepts in ({"alarm": ("a red apple",)}, {"alarm": ("a red apple", "a dagger")}):
    scores = clip_filter(folder, concepts, cache_folder=cache, threads=1).score(picture)
    print(scores["alarm"].score)
"""


def test_serving_reads_an_edited_policy_without_open_clip(exported: Path, tmp_path: Path) -> None:
    """The exported text tower embeds the new concepts; nothing of torch is imported."""
    done = subprocess.run([sys.executable, "-c", SERVING, str(exported), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = (float(line) for line in done.stdout.split())
    assert 0 < before < after < 1, "one more concept takes more of the mass"


def test_a_policy_names_the_exported_folder_and_its_concepts_are_embedded_anew(exported: Path, tmp_path: Path) -> None:
    first = clip_filter(exported, {"alarm": ("a red apple",)}, cache_folder=tmp_path)
    kept = {path.name for path in tmp_path.iterdir()}
    second = clip_filter(exported, {"alarm": ("a red apple", "a dagger")}, calibration={"a dagger": 0.05}, cache_folder=tmp_path)
    picture = pictures(32)[0]
    assert {path.name for path in tmp_path.iterdir()} > kept
    assert second.score(picture)["alarm"].score > first.score(picture)["alarm"].score
    assert second.domain == "test"


def test_a_model_in_the_hugging_face_cache_is_found(checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    repository = tmp_path / "models--somebody--tiny"
    shutil.copytree(checkpoint_folder / "clip", repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with staged_clip("hf-hub:somebody/tiny") as folder:
        assert (folder / "open_clip_model.safetensors").read_bytes() == (
            checkpoint_folder / "clip" / "open_clip_model.safetensors"
        ).read_bytes()
    assert not folder.exists()
    with pytest.raises(InputError, match="not in the Hugging Face cache"), staged_clip("hf-hub:somebody/else"):
        pass


@pytest.mark.parametrize(
    ("source", "weights", "complaint"),
    [
        ("nowhere/at/all", None, "no open_clip folder"),
        ("ViT-B-32", None, "no open_clip folder"),
        ("ViT-B-9000", "here.safetensors", "knows no model"),
        ("ViT-B-32:nobody", "here.safetensors", "knows no weights"),
        ("ViT-B-32", "here.bin", "not a safetensors file"),
        ("ViT-B-32", "missing.safetensors", "no file"),
        ("hf-hub:not a name/at//all", None, "no repository|not in the Hugging Face cache"),
    ],
)
def test_sources_that_are_none(source: str, weights: str | None, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "here.safetensors").write_bytes(b"")
    (tmp_path / "here.bin").write_bytes(b"")
    with pytest.raises((InputError, CheckpointError), match=complaint) as refused:
        export_clip(source, tmp_path / "out", weights=tmp_path / weights if weights else None)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fault", ["pickle", "no config", "hub tower", "odd domain", "other words"])
def test_folders_that_cannot_be_exported(checkpoint_folder: Path, tmp_path: Path, fault: str) -> None:
    folder = Path(shutil.copytree(checkpoint_folder / "clip", tmp_path / "clip"))
    config = json.loads((folder / "open_clip_config.json").read_text())
    match fault:
        case "pickle":
            (folder / "open_clip_model.safetensors").rename(folder / "open_clip_pytorch_model.bin")
        case "no config":
            (folder / "open_clip_config.json").unlink()
        case "hub tower":
            config["model_cfg"]["text_cfg"]["hf_model_name"] = "somebody/model"
        case "odd domain":
            config["domain"] = "Not a name"
        case _:
            (folder / "vocab.json").unlink()
            (folder / "merges.txt").unlink()
    if fault != "no config":
        (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        export_clip(str(folder), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip"]


def test_towers_that_compute_something_else_are_not_published(named: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A perturbed engine must make the export refuse."""
    monkeypatch.setattr(clip_export, "_export", lambda net, part, precision, say: (tmp_path / "image", tmp_path / "text"))

    class Wrong:
        def run(self, inputs: Any) -> dict[str, np.ndarray]:
            return {"image_embeds": np.eye(1, 16, dtype=np.float32)}

    monkeypatch.setattr(clip_export, "_compiled", lambda path: Wrong())
    with pytest.raises(ParityError, match=r"image tower .* differs from its reference"):
        export_clip(NAME, tmp_path / "out", weights=named)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "nothing to build"),
        (["--clip-domain", "faces", "."], "--clip-domain says how"),
        (["--clip", "ViT-B-32", "--clip-precision", "int8", "."], "exported alone"),
        (["--lora", "style.safetensors", "--clip", "ViT-B-32"], "merged into a CHECKPOINT"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], complaint: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(command, [*arguments, "-o", str(tmp_path / "out")], standalone_mode=False)
    assert isinstance(done.exception, InputError)
    assert complaint in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_takes_the_clip_that_it_is_given(
    checkpoint_copy: Path, checkpoint_folder: Path, graphs: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`build CHECKPOINT --clip MODEL`: the bundle has both towers, and says what the CLIP knows."""
    from platemark.optimize import components
    from platemark.runtime.bundle import open_bundle
    from platemark.safety.detectors.clip_loading import clip_of_bundle

    monkeypatch.setattr(components, "export_linked", lambda spec, *rest: graphs[spec.component])  # exported before: the same bytes
    shutil.rmtree(checkpoint_copy / "clip")
    arguments = [str(checkpoint_copy), "-o", str(tmp_path / "out"), "--clip", str(checkpoint_folder / "clip"), "--clip-domain", "letters"]
    done = CliRunner().invoke(command, arguments, standalone_mode=False)
    assert done.exception is None
    assert "note:" not in done.stdout
    bundle = open_bundle(tmp_path / "out")
    assert {"clip_image", "clip_text"} <= set(bundle.manifest.components)
    assert clip_of_bundle(bundle).preprocess.domain == "letters"
