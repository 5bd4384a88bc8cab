"""What a reader of the exported CLIP towers needs beside the graphs: preprocessing, and golden embeddings that prove loaded weights.

`export_clip` makes a whole folder of any open_clip model, for pictures of bundles that bring none; a bundle's own CLIP is exported by
`build` and gets its two JSON files from here. Knows nothing about policies: those who check pictures read the files written here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import open_clip  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from torch import nn

from platemark import __version__
from platemark.errors import CheckpointError, ParityError
from platemark.optimize.checkpoint import open_clip_folder
from platemark.optimize.clip_quantize import quantized_image_tower, text_weights
from platemark.optimize.clip_source import WEIGHTS, stage_clip
from platemark.optimize.components import export_linked
from platemark.optimize.modules import ClipImage, ClipText, load_part, quiet
from platemark.optimize.parity import make_cases
from platemark.optimize.parts import Part
from platemark.optimize.pictures import drawn, noise, normalised
from platemark.optimize.specs import clip_specs
from platemark.optimize.staging import publish, stage_for, write_file
from platemark.optimize.weights import file_sha256
from platemark.runtime.engine import Engine

Precision = Literal["fp32", "int8"]
MANIFEST = "clip.json"
GOLDEN_SEED = 20240
GOLDEN_PROMPT = "a red apple"
BOUND_COSINE: dict[Precision, float] = {"fp32": 0.9999, "int8": 0.99}  # the least that a tower's embedding may have with its reference
_PICTURES = 5
_PROMPTS = (GOLDEN_PROMPT, "a photo of a dog", "Two people, walking in the rain.", "x", "a 1950s city street at night, oil painting")
_DIGITS = 6
_REMEDY = "export with precision fp32, or report it: this engine computes wrongly"


def export_clip(
    source: str,
    out: Path,
    *,
    weights: Path | None = None,
    precision: Precision = "fp32",
    domain: str | None = None,
    replace: bool = False,
    on_progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Exports both towers of an open_clip model into the folder `out`, and returns its manifest, `clip.json`.

    `source`, `weights`, `domain`: see `clip_source.stage_clip`. `int8` quantises the image tower's matrices (dynamically, one scale a
    channel); the text tower, which runs once a policy, stays as it is. Towers run as exported are compared with torch, and every file is
    listed with its sha256. `out` appears whole or not at all; `replace` lets an older one go.

    Raises `InputError`, `CheckpointError`, `EngineError` (a tower cannot be exported) and `ParityError` (one computes something else).
    """
    say = on_progress or (lambda note: None)
    with stage_for(out.resolve(), in_place=False, replace=replace, manifest=MANIFEST) as stage:
        sha256 = stage_clip(source, stage, weights=weights, domain=domain)
        part = open_clip_folder(stage)
        net = load_part(part)
        preprocess = preprocessing(net, part)
        write_file(stage / "preprocess.json", _json(preprocess))
        write_file(stage / "golden.json", _json(golden(net, part, preprocess)))
        towers = _export(net, part, precision, say)
        say("comparing")
        parity = {"image": _compare_images(towers[0], net, preprocess, precision), "text": _compare_texts(towers[1], net, part, preprocess)}
        files = {path.name: file_sha256(path) for path in sorted(stage.iterdir())}
        manifest = {"format_version": 1, "name": _name(source), "created_with": f"platemark {__version__}", "source_sha256": sha256}
        manifest |= {"files": files, **parity}
        write_file(stage / MANIFEST, _json(manifest))
        publish(stage, out.resolve())
    return manifest


def _name(source: str) -> str:
    return source if not Path(source.removeprefix("local-dir:")).is_dir() else Path(source.removeprefix("local-dir:")).resolve().name


def _export(net: nn.Module, part: Part, precision: Precision, say: Callable[[str], None]) -> tuple[Path, Path]:
    """Both graphs beside the weights that they refer to. Under int8 the image tower's float weights leave the folder."""
    image, text = clip_specs(part.config["model_cfg"])
    folder, paths = part.folder, (part.folder / "image.onnx", part.folder / "text.onnx")
    say("image tower: exporting")
    wrapped: tuple[nn.Module, nn.Module] = ClipImage(net).eval(), ClipText(net).eval()
    if precision == "int8":
        write_file(paths[0], quantized_image_tower(image, wrapped[0]))
        part = text_weights(part)
    else:
        write_file(paths[0], export_linked(image, wrapped[0], part, make_cases(image)[0]))
    say("text tower: exporting")
    write_file(paths[1], export_linked(text, wrapped[1], part, make_cases(text)[0]))
    if precision == "int8":
        (folder / WEIGHTS).unlink()
    return paths


