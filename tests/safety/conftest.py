"""A CLIP that sees average colour only, so that colours play the concepts."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from platemark.runtime.engine import TensorSpec
from platemark.safety.policy import Policy, parse_policy

Array = NDArray[Any]
SIDE, CONTEXT = 16, 4
MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.5, 0.25)
WORDS = ("red", "green", "blue", "yellow", "white", "black")
INK = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 1], [0, 0, 0], [1, 1, 1]], np.float32)  # how much of R, G, B is missing

POLICY = """
version = 2
id = "colours"
fail = "closed"
image_filter = "available"
provenance = {require_watermark = true}
regenerate = {max = 1}
audit = {enabled = true}
people = {real_face_input = "consent"}
[categories.alarm]
prompt = {action = "block", threshold = 0.5, terms = ["red"]}
output_image = {action = "block", threshold = 0.5, concepts = ["red"]}
[categories.caution]
output_image = {action = "blur", threshold = 0.5, concepts = ["yellow"]}
"""


def colour_tokens(texts: list[str]) -> NDArray[np.int64]:
    """The number of the last colour word, or of white, in the first place of each row."""
    known = [[WORDS.index(word) for word in text.lower().split() if word in WORDS] or [4] for text in texts]
    ids = np.zeros((len(texts), CONTEXT), np.int64)
    ids[:, 0] = [row[-1] for row in known]
    return ids


def _normalise(rows: Array) -> Array:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def _lift(ink: Array) -> Array:
    """Missing colour and a constant, so that white has a direction too."""
    return _normalise(np.concatenate([ink, np.full((len(ink), 1), 0.3, np.float32)], axis=1))


@dataclass
class ColourTower:
    """An `Engine`. `spoil` changes the output, as a broken network would."""

    kind: str
    spoil: Callable[[Array], Any] = field(default=lambda rows: rows)
    calls: int = 0

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return ()

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return ()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.calls += 1
        if self.kind == "image":
            values = inputs["pixel_values"]
            rgb = values.mean(axis=(2, 3)) * np.array(STD, np.float32) + np.array(MEAN, np.float32)
            return {"image_embeds": self.spoil(_lift(1 - rgb))}
        return {"text_embeds": self.spoil(_lift(INK[inputs["input_ids"][:, 0]]))}


def write_clip_folder(folder: Path, **changes: Any) -> Path:
    """`preprocess.json` and `golden.json` of the colour CLIP; `changes` replace preprocess keys."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"image_size": SIDE, "mean": MEAN, "std": STD, "context_length": CONTEXT, "logit_scale": 40.0} | changes
    (folder / "preprocess.json").write_text(json.dumps(preprocess))
    noise = np.random.Generator(np.random.PCG64(7)).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    image = _lift(1 - noise.astype(np.float32).mean(axis=(0, 1), keepdims=True)[0] / 255)[0]
    text = _lift(INK[:1])[0]
    golden = {"image": {"seed": 7, "embedding": image.tolist()}, "text": {"prompt": "red", "embedding": text.tolist()}}
    (folder / "golden.json").write_text(json.dumps(golden))
    return folder


def write_bundle(root: Path) -> Path:
    """Makes `root`, which holds a CLIP folder, a bundle of nothing else: a manifest that lists every file there is now."""
    comparisons = [{"shapes": {"x": [n]}, "max_abs_error": 0.0, "rel_l2_error": 0.0, "cosine": 1.0} for n in (1, 2)]
    parity = {"reference": "torch", "backend": "onnxruntime", "bound_rel_l2": 1e-3, "comparisons": comparisons}
    graphs = {f"clip_{tower}": f"clip/{tower}.onnx" for tower in ("image", "text")}
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.name != "bundle.json")
    end = {"prompt": "cat", "seed": 0, "num_inference_steps": 4, "guidance_scale": 3.0, "height": 64, "width": 64}
    manifest = {
        "format_version": 1,
        "name": "colours",
        "family": "sd",
        "created_with": "platemark test",
        "source": {"checkpoint": "none", "weights": {}},
        "files": {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        "components": {
            name: {"graph": graph, "weights": [], "precision": "fp32", "opset": 18, "parity": parity} for name, graph in graphs.items()
        },
        "end_to_end": {**end, "reference": "torch", "psnr": 80.0, "bound_psnr": 60.0},
        "native_size": [64, 64],
        "output_size": [64, 64],
        "latent_channels": 4,
        "vae_scale_factor": 8,
        "scaling_factor": 1.0,
        "shift_factor": 0.0,
        "max_tokens": 12,
        "default_steps": 4,
        "default_guidance": 3.0,
    }
    (root / "bundle.json").write_text(json.dumps(manifest))
    return root


def picture(colour: tuple[int, int, int], height: int = 32, width: int = 32) -> NDArray[np.uint8]:
    """A picture of one colour with a faint texture (a flat one is a render error)."""
    image = np.empty((height, width, 3), np.uint8)
    image[:] = colour
    image[::2, ::2] ^= 4
    return image


@pytest.fixture
def colour_policy() -> Policy:
    return parse_policy(POLICY.encode(), "colours.toml")


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    return write_clip_folder(tmp_path / "clip")


@pytest.fixture
def colours() -> Any:
    """This module: its helpers for tests that build broken variants."""
    return sys.modules[__name__]
