"""What a reader of the exported safety checker needs beside its graph: vectors, thresholds, preprocessing, a golden embedding.

Stable Diffusion's own checker (diffusers, `StableDiffusionSafetyChecker`): the graph is its CLIP vision tower and projection; whoever
judges pictures computes the rule from the file written here. Knows nothing about policies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from platemark.errors import CheckpointError
from platemark.optimize.checkpoint import FEATURES
from platemark.optimize.modules import CheckerTower
from platemark.optimize.pictures import noise, normalised
from platemark.optimize.source_files import read_json

FILE = "checker.json"
GOLDEN_SEED = 20240
_RESAVE = "download the checkpoint again, or leave its safety_checker/ folder out"
_KERNELS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers, as feature extractors store them
_DIGITS = 6


def checker_file(net: nn.Module, root: Path) -> dict[str, Any]:
    """`checker.json` of the loaded checker (float32) of the checkpoint `root`. Vectors and thresholds are exactly the checkpoint's.

    Raises `CheckpointError` where vectors were never trained or loaded (they would just score), or the feature extractor is another.
    """
    preprocess = preprocessing(read_json(root / FEATURES, _RESAVE))
    rule = {
        "special_care": _rows(net, "special_care_embeds"),
        "special_care_thresholds": _rows(net, "special_care_embeds_weights"),
        "concepts": _rows(net, "concept_embeds"),
        "concept_thresholds": _rows(net, "concept_embeds_weights"),
    }
    _check_rule(rule)
    pixels = normalised(noise(preprocess["image_size"], GOLDEN_SEED), preprocess["mean"], preprocess["std"], preprocess["rescale"])
    with torch.no_grad():
        golden = CheckerTower(net)(torch.from_numpy(pixels))[0]
    return {
        "format_version": 1,
        "preprocess": preprocess,
        **rule,
        "golden_seed": GOLDEN_SEED,
        "golden_embedding": [round(float(v), _DIGITS) for v in golden],
    }


def preprocessing(config: dict[str, Any]) -> dict[str, Any]:
    """The feature extractor's settings under our names. Raises `CheckpointError` where it does anything else than the checker's does."""
    try:
        steps = {key: config.get(key, True) for key in ("do_resize", "do_center_crop", "do_normalize", "do_rescale")}
        found = {
            "image_size": _side(config["crop_size"]),
            "resize": _side(config["size"]),
            "interpolation": _KERNELS[config.get("resample", 3)],
            "rescale": float(config.get("rescale_factor", 1 / 255)),
            "mean": [float(v) for v in config["image_mean"]],
            "std": [float(v) for v in config["image_std"]],
        }
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{FEATURES} is not that of a CLIP image processor", _RESAVE) from error
    if not all(steps.values()):
        raise CheckpointError(f"{FEATURES} leaves a step out", _RESAVE)
    return found


def _side(value: Any) -> int:
    """A number, `{"shortest_edge": n}`, or `{"height": n, "width": n}`. Raises `ValueError` for another form."""
    sides = set(value.values()) if isinstance(value, dict) else {value}
    if len(sides) != 1 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError("no square")
    return int(sides.pop())


def _rows(net: nn.Module, name: str) -> Any:
    return net.get_parameter(name).detach().float().tolist()


def _check_rule(rule: dict[str, Any]) -> None:
    for what in ("special_care", "concepts"):
        rows = np.array(rule[what], np.float32)
        if not np.isfinite(rows).all() or (rows.std(axis=1) == 0).any() or len(np.unique(rows, axis=0)) < len(rows):
            raise CheckpointError(f"safety_checker: its {what} vectors were never loaded", _RESAVE)
