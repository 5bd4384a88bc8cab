"""The whole image check from a bundle on disk: two tiny ONNX towers, ONNX Runtime, the CLIP tokenizer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from platemark.errors import SafetyUnavailable
from platemark.runtime.bundle import open_bundle
from platemark.safety import assemble
from platemark.safety.assemble import gate_for_bundle
from platemark.safety.decision import Action
from platemark.safety.gate import Gate
from platemark.safety.policy import load_policy
from platemark.safety.policy_model import Policy
from platemark.safety.signals import Observation, Signal

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


@dataclass
class Silent:
    """A built-in detector that finds nothing: these tests are about the CLIP."""

    name: str
    categories: tuple[str, ...]
    model_sha256: str = "ab" * 32

    def observe(self, image: Any) -> Observation:
        faces = () if self.name == "face" else None
        signals = tuple(Signal(name, "test", 0.0) for name in self.categories if name != "face")
        return Observation(self.name, self.model_sha256, signals, 0.1, faces)


@pytest.fixture(autouse=True)
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"nsfw": Silent("nsfw", ("sexual",)), "face": Silent("face", ("face",))}
    monkeypatch.setattr(assemble, "_other", lambda name, bundle, threads: made.get(name))


def gate_of(folder: Path, policy: Policy, colours: Any) -> Gate:
    """The gate of a bundle that lists the CLIP folder's files as they are."""
    return gate_for_bundle(policy, open_bundle(colours.write_bundle(folder.parent)))


@pytest.mark.parametrize("vocabulary", [NAMES, [], None])
def test_a_bundle_on_disk_becomes_a_gate(
    folder: Path, colour_policy: Policy, colours: Any, tmp_path_factory: pytest.TempPathFactory, vocabulary: list[str] | None
) -> None:
    (folder.parent / "names.txt").write_text("\n".join([*NAMES, "", " "]))
    bundle = open_bundle(colours.write_bundle(folder.parent))
    gate = gate_for_bundle(colour_policy, bundle, vocabulary=vocabulary, cache_folder=tmp_path_factory.mktemp("cache"))
    blocked = gate.check_output_image(colours.picture(RED, 48, 20))
    assert (blocked.action, blocked.reasons[0].evidence) == (Action.BLOCK, "red")
    assert gate.check_output_image(colours.picture(WHITE if vocabulary == [] else GREEN)).action is Action.ALLOW


def without_clip(root: Path) -> Path:
    manifest = json.loads((root / "bundle.json").read_text())
    (root / "bundle.json").write_text(json.dumps(manifest | {"components": {}}))
    return root


def required(policy: Policy) -> Policy:
    return policy.model_copy(update={"image_filter": "required"})


def test_a_bundle_without_clip_says_what_it_does_not_check_or_refuses(folder: Path, colour_policy: Policy, colours: Any) -> None:
    bundle = open_bundle(without_clip(colours.write_bundle(folder.parent)))
    decision = gate_for_bundle(colour_policy, bundle).check_output_image(colours.picture(RED))
    assert (decision.allowed, decision.unchecked) == (True, ("alarm", "caution"))
    for policy in (required(colour_policy), load_policy("strict")):
        with pytest.raises(SafetyUnavailable, match="requires an image filter") as caught:
            gate_for_bundle(policy, bundle)
        assert "clip/" in caught.value.remedy


@pytest.mark.parametrize(("domain", "drawn", "works"), [
    ("general", "general", True), ("general", "manga", True), ("emoji", "general", False), ("manga", "manga", False),
])  # fmt: skip
def test_the_filter_must_know_what_the_bundle_draws(
    folder: Path, colour_policy: Policy, colours: Any, domain: str, drawn: str, works: bool
) -> None:
    """A CLIP of a narrow domain does not vouch for a checkpoint, nor does the checkpoint's own word for what it draws."""
    colours.write_clip_folder(folder, domain=domain)
    (folder.parent / "platemark.json").write_text(json.dumps({"domain": drawn}))
    bundle = open_bundle(colours.write_bundle(folder.parent))
    if works:
        assert gate_for_bundle(required(colour_policy), bundle).check_output_image(colours.picture(RED)).action is Action.BLOCK
    else:
        with pytest.raises(SafetyUnavailable, match="requires an image filter"):
            gate_for_bundle(required(colour_policy), bundle)
    lax = gate_for_bundle(colour_policy, bundle).check_output_image(colours.picture(RED))
    assert lax.unchecked == (("alarm", "caution") if domain == "emoji" else ())
    if drawn == domain == "manga":  # the embedded model's own word is enough: it is known
        assert gate_for_bundle(required(colour_policy), bundle, built_in=True).detectors["clip"]


