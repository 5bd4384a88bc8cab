"""The whole image check from a bundle on disk: two tiny ONNX towers, ONNX Runtime, the CLIP tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from platemark.errors import BundleError, SafetyUnavailable
from platemark.runtime.bundle import open_bundle
from platemark.safety.decision import Action
from platemark.safety.gate import Gate, gate_for_bundle
from platemark.safety.policy import Policy, parse_policy

pytestmark = pytest.mark.torch  # the package onnx comes with the extra 'build'

RED, GREEN, WHITE = (250, 10, 10), (10, 250, 10), (254, 254, 254)
NAMES = ["red", "green", "blue", "yellow", "white", "black"]
FLOAT, INT64 = 1, 7  # onnx.TensorProto


def save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: dict[str, Any]) -> None:
    from onnx import helper, numpy_helper, save_model

    values = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tower", inputs, outputs, values)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def unit(source: str, out: str) -> list[Any]:
    from onnx import helper

    return [helper.make_node("LpNormalization", [source], [out], axis=1, p=2)]


def image_tower(path: Path, colours: Any) -> None:
    """Missing red, green and blue of the average pixel, a constant, then unit length."""
    from onnx import helper

    std, white = np.array([colours.STD], np.float32), 1 - np.array([colours.MEAN], np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["pixel_values", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "std"], ["scaled"]),
        helper.make_node("Sub", ["white", "scaled"], ["ink"]),
        helper.make_node("Pad", ["ink", "pads", "constant"], ["lifted"]),
        *unit("lifted", "image_embeds"),
    ]
    pads = {"axes": np.array([2, 3]), "std": std, "white": white, "pads": np.array([0, 0, 0, 1]), "constant": np.float32(0.3)}
    side = colours.SIDE
    pixels = helper.make_tensor_value_info("pixel_values", FLOAT, ["batch", 3, side, side])
    save(path, nodes, [pixels], [helper.make_tensor_value_info("image_embeds", FLOAT, ["batch", 4])], pads)


def text_tower(path: Path, colours: Any, words: dict[str, int]) -> None:
    """Sum over the tokens of a table that knows the colour words only, and the constant."""
    from onnx import helper

    table = np.zeros((len(words), 4), np.float32)
    for i, name in enumerate(NAMES):
        table[words[f"{name}</w>"], :3] = colours.INK[i]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "axes"], ["ink"], keepdims=0),
        helper.make_node("Add", ["ink", "constant"], ["lifted"]),
        *unit("lifted", "text_embeds"),
    ]
    constants = {"table": table, "axes": np.array([1]), "constant": np.array([[0, 0, 0, 0.3]], np.float32)}
    ids = helper.make_tensor_value_info("input_ids", INT64, ["batch", colours.CONTEXT])
    save(path, nodes, [ids], [helper.make_tensor_value_info("text_embeds", FLOAT, ["batch", 4])], constants)


def write_tokenizer(folder: Path) -> dict[str, int]:
    """A byte-pair vocabulary in which each colour word is one token."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens, merges = [*letters, *(f"{c}</w>" for c in letters)], []
    for name in NAMES:
        parts = [*name[:-1], f"{name[-1]}</w>"]
        while len(parts) > 1:
            merges.append(f"{parts[0]} {parts[1]}")
            parts[:2] = [parts[0] + parts[1]]
            tokens.append(parts[0])
    words = {token: i for i, token in enumerate(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))}
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(dict.fromkeys(merges)) + "\n")
    return words


@pytest.fixture
def folder(clip_folder: Path, colours: Any) -> Path:
    image_tower(clip_folder / "image.onnx", colours)
    text_tower(clip_folder / "text.onnx", colours, write_tokenizer(clip_folder))
    return clip_folder


def gate_of(folder: Path, policy: Policy, colours: Any) -> Gate:
    """The gate of a bundle that lists the CLIP folder's files as they are."""
    return gate_for_bundle(policy, open_bundle(colours.write_bundle(folder.parent)))