def _compare_images(path: Path, net: nn.Module, preprocess: Mapping[str, Any], precision: Precision) -> dict[str, Any]:
    side = preprocess["image_size"]
    inputs = [normalise(picture, preprocess) for picture in (golden_pixels(side), *drawn(side, _PICTURES))]
    engine = _compiled(path)
    with torch.no_grad():
        wanted = [ClipImage(net)(torch.from_numpy(values))[0].numpy() for values in inputs]
    return _parity("image", precision, [engine.run({"pixel_values": values})["image_embeds"][0] for values in inputs], wanted)


def _compare_texts(path: Path, net: nn.Module, part: Part, preprocess: Mapping[str, Any]) -> dict[str, Any]:
    """Tokenised as the runtime does on one side, as open_clip does on the other: a tokenizer that differs shows."""
    from platemark.runtime.tokenizer import Tokenizer

    ids = Tokenizer.load(part.folder, preprocess["context_length"]).encode_batch(_PROMPTS)
    with torch.no_grad():
        wanted = [ClipText(net)(_tokens(part, prompt))[0].numpy() for prompt in _PROMPTS]
    return _parity("text", "fp32", list(_compiled(path).run({"input_ids": ids})["text_embeds"]), wanted)


def _compiled(path: Path) -> Engine:
    from platemark.runtime.backends.onnxruntime import compile_graph

    return compile_graph(path)


def _parity(tower: str, precision: Precision, got: list[NDArray[np.float32]], wanted: list[NDArray[np.float32]]) -> dict[str, Any]:
    """A `clip.json` parity record. Raises `ParityError` where a cosine is under its bound, or is none."""
    from platemark.runtime.backends.onnxruntime import label

    cosines = [float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) for a, b in zip(got, wanted, strict=True)]
    bound = BOUND_COSINE[precision]
    if not all(cosine >= bound for cosine in cosines):
        raise ParityError(f"the CLIP {tower} tower ({precision}) differs from its reference: cosine {min(cosines):.4f} < {bound}", _REMEDY)
    record = {"reference": f"torch {torch.__version__} fp32", "backend": label(), "precision": precision, "bound_cosine": bound}
    return record | {"cosines": [min(1.0, round(cosine, _DIGITS)) for cosine in cosines]}


def preprocessing(net: nn.Module, part: Part) -> dict[str, Any]:
    """`preprocess.json`: image_size (pixels, square), mean and std (RGB, of values in [0, 1]), context_length (tokens), how open_clip
    brings a picture to that size (`resize_mode`, `interpolation`), the factor on cosines that the model was trained with, at most 100
    (`logit_scale`; Radford et al. 2021, section 2.5), and what pictures it knows (`domain`).
    """
    config: Mapping[str, Any] = open_clip.get_model_preprocess_cfg(net)
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise CheckpointError(f"clip: the image tower reads {height}×{width}", "use an open_clip model with a square image size")
    return {
        "image_size": int(height),
        "mean": [float(v) for v in config["mean"]],
        "std": [float(v) for v in config["std"]],
        "context_length": int(part.config["model_cfg"]["text_cfg"].get("context_length", 77)),
        "resize_mode": str(config["resize_mode"]),
        "interpolation": str(config["interpolation"]),
        "logit_scale": min(100.0, float(net.get_parameter("logit_scale").exp())),
        "domain": str(part.config.get("domain", "general")),
    }


def golden_pixels(size: int, seed: int = GOLDEN_SEED) -> NDArray[np.uint8]:
    """The golden picture: uint8 RGB (size, size, 3) noise from numpy's PCG64."""
    return noise(size, seed)


def normalise(pixels: NDArray[np.uint8], preprocess: Mapping[str, Any]) -> NDArray[np.float32]:
    """uint8 (S, S, 3) → float32 (1, 3, S, S): (v / 255 − mean) / std."""
    return normalised(pixels, preprocess["mean"], preprocess["std"])


def golden(net: nn.Module, part: Part, preprocess: Mapping[str, Any]) -> dict[str, Any]:
    """`golden.json`: `{"image": {"seed", "embedding"}, "text": {"prompt", "embedding"}}`, embeddings of length 1 by the torch towers."""
    pixels = normalise(golden_pixels(preprocess["image_size"]), preprocess)
    with torch.no_grad():
        image = ClipImage(net)(torch.from_numpy(pixels))[0]
        text = ClipText(net)(_tokens(part, GOLDEN_PROMPT))[0]
    return {
        "image": {"seed": GOLDEN_SEED, "embedding": [round(float(v), _DIGITS) for v in image]},
        "text": {"prompt": GOLDEN_PROMPT, "embedding": [round(float(v), _DIGITS) for v in text]},
    }


def _tokens(part: Part, prompt: str) -> torch.Tensor:
    """Token ids (1, context_length) by the model's own tokenizer, from its folder."""
    try:
        with quiet():
            ids: torch.Tensor = open_clip.get_tokenizer(f"local-dir:{part.folder}")([prompt])
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError("clip: the tokenizer files cannot be read", "save the model's tokenizer into the clip folder") from error
    return ids


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