def exported(folder: Path) -> Path:
    """Makes the CLIP folder one as `export_clip` writes it: with `clip.json`, which lists every file."""
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.name != "clip.json"}
    parity = {"reference": "torch", "backend": "onnxruntime", "precision": "fp32", "bound_cosine": 0.999, "cosines": [1.0, 1.0]}
    manifest = {"format_version": 1, "name": "colours", "created_with": "test", "source_sha256": "ab" * 32, "files": files}
    (folder / "clip.json").write_text(json.dumps(manifest | {"image": parity, "text": parity}))
    return folder


def naming(colours: Any, file: Path, path: str, more: str = "") -> Policy:
    file.write_text(colours.POLICY.replace('"available"', '"required"') + f'[[detectors]]\nname = "clip"\npath = "{path}"\n{more}')
    return load_policy(file)


def test_a_policy_may_name_an_exported_clip(folder: Path, colours: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """For a bundle that brings none; the path counts from the policy's file, and the model can be pinned."""
    place = tmp_path_factory.mktemp("policies")
    exported(folder).rename(place / "colours")
    bundle = open_bundle(without_clip(colours.write_bundle(folder.parent)))
    gate = gate_for_bundle(naming(colours, place / "p.toml", "colours"), bundle)
    decision = gate.check_output_image(colours.picture(RED))
    assert (decision.action, decision.reasons[0].evidence, decision.unchecked) == (Action.BLOCK, "red", ())
    pinned = naming(colours, place / "q.toml", str(place / "colours"), f'sha256 = "{gate.detectors["clip"]}"\n')
    assert gate_for_bundle(pinned, bundle).detectors["clip"] == gate.detectors["clip"]
    other = naming(colours, place / "r.toml", "colours", f'sha256 = "{"ab" * 32}"\n')
    with pytest.raises(SafetyUnavailable, match="the model of the detector 'clip' is not the one"):
        gate_for_bundle(other, bundle)


@pytest.mark.parametrize("damage", ["no folder", "no clip.json", "a changed graph", "a stray file", "another domain"])
def test_an_exported_clip_that_is_not_whole_refuses(folder: Path, colours: Any, tmp_path_factory: Any, damage: str) -> None:
    place: Path = tmp_path_factory.mktemp("policies")
    if damage == "another domain":
        colours.write_clip_folder(folder, domain="manga")
    exported(folder).rename(place / "colours")
    bundle = open_bundle(without_clip(colours.write_bundle(folder.parent)))
    if damage == "no clip.json":
        (place / "colours" / "clip.json").unlink()
    elif damage == "a changed graph":
        with (place / "colours" / "image.onnx").open("ab") as file:
            file.write(b"x")
    elif damage == "a stray file":
        (place / "colours" / "tokenizer.json").write_text("{}")
    with pytest.raises(SafetyUnavailable):
        gate_for_bundle(naming(colours, place / "p.toml", "nowhere" if damage == "no folder" else "colours"), bundle)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_a_clip_file_dropped_in_is_refused(folder: Path, colour_policy: Policy, colours: Any, name: str) -> None:
    root = colours.write_bundle(folder.parent)
    (folder / name).write_text("{}")
    with pytest.raises(SafetyUnavailable, match=f"clip/{name}"):
        gate_for_bundle(colour_policy, open_bundle(root))


@pytest.mark.parametrize("name", ["clip/golden.json", "clip/preprocess.json", "clip/vocab.json", "clip/merges.txt"])
def test_a_clip_file_that_the_bundle_does_not_list_is_refused(folder: Path, colour_policy: Policy, colours: Any, name: str) -> None:
    root = colours.write_bundle(folder.parent)
    manifest = json.loads((root / "bundle.json").read_text())
    del manifest["files"][name]
    (root / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(SafetyUnavailable, match=name):
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
    assert gate_for_bundle(colour_policy, open_bundle(root)).check_output_image(colours.picture(RED)).action is Action.BLOCK


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
