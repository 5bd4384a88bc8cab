"""What a setting that saves time gains and costs: the same requests with it and without, side by side. No picture leaves.

The cost is told twice: how far the pictures are from those without it, and how well both show the prompt in the eyes of the bundle's CLIP,
which knows only what it was trained on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from platemark.bench.statistics import Data
from platemark.errors import SafetyUnavailable
from platemark.runtime.noise import image_seed
from platemark.runtime.pipeline import Pipeline
from platemark.runtime.request import GenerationRequest
from platemark.safety.clip import ClipModel

SETTINGS = ("guidance_interval",)
PICTURES = 8


class Saving(Data):
    """`speed_up`: denoise time without the setting over that with it, of all pictures together. `psnr`: dB between the two, the mean error
    of all pictures. `clip_with`, `clip_without`: mean cosine of picture and prompt; null where the bundle has no CLIP.
    """

    setting: str
    value: str
    pictures: int
    speed_up: float
    psnr: float
    clip_with: float | None
    clip_without: float | None


def saving(pipeline: Pipeline, request: GenerationRequest, setting: str, pictures: int = PICTURES) -> Saving:
    """Renders `pictures` pictures each way, in turns, from the request's seed on. Raises as `Pipeline.generate` does."""
    without: dict[str, Any] = {setting: None}
    ways = (request, replace(request, **without))
    spent = [0.0, 0.0]
    made: tuple[list[NDArray[np.float32]], ...] = ([], [])
    for k in range(pictures):
        for way, one in enumerate(ways):
            output = pipeline.generate(replace(one, n=1, seed=image_seed(request.seed, k)))
            spent[way] += output.timings["denoise"]
            made[way].append(output.arrays[0])
    error = float(np.mean([np.square(a - b).mean() for a, b in zip(*made, strict=True)]))
    model = _clip(pipeline)
    shown = [None if model is None else _likeness(model, request.prompt, some) for some in made]
    return Saving(
        setting=setting,
        value=request.settings()[setting],
        pictures=pictures,
        speed_up=round(spent[1] / spent[0], 3),
        psnr=round(-10 * float(np.log10(max(error, 1e-12))), 2),
        clip_with=shown[0],
        clip_without=shown[1],
    )


def _likeness(model: ClipModel, prompt: str, pictures: list[NDArray[np.float32]]) -> float:
    """Mean cosine of the prompt and the pictures."""
    text = model.embed_texts((prompt,))[0]
    seen = [model.embed_image(np.round(picture * 255).astype(np.uint8)) for picture in pictures]
    return round(float(np.mean([float(text @ one) for one in seen])), 4)


def _clip(pipeline: Pipeline) -> ClipModel | None:
    from platemark.safety.detectors.clip_loading import clip_of_bundle

    if "clip_image" not in pipeline.bundle.manifest.components:
        return None
    try:
        return clip_of_bundle(pipeline.bundle)
    except SafetyUnavailable:
        return None
