"""The engine contract of every component of a checkpoint: names, types and shapes of inputs and outputs, by the configs alone.

Knows nothing about graphs or torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from platemark.optimize.checkpoint import Checkpoint, latent_size
from platemark.optimize.fit import state_width
from platemark.optimize.parts import CHECKER
from platemark.runtime.control import CONDITION, RESIDUAL, SCALE
from platemark.runtime.engine import TensorSpec

FLOAT, INT = np.dtype(np.float32), np.dtype(np.int64)
Shape = tuple[int | str, ...]
Ports = tuple[TensorSpec, ...]
_SIZES = 6


@dataclass(frozen=True)
class Spec:
    """The engine contract of one component.

    `limits` gives (step, usual value) of each free dim but the batch: sizes are multiples of the step. Token ids lie below `vocabulary`.
    """

    component: str
    part: str
    graph: str  # POSIX path inside the bundle
    inputs: Ports
    outputs: Ports
    limits: dict[str, tuple[int, int]]
    vocabulary: int = 0


def specs(checkpoint: Checkpoint) -> dict[str, Spec]:
    """The components of a checkpoint, in build order."""
    found = [*_texts(checkpoint), _unet(checkpoint)]
    if "controlnet" in checkpoint.parts:
        found.append(_controlnet(checkpoint))
    found += _vae(checkpoint)
    if "clip" in checkpoint.parts:
        found += clip_specs(checkpoint.parts["clip"].config["model_cfg"])
    if CHECKER in checkpoint.parts:
        found.append(_checker_spec(checkpoint.parts[CHECKER].config))
    return {spec.component: spec for spec in found}


def _texts(checkpoint: Checkpoint) -> Iterator[Spec]:
    ids = TensorSpec("input_ids", INT, ("batch", "tokens"))
    for text in checkpoint.family.texts:
        config = checkpoint.parts[text.component].config
        outputs: Ports = (TensorSpec("last_hidden_state", FLOAT, ("batch", "tokens", int(config["hidden_size"]))),)
        if text.pooled:
            outputs += (TensorSpec("text_embeds", FLOAT, ("batch", int(config.get("projection_dim", 512)))),)
        limits = {"tokens": (1, checkpoint.max_tokens)}
        yield Spec(text.component, text.component, f"{text.component}/model.onnx", (ids,), outputs, limits, int(config["vocab_size"]))


def _unet(checkpoint: Checkpoint) -> Spec:
    config, latents = checkpoint.parts["unet"].config, int(checkpoint.parts["vae"].config["latent_channels"])
    sample = TensorSpec("sample", FLOAT, ("batch", int(config.get("in_channels", latents)), "height", "width"))
    inputs = (sample, *_conditions(checkpoint))
    if width := config.get("time_cond_proj_dim"):
        inputs += (TensorSpec("timestep_cond", FLOAT, ("batch", int(width))),)
    if "controlnet" in checkpoint.parts:
        inputs += _residuals(config)
    output = TensorSpec("out_sample", FLOAT, ("batch", latents, "height", "width"))
    return Spec("unet", "unet", "unet/model.onnx", inputs, (output,), _limits(checkpoint))


def _controlnet(checkpoint: Checkpoint) -> Spec:
    """Sees what the UNet sees, and a picture; `conditioning_scale` weighs its answers."""
    factor, channels = checkpoint.vae_scale_factor, int(checkpoint.parts["vae"].config["latent_channels"])
    inputs = (
        TensorSpec("sample", FLOAT, ("batch", channels, "height", "width")),
        *_conditions(checkpoint),
        TensorSpec(CONDITION, FLOAT, ("batch", 3, f"{factor}*height", f"{factor}*width")),
        TensorSpec(SCALE, FLOAT, ("batch",)),
    )
    outputs = _residuals(checkpoint.parts["unet"].config)
    return Spec("controlnet", "controlnet", "controlnet/model.onnx", inputs, outputs, _limits(checkpoint))


def _conditions(checkpoint: Checkpoint) -> Ports:
    """Time, text, and what the family adds to them."""
    width = state_width(checkpoint.parts["unet"].config)
    found: Ports = (TensorSpec("timestep", FLOAT, ("batch",)), TensorSpec("encoder_hidden_states", FLOAT, ("batch", "tokens", width)))
    if checkpoint.family.reads_sizes:
        pooled = int(checkpoint.parts[checkpoint.family.texts[-1].component].config.get("projection_dim", 512))
        found += (TensorSpec("text_embeds", FLOAT, ("batch", pooled)), TensorSpec("time_ids", FLOAT, ("batch", _SIZES)))
    return found


def _limits(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    config = checkpoint.parts["unet"].config
    (height, width), step = latent_size(config), 2 ** (len(config["block_out_channels"]) - 1)
    return {"height": (step, height), "width": (step, width), "tokens": (1, checkpoint.max_tokens)}


def _residuals(unet: dict[str, Any]) -> Ports:
    """One map for each skip connection, in the order in which the UNet makes them, and one for its middle."""
    channels = unet["block_out_channels"]
    layers = unet.get("layers_per_block", 2)
    counts = [layers] * len(channels) if isinstance(layers, int) else list(layers)
    shapes = [(channels[0], 1)]
    for level, (width, count) in enumerate(zip(channels, counts, strict=True)):
        shapes += [(width, 2**level)] * count
        if level < len(channels) - 1:
            shapes.append((width, 2 ** (level + 1)))
    named = {f"{RESIDUAL}{index}": shape for index, shape in enumerate(shapes)}
    named[f"{RESIDUAL}mid"] = (channels[-1], 2 ** (len(channels) - 1))
    return tuple(TensorSpec(name, FLOAT, ("batch", int(width), *_reduced(factor))) for name, (width, factor) in named.items())


def _vae(checkpoint: Checkpoint) -> list[Spec]:
    (height, width), factor = latent_size(checkpoint.parts["unet"].config), checkpoint.vae_scale_factor
    channels = int(checkpoint.parts["vae"].config["latent_channels"])
    step = 2 ** (len(checkpoint.parts["unet"].config["block_out_channels"]) - 1)
    cells = {"height": (step, height), "width": (step, width)}
    pixels = {"height": (factor, height * factor), "width": (factor, width * factor)}
    latent = TensorSpec("latent_sample", FLOAT, ("batch", channels, "height", "width"))
    image = TensorSpec("sample", FLOAT, ("batch", 3, "height", "width"))
    decoded = TensorSpec("sample", FLOAT, ("batch", 3, f"{factor}*height", f"{factor}*width"))
    encoded = TensorSpec("latent_mean", FLOAT, ("batch", channels, *_reduced(factor)))
    return [
        Spec("vae_decoder", "vae", "vae/decoder.onnx", (latent,), (decoded,), cells),
        Spec("vae_encoder", "vae", "vae/encoder.onnx", (image,), (encoded,), pixels),
    ]


def _reduced(factor: int) -> Shape:
    return ("height", "width") if factor == 1 else (f"height/{factor}", f"width/{factor}")


def clip_specs(config: dict[str, Any]) -> list[Spec]:
    """The two towers of an open_clip model: image, then text."""
    size, dim, tokens = config["vision_cfg"]["image_size"], config["embed_dim"], config["text_cfg"].get("context_length", 77)
    height, width = (size, size) if isinstance(size, int) else size
    words = int(config["text_cfg"].get("vocab_size", 49408))
    pixels = TensorSpec("pixel_values", FLOAT, ("batch", 3, height, width))
    ids = TensorSpec("input_ids", INT, ("batch", tokens))
    return [
        Spec("clip_image", "clip", "clip/image.onnx", (pixels,), (TensorSpec("image_embeds", FLOAT, ("batch", dim)),), {}),
        Spec("clip_text", "clip", "clip/text.onnx", (ids,), (TensorSpec("text_embeds", FLOAT, ("batch", dim)),), {}, words),
    ]


def _checker_spec(config: dict[str, Any]) -> Spec:
    size, dim = int(config["vision_config"]["image_size"]), int(config["projection_dim"])
    pixels = TensorSpec("pixel_values", FLOAT, ("batch", 3, size, size))
    return Spec(CHECKER, CHECKER, "safety_checker/model.onnx", (pixels,), (TensorSpec("image_embeds", FLOAT, ("batch", dim)),), {})