@pytest.mark.parametrize("vocabulary", [NAMES, [], None])
def test_a_bundle_on_disk_becomes_a_gate(
    folder: Path, colour_policy: Policy, colours: Any, tmp_path_factory: pytest.TempPathFactory, vocabulary: list[str] | None
) -> None:
    (folder.parent / "names.txt").write_text("\n".join([*NAMES, "", " "]))
    bundle = open_bundle(colours.write_bundle(folder.parent))
    gate = gate_for_bundle(colour_policy, bundle, vocabulary, tmp_path_factory.mktemp("cache"))
    blocked = gate.check_image(colours.picture(RED, 48, 20))
    assert (blocked.action, blocked.reasons[0].evidence) == (Action.BLOCK, "red")
    assert gate.check_image(colours.picture(WHITE if vocabulary == [] else GREEN)).action is Action.ALLOW


def test_a_bundle_without_clip_needs_a_policy_without_image_checks(folder: Path, colour_policy: Policy, colours: Any) -> None:
    root = colours.write_bundle(folder.parent)
    manifest = json.loads((root / "bundle.json").read_text())
    (root / "bundle.json").write_text(json.dumps(manifest | {"components": {}}))
    off = parse_policy(colours.POLICY.replace("image_checks = true", "image_checks = false").encode(), "off.toml")
    assert gate_for_bundle(off, open_bundle(root)).check_image(colours.picture(RED)).allowed
    with pytest.raises(SafetyUnavailable, match="no image filter"):
        gate_for_bundle(colour_policy, open_bundle(root))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_a_clip_file_dropped_in_is_refused(folder: Path, colour_policy: Policy, colours: Any, name: str) -> None:
    root = colours.write_bundle(folder.parent)
    (folder / name).write_text("{}")
    with pytest.raises(BundleError, match=f"clip/{name}"):
        gate_for_bundle(colour_policy, open_bundle(root))


@pytest.mark.parametrize("name", ["clip/golden.json", "clip/preprocess.json", "clip/vocab.json", "clip/merges.txt"])
def test_a_clip_file_that_the_bundle_does_not_list_is_refused(folder: Path, colour_policy: Policy, colours: Any, name: str) -> None:
    root = colours.write_bundle(folder.parent)
    manifest = json.loads((root / "bundle.json").read_text())
    del manifest["files"][name]
    (root / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=name):
        gate_for_bundle(colour_policy, open_bundle(root))


def test_graphs_are_those_that_the_bundle_names(folder: Path, colour_policy: Policy, colours: Any) -> None:
    root = colours.write_bundle(folder.parent)
    manifest = json.loads((root / "bundle.json").read_text())
    manifest["files"]["towers/text.onnx"] = manifest["files"].pop("clip/text.onnx")
    manifest["components"]["clip_text"]["graph"] = "towers/text.onnx"
    (root / "bundle.json").write_text(json.dumps(manifest))
    (root / "towers").mkdir()
    (folder / "text.onnx").rename(root / "towers" / "text.onnx")
    (folder / "text.onnx").write_bytes(b"not listed, hence not read")
    assert gate_for_bundle(colour_policy, open_bundle(root)).check_image(colours.picture(RED)).action is Action.BLOCK


def test_a_graph_with_other_weights_does_not_score(
    folder: Path, colour_policy: Policy, colours: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = json.loads((folder / "vocab.json").read_text())
    monkeypatch.setattr(colours, "INK", colours.INK[::-1])
    text_tower(folder / "text.onnx", colours, words)
    with pytest.raises(SafetyUnavailable, match="text tower does not give its golden embedding"):
        gate_of(folder, colour_policy, colours)


@pytest.mark.parametrize("name", ["image.onnx", "text.onnx", "vocab.json", "merges.txt", "preprocess.json", "golden.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "noise"])
def test_every_file_is_needed_whole(folder: Path, colour_policy: Policy, colours: Any, name: str, damage: str) -> None:
    file = folder / name
    data = file.read_bytes()
    if damage == "missing" and name.endswith(".onnx"):
        file.write_bytes(b"")  # a graph that is not there is refused when the bundle is opened
    elif damage == "missing":
        file.unlink()
    else:
        file.write_bytes(data[: len(data) // 3] if damage == "truncated" else bytes(range(256)) * 4)
    with pytest.raises(SafetyUnavailable):
        gate_of(folder, colour_policy, colours)
