"""Loads a checkpoint's networks as float32 torch modules, each behind a wrapper with the engine's own inputs and output.

The wrapper's network is always the attribute `net`, so that an exported parameter is named `net.` + its name in the network.
Knows nothing about ONNX.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import diffusers
import open_clip  # type: ignore[import-untyped]
import torch
import transformers
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from platemark.errors import CheckpointError
from platemark.optimize.parts import CHECKER_CLASS, Part
from platemark.optimize.specs import Spec
from platemark.runtime.control import CONDITION, RESIDUAL, SCALE
from platemark.runtime.family import Family

_RESAVE = "use a checkpoint whose config and weights belong together"
_LOAD_ERRORS = (OSError, ValueError, TypeError, RuntimeError, KeyError, AttributeError, ZeroDivisionError)


class TextEncoder(nn.Module):
    """input_ids (batch, tokens) → hidden states (batch, tokens, dim), and (batch, dim') where the family reads the whole text too."""

    def __init__(self, net: Any, hidden: str, pooled: bool) -> None:
        """`hidden` and `pooled` as a family's card has them."""
        super().__init__()
        self.net, self._hidden, self._pooled = net, hidden, pooled

    def forward(self, input_ids: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        out = self.net(input_ids=input_ids, output_hidden_states=self._hidden == "penultimate")
        states: Tensor = out.hidden_states[-2] if self._hidden == "penultimate" else out.last_hidden_state
        return (states, out.text_embeds) if self._pooled else states


class Named(nn.Module):
    """A network whose inputs depend on the checkpoint: `names` says what the positional ones are."""

    def __init__(self, net: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.net, self.names = net, tuple(names)

    def given(self, inputs: Sequence[Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """The inputs by name, and those of them that diffusers takes as `added_cond_kwargs`."""
        found = dict(zip(self.names, inputs, strict=True))
        added: dict[str, Tensor] = {name: found[name] for name in ("text_embeds", "time_ids") if name in found}
        return found, added or None


class ByName(nn.Module):
    """A `Named` network called with its inputs by name."""

    def __init__(self, inner: Named) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, **inputs: Tensor) -> Any:
        return self.inner(*(inputs[name] for name in self.inner.names))


class UNet(Named):
    """sample (batch, C, h, w), timestep (batch,), encoder_hidden_states (batch, tokens, dim) and whatever else there is to read →
    out_sample (batch, 4, h, w)."""

    def forward(self, *inputs: Tensor) -> Tensor:
        found, added = self.given(inputs)
        residuals = tuple(values for name, values in found.items() if name.startswith(RESIDUAL))
        out: Tensor = self.net(
            found["sample"],
            found["timestep"],
            found["encoder_hidden_states"],
            timestep_cond=found.get("timestep_cond"),
            added_cond_kwargs=added,
            down_block_additional_residuals=residuals[:-1] or None,
            mid_block_additional_residual=residuals[-1] if residuals else None,
            return_dict=False,
        )[0]
        return out


class ControlNet(Named):
    """The UNet's inputs, a picture (batch, 3, H, W) in [0, 1] and a scale (batch,) → the UNet's residuals."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        found, added = self.given(inputs)
        down, middle = self.net(
            found["sample"],
            found["timestep"],
            found["encoder_hidden_states"],
            found[CONDITION],
            conditioning_scale=found[SCALE][:, None, None, None],
            added_cond_kwargs=added,
            return_dict=False,
        )
        return (*down, middle)


class VaeDecoder(nn.Module):
    """latent_sample (batch, 4, h, w), already divided by the scaling factor → sample (batch, 3, H, W) in about [-1, 1]."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, latent_sample: Tensor) -> Tensor:
        out: Tensor = self.net.decode(latent_sample, return_dict=False)[0]
        return out


class VaeEncoder(nn.Module):
    """sample (batch, 3, H, W) in [-1, 1] → latent_mean (batch, 4, h, w): the posterior's mean, not yet scaled."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, sample: Tensor) -> Tensor:
        encoded = self.net.encode(sample, return_dict=False)[0]
        out: Tensor = encoded if isinstance(encoded, Tensor) else encoded.mean  # AutoencoderTiny knows no spread
        return out


class ClipImage(nn.Module):
    """pixel_values (batch, 3, S, S), normalised → image_embeds (batch, dim), of length 1."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixel_values: Tensor) -> Tensor:
        out: Tensor = self.net.encode_image(pixel_values, normalize=True)
        return out


class ClipText(nn.Module):
    """input_ids (batch, context_length) → text_embeds (batch, dim), of length 1."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, input_ids: Tensor) -> Tensor:
        out: Tensor = self.net.encode_text(input_ids, normalize=True)
        return out


class CheckerTower(nn.Module):
    """pixel_values (batch, 3, S, S), normalised → image_embeds (batch, dim), of any length: the safety checker's vision tower."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixel_values: Tensor) -> Tensor:
        out: Tensor = self.net.visual_projection(self.net.vision_model(pixel_values)[1])
        return out


_WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "vae_decoder": VaeDecoder,
    "vae_encoder": VaeEncoder,
    "clip_image": ClipImage,
    "clip_text": ClipText,
    "safety_checker": CheckerTower,
}


def wrapped(spec: Spec, net: nn.Module, family: Family | None = None) -> nn.Module:
    """The network behind the contract `spec`, in evaluation mode. `family`: for text encoders, whose states it chooses."""
    if spec.component in ("unet", "controlnet"):
        kind = UNet if spec.component == "unet" else ControlNet
        return kind(net, [port.name for port in spec.inputs]).eval()
    text = next((text for text in (family.texts if family else ()) if text.component == spec.component), None)
    return (_WRAPPERS[spec.component](net) if text is None else TextEncoder(net, text.hidden, text.pooled)).eval()


def load_part(part: Part) -> nn.Module:
    """The network of one folder in float32, evaluation mode, on the CPU.

    Raises `CheckpointError` naming a tensor where config and weights do not fit.
    """
    with quiet():
        try:
            net = _LOADERS.get(part.kind, _load_pretrained)(part)
        except _LOAD_ERRORS as error:
            raise CheckpointError(f"{part.name}: config and weights do not fit: {_one_line(error)}", _RESAVE) from error
    return net.eval().requires_grad_(False)


def _load_pretrained(part: Part, kind: Any = None) -> nn.Module:
    """By its class in transformers or diffusers; `kind`: for one that lies deeper."""
    here = hasattr(transformers, part.kind) or kind is not None
    options: dict[str, Any] = {"dtype": torch.float32, "ignore_mismatched_sizes": True} if here else {"torch_dtype": torch.float32}
    kind = kind or getattr(transformers if here else diffusers, part.kind)
    net, info = kind.from_pretrained(
        part.folder, use_safetensors=True, local_files_only=True, output_loading_info=True, variant=_variant(part), **options
    )
    _check_report(part.name, info)
    return _module(net)


def _load_clip(part: Part) -> nn.Module:
    if "hf_model_name" in part.config["model_cfg"]["text_cfg"]:
        raise CheckpointError("clip/open_clip_config.json has a text tower from the hub", "use an open_clip model with its own text tower")
    return _module(open_clip.create_model(f"local-dir:{part.folder}", precision="fp32", device="cpu"))


def _load_checker(part: Part) -> nn.Module:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    return _load_pretrained(part, StableDiffusionSafetyChecker)


_LOADERS: dict[str, Callable[[Part], nn.Module]] = {"open_clip": _load_clip, CHECKER_CLASS: _load_checker}


def _variant(part: Part) -> str | None:
    return "fp16" if part.weights[0].name.endswith(".fp16.safetensors") else None


def _module(net: Any) -> nn.Module:
    if not isinstance(net, nn.Module):
        raise TypeError(f"loading gave a {type(net).__name__}")
    return net


def _check_report(name: str, info: dict[str, Any]) -> None:
    """Any tensor that the loader could not place refuses the checkpoint; `position_ids` is a buffer that old versions saved."""
    for key in sorted(info["mismatched_keys"]):
        raise CheckpointError(f"{name}: tensor {key[0]} has shape {list(key[1])} where the config asks for {list(key[2])}", _RESAVE)
    for key in sorted(info["missing_keys"]):
        raise CheckpointError(f"{name}: tensor {key} is missing from the weights", _RESAVE)
    for key in sorted(info["unexpected_keys"]):
        if not key.endswith("position_ids"):
            raise CheckpointError(f"{name}: tensor {key} is in the weights but not in the network that the config describes", _RESAVE)


def _one_line(error: BaseException) -> str:
    """The first 200 characters of the message, on one line."""
    return " ".join(str(error).split())[:200]


@contextmanager
def quiet() -> Iterator[None]:
    """Holds back the loaders' progress bars and reports, and puts their settings back: a problem is raised, not logged."""
    logs: list[Any] = [transformers_logging, diffusers_logging]
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, (level, bar) in zip(logs, before, strict=True):
            log.set_verbosity(level)
            if bar:
                log.enable_progress_bar()
