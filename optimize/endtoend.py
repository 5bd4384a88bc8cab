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
from platemark.runtime.schedulers import REFERENCES, make_scheduler, reference_config

if TYPE_CHECKING:
    from torch import nn

PROMPT, SEED, MAX_STEPS = "a red apple", 1, 8


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
    """What both sides render: few steps, one picture at the native size, with all that the networks read: a picture and a mask, or a
    picture that controls."""
    (height, width), cell = draft.native_size, draft.vae_scale_factor
    picture = np.random.default_rng(SEED).integers(0, 256, (height, width, 3), dtype=np.uint8)
    given: dict[str, Any] = {"height": height, "width": width}
    if draft.conditioning.inpainting:
        mask = np.zeros((height, width), np.uint8)
        mask[: height // 2 // cell * cell, cell:] = 255
        given |= {"image": picture, "mask_image": mask}
    elif "controlnet" in checkpoint.parts:
        given |= {"control_image": picture}
    steps, scheduler = min(draft.default_steps, MAX_STEPS), _compared(checkpoint, draft.default_scheduler)
    return GenerationRequest(prompt=PROMPT, negative_prompt="", seed=SEED, num_inference_steps=steps, scheduler=scheduler,
                             guidance_scale=draft.default_guidance, **given)  # fmt: skip


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
    """diffusers' picture: see `references.render`, which holds torch."""
    from platemark.optimize.references import render

    return render(checkpoint, nets, request)


def _compared(checkpoint: Checkpoint, name: str | None) -> str | None:
    """The sampler of the comparison: the bundle's, but Euler for DPM++ SDE, whose reference draws noise from a Brownian tree of its own."""
    kind, _ = reference_config(name, checkpoint.scheduler)
    return "euler" if kind == "DPMSolverSDEScheduler" else name
