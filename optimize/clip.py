"""What a reader of the exported CLIP towers needs beside the graphs: preprocessing, and golden embeddings that prove loaded weights.

Knows nothing about policies: those who check pictures read the two files written here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import open_clip  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from torch import nn

from platemark.errors import CheckpointError
from platemark.optimize.checkpoint import Part
from platemark.optimize.modules import ClipImage, ClipText, quiet

GOLDEN_SEED = 20240
GOLDEN_PROMPT = "a red apple"
_DIGITS = 6


def preprocessing(net: nn.Module, part: Part) -> dict[str, Any]:
    """`preprocess.json`: image_size (pixels, square), mean and std (RGB, of values in [0, 1]), context_length (tokens), how open_clip
    brings a picture to that size (`resize_mode`, `interpolation`), and the factor on cosines that the model was trained with, at most
    100 (`logit_scale`; Radford et al. 2021, section 2.5).
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
    }


def golden_pixels(size: int, seed: int = GOLDEN_SEED) -> NDArray[np.uint8]:
    """The golden picture: uint8 RGB (size, size, 3) noise from numpy's PCG64."""
    return np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (size, size, 3), dtype=np.uint8)


def normalise(pixels: NDArray[np.uint8], preprocess: Mapping[str, Any]) -> NDArray[np.float32]:
    """uint8 (S, S, 3) → float32 (1, 3, S, S): (v / 255 − mean) / std."""
    mean, std = (np.asarray(preprocess[key], np.float32) for key in ("mean", "std"))
    values = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])


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
