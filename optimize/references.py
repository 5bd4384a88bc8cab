"""diffusers' own pipelines as references: a request rendered by the class that its family's card names, over float32 torch networks.

Input pictures enter as the mean of the encoder's distribution, as the runtime takes them. Knows nothing about graphs or bundles.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn

from platemark.errors import CheckpointError
from platemark.optimize.checkpoint import Checkpoint
from platemark.optimize.fit import reads_mask
from platemark.optimize.modules import VaeEncoder, quiet
from platemark.runtime.request import GenerationRequest
from platemark.runtime.schedulers import DEFAULT_ETA, reference_config
from platemark.runtime.start import PAINT

Nets = Mapping[str, nn.Module]


def render(checkpoint: Checkpoint, nets: Nets, request: GenerationRequest) -> NDArray[np.float32]:
    """diffusers' picture of a request for one: float32 (height, width, 3) in [0, 1], with noise from torch's CPU generator.

    Input pictures must have the request's size, masks whole latent cells.
    """
    with quiet():
        pipeline = _pipeline(checkpoint, nets, _kind(checkpoint, request), request.scheduler)
        pipeline.set_progress_bar_config(disable=True)
        settings: dict[str, Any] = {
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt or None,
            "height": request.height,
            "width": request.width,
            "num_inference_steps": request.num_inference_steps,
            "guidance_scale": request.guidance_scale,
            "eta": _eta(pipeline.scheduler) if request.eta is None else request.eta,
            "generator": torch.Generator("cpu").manual_seed(request.seed),
            "output_type": "np",
            **_pictures(checkpoint, nets, request),
        }
        known = inspect.signature(pipeline.__call__).parameters
        out = pipeline(**{name: value for name, value in settings.items() if name in known})
    return np.asarray(out.images[0], np.float32)


def _kind(checkpoint: Checkpoint, request: GenerationRequest) -> str:
    if request.control_image is not None:
        return checkpoint.family.references["controlled"]
    if request.mask_image is not None or reads_mask(checkpoint.parts["unet"].config):
        return checkpoint.family.references["inpainting"]
    return checkpoint.family.references["plain" if request.image is None else "img2img"]


def _pipeline(checkpoint: Checkpoint, nets: Nets, name: str, scheduler: str | None) -> Any:
    kind: Any = getattr(diffusers, name)
    offered: dict[str, Any] = {
        **nets,
        **{text.tokenizer: _tokenizer(checkpoint, text.tokenizer) for text in checkpoint.family.texts},
        "scheduler": _scheduler(checkpoint, scheduler),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
        "force_zeros_for_empty_prompt": checkpoint.empty_negative_is_zero,
        "add_watermarker": False,
    }
    return kind(**{name: value for name, value in offered.items() if name in inspect.signature(kind.__init__).parameters})


def _pictures(checkpoint: Checkpoint, nets: Nets, request: GenerationRequest) -> dict[str, Any]:
    """What a pipeline is given of the request's pictures."""
    if request.control_image is not None:
        return {"image": _unit(request.control_image), "controlnet_conditioning_scale": request.control_scale}
    covers = request.mask_image is not None or reads_mask(checkpoint.parts["unet"].config)
    if request.image is None and not covers:
        return {}
    picture = torch.zeros(1, 3, request.height, request.width) if request.image is None else _unit(request.image) * 2 - 1
    given: dict[str, Any] = {"image": _encoded(checkpoint, nets, picture), "strength": request.strength or 1.0}
    if not covers:
        return given
    paint = torch.ones(request.height, request.width, dtype=torch.bool)
    if request.mask_image is not None:
        paint = torch.from_numpy(request.mask_image >= PAINT)
    return given | {"mask_image": paint.float()[None, None], "masked_image_latents": _encoded(checkpoint, nets, picture * ~paint)}


def _unit(picture: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255


def _encoded(checkpoint: Checkpoint, nets: Nets, sample: Tensor) -> Tensor:
    vae = checkpoint.vae
    with torch.no_grad():
        mean: Tensor = VaeEncoder(nets["vae"])(sample)
    shift, spread = (torch.tensor(values or [fallback]).view(1, -1, 1, 1) for values, fallback in ((vae.mean, 0.0), (vae.std, 1.0)))
    return (mean - vae.shift_factor - shift) * vae.scaling_factor / spread


def _eta(scheduler: Any) -> float:
    """What diffusers' pipeline hands to any scheduler that takes it: TCD's own default, and none for DDIM."""
    return DEFAULT_ETA["tcd"] if isinstance(scheduler, diffusers.TCDScheduler) else 0.0


def _tokenizer(checkpoint: Checkpoint, folder: str) -> Any:
    try:
        tokenizer = transformers.CLIPTokenizer.from_pretrained(checkpoint.root / folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"the files of {folder}/ cannot be read", "save the checkpoint's CLIP tokenizers again") from error
    tokenizer.model_max_length = checkpoint.max_tokens
    return tokenizer


def _scheduler(checkpoint: Checkpoint, name: str | None) -> Any:
    forced = checkpoint.family.forced(reads_mask(checkpoint.parts["unet"].config))
    kind, fields = reference_config(name, {**checkpoint.scheduler, **forced})
    return getattr(diffusers, kind).from_config(fields)
