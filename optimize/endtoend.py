"""The whole pipeline against diffusers': the same weights, noise, scheduler and prompt through both, compared as pictures.

Knows nothing about how the graphs were made.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from platemark.errors import CheckpointError, InputError
from platemark.optimize.checkpoint import Checkpoint
from platemark.optimize.parity import END_TO_END_PSNR, check_end_to_end, psnr
from platemark.runtime.bundle import Bundle
from platemark.runtime.manifest import EndToEnd, Manifest
from platemark.runtime.pipeline import Pipeline
from platemark.runtime.request import GenerationRequest
from platemark.runtime.schedulers import DEFAULT_ETA, REFERENCES, make_scheduler, reference_config

if TYPE_CHECKING:
    from torch import nn

PROMPT, SEED, MAX_STEPS = "a red apple", 1, 8
# What diffusers' StableDiffusionPipeline sets on any scheduler that it is given.
_FORCED = {"steps_offset": 1, "clip_sample": False}


def choose_scheduler(checkpoint: Checkpoint, wanted: str | None) -> str | None:
    """The sampler that the bundle names: `wanted`; else None where the checkpoint's own class has a sampler; else `ddim` with its config.

    Raises `CheckpointError` where no sampler can follow the checkpoint's scheduler config.
    """
    try:
        make_scheduler(wanted, checkpoint.scheduler)
    except InputError as error:
        if wanted is not None or checkpoint.scheduler.get("_class_name") in REFERENCES.values():
            raise CheckpointError(f"scheduler/scheduler_config.json: {error.message}", error.remedy) from error
        return choose_scheduler(checkpoint, "ddim")
    return wanted


def compared_request(checkpoint: Checkpoint, draft: Manifest) -> GenerationRequest:
    """What both sides render: few steps, one picture, at the native size."""
    steps, scheduler = min(draft.default_steps, MAX_STEPS), _compared(checkpoint, draft.default_scheduler)
    return GenerationRequest.make(draft, prompt=PROMPT, seed=SEED, num_inference_steps=steps, scheduler=scheduler)


def check_pipeline(
    stage: Path, draft: Manifest, request: GenerationRequest, expected: NDArray[np.float32], backend: str | None, precision: str
) -> EndToEnd:
    """Renders the request with the bundle in `stage` described by `draft`, on `backend` (None: those it names), and compares with the
    `expected` picture.

    Raises `ParityError` where they differ by more than the bound of `precision`.
    """
    actual = Pipeline.load(Bundle(stage, draft, ""), backend).generate(request).arrays[0]
    return check_end_to_end(
        EndToEnd(
            reference=f"diffusers {version('diffusers')} fp32",
            prompt=PROMPT,
            seed=SEED,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            height=draft.native_size[0],
            width=draft.native_size[1],
            psnr=psnr(actual, expected),
            bound_psnr=END_TO_END_PSNR[precision],
        )
    )


def reference_picture(checkpoint: Checkpoint, nets: Mapping[str, nn.Module], request: GenerationRequest) -> NDArray[np.float32]:
    """diffusers' picture: float32 (H, W, 3) in [0, 1] at the native size, with noise from torch's CPU generator."""
    import diffusers
    import torch

    from platemark.optimize.modules import quiet

    height, width = checkpoint.native_size
    with quiet():
        kind: Any = diffusers.StableDiffusionPipeline
        pipeline = kind(
            vae=nets["vae"],
            text_encoder=nets["text_encoder"],
            tokenizer=_tokenizer(checkpoint),
            unet=nets["unet"],
            scheduler=_scheduler(checkpoint, request.scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        out = pipeline(
            request.prompt,
            height=height,
            width=width,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            eta=_eta(pipeline.scheduler),
            generator=torch.Generator("cpu").manual_seed(request.seed),
            output_type="np",
        )
    return np.asarray(out.images[0], np.float32)


def _eta(scheduler: Any) -> float:
    """What diffusers' pipeline hands to any scheduler that takes it: TCD's own default, and none for DDIM."""
    import diffusers

    return DEFAULT_ETA["tcd"] if isinstance(scheduler, diffusers.TCDScheduler) else 0.0


def _tokenizer(checkpoint: Checkpoint) -> Any:
    import transformers

    try:
        tokenizer = transformers.CLIPTokenizer.from_pretrained(checkpoint.root / "tokenizer", local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError("the tokenizer files cannot be read", "save the checkpoint's CLIP tokenizer again") from error
    tokenizer.model_max_length = checkpoint.max_tokens
    return tokenizer


def _scheduler(checkpoint: Checkpoint, name: str | None) -> Any:
    import diffusers

    kind, fields = reference_config(name, {**checkpoint.scheduler, **_FORCED})
    return getattr(diffusers, kind).from_config(fields)


def _compared(checkpoint: Checkpoint, name: str | None) -> str | None:
    """The sampler of the comparison: the bundle's, but Euler for DPM++ SDE, whose reference draws noise from a Brownian tree of its own."""
    kind, _ = reference_config(name, checkpoint.scheduler)
    return "euler" if kind == "DPMSolverSDEScheduler" else name
