"""A bundle opens whole or not at all, and says which file or field is wrong."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from platemark.errors import BundleError
from platemark.runtime.bundle import Bundle, open_bundle

Rewrite = Callable[..., None]


def refusal(root: Path) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(root)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    return caught.value.message


def edit(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((root / "bundle.json").read_text())
    change(manifest)
    (root / "bundle.json").write_text(json.dumps(manifest))


def test_an_intact_bundle_opens(miniature: Path) -> None:
    bundle = open_bundle(miniature)
    assert bundle.sha256 == hashlib.sha256((miniature / "bundle.json").read_bytes()).hexdigest()
    assert bundle.component("unet").graph == "unet/model.onnx"
    assert bundle.file("unet/model.onnx").is_file()
    assert len(bundle.weights_sha256) == 64


def test_unknown_components_and_files_are_refused(miniature: Path) -> None:
    bundle = open_bundle(miniature)
    with pytest.raises(BundleError, match="safety_checker"):
        bundle.component("safety_checker")
    with pytest.raises(BundleError, match=r"unet/other\.onnx"):
        bundle.file("unet/other.onnx")


def test_it_can_be_moved_linked_and_opened_from_elsewhere(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_bundle(copy).sha256
    moved = copy.rename(tmp_path / "elsewhere")
    link = tmp_path / "link"
    link.symlink_to(moved)
    monkeypatch.chdir(tmp_path)
    assert open_bundle(Path("elsewhere")).sha256 == open_bundle(link).sha256 == before
    assert open_bundle(Path("elsewhere")).root.is_absolute()


@pytest.mark.parametrize("name", ["unet/model.safetensors", "vae/model.onnx", "tokenizer/vocab.json", "scheduler/scheduler_config.json"])
def test_a_flipped_bit_is_found(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    assert name in refusal(copy)


def test_a_missing_or_truncated_file_is_named(copy: Path) -> None:
    (copy / "unet" / "model.onnx").unlink()
    assert "unet/model.onnx" in refusal(copy)
    (copy / "unet" / "model.onnx").mkdir()
    assert "unet/model.onnx" in refusal(copy)


def test_no_folder_and_no_manifest(tmp_path: Path) -> None:
    assert "missing" in refusal(tmp_path / "missing")
    assert "bundle.json" in refusal(tmp_path)
    file = tmp_path / "file"
    file.write_text("x")
    assert "file" in refusal(file)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"format_version": 2}', '{"format_version": 1}', "\udcff"])
def test_malformed_manifests(copy: Path, text: str) -> None:
    (copy / "bundle.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "bundle.json" in refusal(copy)


def test_a_newer_format_is_called_newer(copy: Path) -> None:
    edit(copy, lambda manifest: manifest.update(format_version=7))
    assert "version 7" in refusal(copy)


def test_unknown_and_missing_fields_are_named(copy: Path) -> None:
    edit(copy, lambda manifest: manifest.update(surprise=1))
    assert "surprise" in refusal(copy)
    edit(copy, lambda manifest: (manifest.pop("surprise"), manifest["components"]["unet"].pop("parity")))
    assert "components.unet.parity" in refusal(copy)


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "unet/../../outside", "unet//model.onnx", ".", "C:/x", "a\\b", "", "bundle.json"]
)
def test_names_that_leave_the_folder(copy: Path, name: str) -> None:
    (copy.parent / "outside").write_bytes(b"x")
    edit(copy, lambda manifest: manifest["files"].update({name: hashlib.sha256(b"x").hexdigest()}))
    assert "no file of a bundle" in refusal(copy)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs symbolic links")
def test_links_out_of_the_folder(copy: Path) -> None:
    weights = copy / "unet" / "model.safetensors"
    weights.rename(copy.parent / "weights")
    weights.symlink_to(copy.parent / "weights")
    assert "links out" in refusal(copy)
    weights.unlink()
    weights.symlink_to(weights)
    assert "model.safetensors" in refusal(copy)


def test_what_components_use_must_be_listed(copy: Path) -> None:
    edit(copy, lambda manifest: manifest["files"].pop("unet/model.safetensors"))
    assert "unet/model.safetensors" in refusal(copy)


def comparisons(*errors: float, same: bool = False) -> list[dict[str, Any]]:
    return [
        {"shapes": {"sample": [1, 4, 8 if same else 8 + i, 8]}, "max_abs_error": 0.0, "rel_l2_error": error, "cosine": 1.0}
        for i, error in enumerate(errors)
    ]


@pytest.mark.parametrize(
    "found",
    [
        comparisons(0.0),
        comparisons(0.0, 1.0),
        comparisons(float("nan"), 0.0),
        comparisons(0.0, float("nan")),
        comparisons(-1.0, -1.0),
        comparisons(0.0, 0.0, same=True),
    ],
)
def test_no_parity_no_bundle(copy: Path, found: list[dict[str, Any]]) -> None:
    edit(copy, lambda manifest: manifest["components"]["vae_decoder"]["parity"].update(comparisons=found))
    assert "vae_decoder" in refusal(copy)


@pytest.mark.parametrize("end", [{"psnr": 59.0}, {"psnr": float("nan")}, {"bound_psnr": 0.0}])
def test_end_to_end_keeps_its_bound(copy: Path, end: dict[str, float]) -> None:
    edit(copy, lambda manifest: manifest["end_to_end"].update(end))
    assert "whole pipeline" in refusal(copy)


def test_weights_hash_follows_the_weights(copy: Path, rewrite_manifest: Rewrite) -> None:
    before = open_bundle(copy).weights_sha256
    rewrite_manifest(copy, source={"checkpoint": "none", "weights": {"unet/model.safetensors": "1" * 64}})
    assert open_bundle(copy).weights_sha256 != before


@given(st.binary(max_size=300))
def test_any_bytes_open_or_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    root = tmp_path_factory.mktemp("fuzz")
    (root / "bundle.json").write_bytes(data)
    refusal(root)


def test_a_folder_is_read_only_where_its_files_are_listed(copy: Path) -> None:
    bundle = open_bundle(copy)
    assert bundle.folder("tokenizer", ["vocab.json", "tokenizer.json"]) == copy.resolve() / "tokenizer"
    (copy / "tokenizer" / "tokenizer.json").symlink_to("nowhere yet")
    with pytest.raises(BundleError, match=r"tokenizer/tokenizer\.json"):
        bundle.folder("tokenizer", ["vocab.json", "tokenizer.json"])


def test_names_are_lines_of_a_listed_file(copy: Path, rewrite_manifest: Rewrite) -> None:
    (copy / "names.txt").write_text("red apple\n\n grüner Apfel \n", encoding="utf-8")
    assert open_bundle(copy).names() == ()
    rewrite_manifest(copy)
    assert open_bundle(copy).names() == ("red apple", " grüner Apfel ")
    (copy / "names.txt").write_bytes(b"red apple\n\xff\n")
    rewrite_manifest(copy)
    with pytest.raises(BundleError, match=r"names\.txt") as caught:
        open_bundle(copy).names()
    assert "UTF-8" in caught.value.message


def test_bundles_do_not_change(miniature: Path) -> None:
    bundle = open_bundle(miniature)
    with pytest.raises(AttributeError):
        bundle.sha256 = "0"  # type: ignore[misc]
    assert isinstance(bundle, Bundle)
