"""The embedded CLIP knows emoji and nothing else, and says so: for a real checkpoint's pictures it is no filter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from platemark.errors import SafetyUnavailable
from platemark.models import embedded
from platemark.runtime.bundle import Bundle, open_bundle
from platemark.safety.assemble import gate_for_bundle
from platemark.safety.detectors.clip_files import read_preprocess
from platemark.safety.detectors.clip_loading import domain_of, knows
from platemark.safety.policy import load_policy


@pytest.fixture(scope="module")
def model() -> Bundle:
    return open_bundle(embedded())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text embeddings, made once."""
    return tmp_path_factory.mktemp("cache")


def test_the_embedded_model_and_its_clip_say_what_they_know(model: Bundle) -> None:
    assert domain_of(model) == "emoji"
    assert read_preprocess(embedded() / "clip").domain == "emoji"


@pytest.mark.parametrize(
    ("clip", "bundle", "known"),
    [
        ("general", "general", True),
        ("general", "emoji", True),
        ("emoji", "emoji", True),
        ("emoji", "general", False),
        ("faces", "emoji", False),
    ],
)
def test_who_can_judge_whom(clip: str, bundle: str, known: bool) -> None:
    assert knows(clip, bundle) is known


def test_strict_takes_it_for_the_embedded_model_alone(model: Bundle, cache: Path) -> None:
    gate = gate_for_bundle(load_policy("strict"), model, built_in=True, cache_folder=cache, threads=1)
    assert "clip" in gate.detectors
    assert gate.unchecked == ()
    with pytest.raises(SafetyUnavailable, match="requires an image filter"):
        gate_for_bundle(load_policy("strict"), model, cache_folder=cache, threads=1)  # another checkpoint that calls itself emoji


def test_a_checkpoint_of_other_pictures_with_that_clip_has_no_filter(tmp_path: Path, cache: Path) -> None:
    import hashlib

    root = Path(shutil.copytree(embedded(), tmp_path / "other"))
    settings = json.loads((root / "platemark.json").read_text())
    del settings["domain"]
    (root / "platemark.json").write_text(json.dumps(settings))
    manifest = json.loads((root / "bundle.json").read_text())
    manifest["files"]["platemark.json"] = hashlib.sha256((root / "platemark.json").read_bytes()).hexdigest()
    (root / "bundle.json").write_text(json.dumps(manifest))
    other = open_bundle(root)
    gate = gate_for_bundle(load_policy("standard"), other, cache_folder=cache, threads=1)
    assert "clip" not in gate.detectors
    assert "weapon" in gate.unchecked, "what stays unchecked is stated"
    with pytest.raises(SafetyUnavailable, match="requires an image filter"):
        gate_for_bundle(load_policy("strict"), other, built_in=True, cache_folder=cache, threads=1)
