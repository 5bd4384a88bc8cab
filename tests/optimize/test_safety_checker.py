"""Stable Diffusion's safety checker: exported faithfully, and judged as diffusers' class judges."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

import diffusers.pipelines.stable_diffusion.safety_checker as original  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import CLIPConfig, CLIPImageProcessor  # noqa: E402

from platemark.errors import BundleError, CheckpointError, SafetyUnavailable  # noqa: E402
from platemark.optimize.checkpoint import open_checkpoint  # noqa: E402
from platemark.optimize.modules import CheckerTower  # noqa: E402
from platemark.optimize.safety_checker import checker_file, preprocessing  # noqa: E402
from platemark.runtime.backends.torch import wrap  # noqa: E402
from platemark.runtime.engine import TensorSpec  # noqa: E402
from platemark.safety.detectors.checker import ADJUSTMENT, CheckerFile, SafetyChecker, pixel_values  # noqa: E402

SIDE, DIM = 32, 24
F32 = np.dtype(np.float32)
EDGE = 2e-6  # nearer than this to a step of the rounding, torch's and numpy's float32 may fall on different sides


def tiny_checker(seed: int = 0) -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision, text = sizes | {"image_size": SIDE, "patch_size": 8}, sizes | {"vocab_size": 50}
    net = original.StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, text_config=text, projection_dim=DIM)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    return net


def write_features(root: Path) -> None:
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(root / "feature_extractor")


def picture(rng: np.random.Generator, number: int) -> NDArray[np.uint8]:
    cells = rng.integers(0, 256, (2 + number % 5, 2 + number % 3, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(cells).resize((40, 40), Image.Resampling.BICUBIC if number % 2 else Image.Resampling.NEAREST))


def reader(net: Any, root: Path) -> SafetyChecker:
    file = CheckerFile.model_validate_json(json.dumps(checker_file(net, root)))
    pixels, embeds = TensorSpec("pixel_values", F32, ("b", 3, SIDE, SIDE)), TensorSpec("image_embeds", F32, ("b", DIM))
    tower = wrap("checker", CheckerTower(net), (pixels,), (embeds,))
    return SafetyChecker(tower, file, "0" * 64)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_features(tmp_path)
    return tmp_path


def set_thresholds(net: Any, root: Path) -> None:
    """Thresholds in the middle of what test pictures score, so that every branch of the rule is walked."""
    rng, rows = np.random.default_rng(5), []
    file = CheckerFile.model_validate_json(json.dumps(checker_file(net, root)))
    for number in range(60):
        pixels = torch.from_numpy(pixel_values(picture(rng, number), file.preprocess))
        with torch.no_grad():
            rows.append(CheckerTower(net)(pixels))
    unit = torch.nn.functional.normalize(torch.cat(rows))
    with torch.no_grad():
        for name, share in (("concept_embeds", 0.985), ("special_care_embeds", 0.8)):
            cosines = unit @ torch.nn.functional.normalize(getattr(net, name)).T
            getattr(net, f"{name}_weights").copy_(torch.quantile(cosines, share, dim=0))


def test_the_rule_equals_diffusers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny_checker()
    set_thresholds(net, root)
    checker = reader(net, root)
    raw: list[float] = []

    def recorded(value: Any, digits: int) -> Any:
        raw.append(float(value))
        return round(value, digits)

    monkeypatch.setattr(original, "round", recorded, raising=False)
    rng, flagged, special, moved = np.random.default_rng(6), 0, 0, 0
    for number in range(160):
        seen = picture(rng, number)
        raw.clear()
        pixels = torch.from_numpy(pixel_values(seen, checker._file.preprocess))
        images, found = net(pixels, [np.ones((2, 2))])
        judged = checker.judge(seen)
        mine, theirs = np.array(judged.special_care + judged.concepts), np.round(np.array(raw, np.float32), 3)
        place = (np.array(raw) * 1000 + 0.5) % 1
        clear = np.minimum(place, 1 - place) > EDGE * 1000
        assert clear.sum() > 15
        np.testing.assert_allclose(mine[clear], theirs[clear], atol=1e-5, rtol=0)
        if clear.all():
            assert judged.flagged == found[0] == (not images[0].any())
            assert (judged.score >= 0.7) == found[0]
        flagged, special = flagged + found[0], special + any(score > 0 for score in judged.special_care)
        moved += any(0 < score <= ADJUSTMENT for score in judged.concepts) and any(score > 0 for score in judged.special_care)
    assert 20 <= flagged <= 140, "both branches must be walked"
    assert 20 <= special <= 140, "with and without the stricter rule"
    assert moved, "a concept that the 0.01 alone lifts over its threshold"


def test_pictures_become_input_as_the_feature_extractor_makes_them(root: Path) -> None:
    processor = CLIPImageProcessor.from_pretrained(root / "feature_extractor")
    preprocess = CheckerFile.model_validate_json(json.dumps(checker_file(tiny_checker(), root))).preprocess
    rng = np.random.default_rng(1)
    for height, width in ((32, 32), (40, 40), (97, 61), (50, 200)):
        seen = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected = processor(Image.fromarray(seen), return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(pixel_values(seen, preprocess), expected, atol=1.1 / 255 / min(preprocess.std), rtol=0)  # one grey level
        assert np.abs(pixel_values(seen, preprocess) - expected).mean() < 1e-3


def test_an_oblong_picture_is_also_looked_at_whole(root: Path) -> None:
    """The checker sees the middle square alone; what it would flag at the edge must not pass for that."""
    net = tiny_checker()
    set_thresholds(net, root)
    checker = reader(net, root)
    rng = np.random.default_rng(6)
    found = next(seen for seen in (picture(rng, number) for number in range(160)) if checker.judge(seen).flagged)
    wide = np.concatenate([found, np.zeros((40, 40, 3), np.uint8), found], axis=1)
    assert len(checker.judge(wide).concepts) == 17
    middle = checker.judge(np.ascontiguousarray(wide[:, 40:80]))
    assert checker.judge(wide).score >= middle.score


@pytest.mark.parametrize("what", ["concept_embeds", "special_care_embeds"])
@pytest.mark.parametrize("fault", ["never loaded", "two equal", "nan"])
def test_vectors_that_never_loaded_are_not_exported(root: Path, what: str, fault: str) -> None:
    net = tiny_checker()
    with torch.no_grad():
        rows = getattr(net, what)
        match fault:
            case "never loaded":
                rows.fill_(1)
            case "two equal":
                rows[0].copy_(rows[1])
            case _:
                rows[0].fill_(float("nan"))
    with pytest.raises(CheckpointError, match="never loaded"):
        checker_file(net, root)


@pytest.mark.parametrize(
    "change",
    [{"do_center_crop": False}, {"do_normalize": False}, {"size": {"height": 32, "width": 48}}, {"resample": 7}, {"crop_size": None}],
)
def test_another_feature_extractor_is_refused(change: dict[str, Any]) -> None:
    config = {"size": 32, "crop_size": 32, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    assert preprocessing(config)["interpolation"] == "bicubic"
    with pytest.raises(CheckpointError, match="preprocessor_config"):
        preprocessing(config | change)


# ---- a whole build


@pytest.fixture(scope="module")
def checked_checkpoint(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint without its CLIP, with a safety checker in its place."""
    root = Path(shutil.copytree(checkpoint_folder, tmp_path_factory.mktemp("checked") / "tiny"))
    shutil.rmtree(root / "clip")
    write_features(root)
    net = tiny_checker(3)
    set_thresholds(net, root)
    net.save_pretrained(root / "safety_checker", safe_serialization=True)
    index = json.loads((root / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (root / "model_index.json").write_text(json.dumps(index))
    return root


@pytest.fixture(scope="module")
def checked_bundle(checked_checkpoint: Path, graphs: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from platemark.optimize import components
    from platemark.optimize.build import build

    out, export = tmp_path_factory.mktemp("bundles") / "checked", components.export_linked
    with pytest.MonkeyPatch.context() as patch:  # the other networks were exported before: the same bytes
        patch.setattr(
            components, "export_linked", lambda spec, *rest: graphs[spec.component] if spec.component in graphs else export(spec, *rest)
        )
        build(checked_checkpoint, out)
    return out


def test_a_checkpoints_own_checker_is_built_and_used_under_strict(checked_bundle: Path, tmp_path: Path) -> None:
    import platemark
    from platemark.runtime.bundle import open_bundle
    from platemark.safety.detectors.checker import checker_for_bundle

    bundle = open_bundle(checked_bundle)
    assert {"safety_checker/model.onnx", "safety_checker/checker.json", "safety_checker/model.safetensors"} <= set(bundle.manifest.files)
    assert bundle.manifest.components["safety_checker"].parity.comparisons
    checker = checker_for_bundle(bundle)
    rng = np.random.default_rng(9)
    looks = [checker.judge(picture(rng, number)) for number in range(60)]
    assert 0 < sum(look.flagged for look in looks) < 60
    press = platemark.load(checked_bundle, policy="strict", home=tmp_path / "home")
    assert press.gate.detectors["sd_safety_checker"] == checker.model_sha256
    (result,) = press.generate("app", num_inference_steps=2, seed=1)
    said = {entry.detector: entry.score for entry in result.decision.entries if entry.category == "sexual"}
    assert set(said) >= {"nsfw", "sd_safety_checker"}
    assert (result.image is None) == (max(said["sd_safety_checker"], said["nsfw"]) >= 0.65)  # the preset's threshold


def test_without_checker_and_clip_strict_refuses(checked_bundle: Path, tmp_path: Path) -> None:
    import platemark

    bare = Path(shutil.copytree(checked_bundle, tmp_path / "bare"))
    shutil.rmtree(bare / "safety_checker")
    manifest = json.loads((bare / "bundle.json").read_text())
    del manifest["components"]["safety_checker"]
    manifest["files"] = {name: digest for name, digest in manifest["files"].items() if not name.startswith("safety_checker/")}
    (bare / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(SafetyUnavailable, match="requires an image filter"):
        platemark.load(bare, policy="strict", home=tmp_path / "home")


@pytest.mark.parametrize("name", ["checker.json", "model.onnx", "model.safetensors"])
@pytest.mark.parametrize("fault", ["changed", "not listed"])
def test_a_checker_whose_files_are_not_the_ones_does_not_score(checked_bundle: Path, tmp_path: Path, name: str, fault: str) -> None:
    from platemark.runtime.bundle import open_bundle
    from platemark.safety.detectors.checker import checker_for_bundle

    spoiled = Path(shutil.copytree(checked_bundle, tmp_path / "spoiled"))
    if fault == "changed":
        file = spoiled / "safety_checker" / name
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    else:
        manifest = json.loads((spoiled / "bundle.json").read_text())
        del manifest["files"][f"safety_checker/{name}"]
        (spoiled / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises((BundleError, SafetyUnavailable)):
        checker_for_bundle(open_bundle(spoiled))


def test_a_checkpoint_without_its_feature_extractor_is_refused(checked_checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(checked_checkpoint, tmp_path / "copy"))
    shutil.rmtree(copy / "feature_extractor")
    with pytest.raises(CheckpointError, match="feature_extractor"):
        open_checkpoint(copy)
