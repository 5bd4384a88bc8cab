"""Bundle to pictures: tokenize, text engine, denoise loop over the UNet engine, VAE engine, resize.

The pictures that leave here are unchecked and unmarked: this is the library layer, which knows nothing of policies, watermarks or
records. `platemark.Press` is the road that checks, marks and records them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from platemark.errors import BundleError, InputError
from platemark.runtime import noise
from platemark.runtime.bundle import Bundle
from platemark.runtime.codec import Codec
from platemark.runtime.denoise import Control, OnStep, denoise
from platemark.runtime.engine import Engine
from platemark.runtime.engines import Weights, opener
from platemark.runtime.launch import launch
from platemark.runtime.manifest import TiledDecode
from platemark.runtime.memory import MemoryPlan, Widths, left, plan_memory
from platemark.runtime.preview import ColourMap
from platemark.runtime.prompts import MAX_CHUNKS, PromptEncoder
from platemark.runtime.render import is_flat, to_uint8
from platemark.runtime.request import GenerationRequest
from platemark.runtime.schedulers import make_scheduler
from platemark.runtime.sizes import RenderSize, batch_size, render_size, side_multiple
from platemark.runtime.start import Canvas, Origin
from platemark.runtime.tokenizer import FILES as TOKENIZER_FILES
from platemark.runtime.tokenizer import Tokenizer
from platemark.runtime.upscale import COMPONENT as UPSCALER
from platemark.runtime.upscale import Network, check_size, upscale

COMPONENTS = ("text_encoder", "unet", "vae_decoder")
_SCHEDULER = "scheduler/scheduler_config.json"


@dataclass(frozen=True)
class Truncation:
    """The end of a text that the text encoder cannot take: as it was written, and its number of tokens."""

    field: str  # "prompt" or "negative_prompt"
    text: str
    tokens: int


@dataclass(frozen=True)
class GenerationOutput:
    """The pictures of a request. Unchecked and unmarked.

    `images`: uint8 (n, height, width, 3), as delivered. `arrays`: float32 (n, H, W, 3) in [0, 1], before rounding, cut and resizing.
    `resampled_from`: (H, W) where they were resampled, else None. `flat`: which of them show one colour only. `tiled`: how far they
    may be off by having been decoded in tiles, for want of memory; None: they were not. `timings`: milliseconds of
    `text_encoder`, `vae_encoder` (where a picture came in), `denoise`, `vae_decoder` and `resize`, over all pictures.
    """

    images: NDArray[np.uint8]
    arrays: NDArray[np.float32]
    seeds: tuple[int, ...]
    timings: dict[str, float]
    resampled_from: tuple[int, int] | None
    truncated: tuple[Truncation, ...]
    flat: tuple[bool, ...]
    request: GenerationRequest
    tiled: TiledDecode | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the request could not be used, in sentences; they quote nothing of the prompts."""
        cut = tuple(_cut(one) for one in self.truncated)
        if self.tiled is not None:
            cut += (f"decoded in tiles for want of memory: about {self.tiled.psnr:.0f} dB off the whole picture, as the build measured",)
        unused = bool(self.request.negative_prompt.strip()) and not _guided(self.request)
        return (*cut, "the negative prompt was not used: it needs a guidance scale above 1") if unused else cut


class Pipeline:
    """A bundle with its engines. Safe to share between threads: all that belongs to a request is local to `generate`.

    `engines` holds what is compiled already, by component; an engine put there beforehand (a reference, say) is used as it is.
    """

    def __init__(
        self,
        bundle: Bundle,
        compile_graph: Callable[[Path], Engine],
        engines: dict[str, Engine] | None = None,
        memory_budget: int | None = None,
    ) -> None:
        self.bundle = bundle
        self._memory_budget = memory_budget
        self.engines: dict[str, Engine] = dict(engines or {})
        self._compile = compile_graph
        self._loads: Callable[..., Pipeline] | None = None
        self._weights: Weights = {}
        self._locks = {name: Lock() for name in bundle.manifest.components}
        self._prompts = PromptEncoder(_read_tokenizer(bundle), self._hidden)
        self._scheduler_config = _read_scheduler_config(bundle)
        self._multiple = side_multiple(bundle)
        self._widths = Widths.of(bundle)
        self._codec = Codec(bundle.manifest, self.engine)
        for name in COMPONENTS:
            bundle.component(name)

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        backend: str | None = None,
        *,
        threads: int | None = None,
        cache: Path | None = None,
        memory_budget: int | None = None,
        weights: Weights | None = None,
    ) -> Pipeline:
        """Prepares a bundle for a backend (`backends.names()`; None: those it was built for); engines are compiled when first needed,
        or by `warm_up`.

        `threads`: for one operator; None lets the backend choose. `cache`: the folder in which compiled engines are kept; None keeps none.
        `memory_budget`: bytes that the process may hold; None: what the system has left.
        `weights`: values that single weights have instead (see `optimize.lora_swap`).
        Raises `BundleError`, and `InputError` for a backend that is unknown or renders nothing.
        """
        loaded = cls(bundle, opener(bundle, backend, cache=cache, threads=threads, weights=weights), memory_budget=memory_budget)
        loaded._loads = partial(cls.load, bundle, backend, threads=threads, cache=cache, memory_budget=memory_budget)
        loaded._weights = weights or {}
        return loaded

    def with_weights(self, weights: Weights) -> Pipeline:
        """A pipeline of the same bundle and backend whose weights have these values instead; none: the bundle's own.

        This one stays as it is, so that requests under way keep their weights. Networks that neither changes share their engines.
        """
        if self._loads is None:
            raise InputError("this pipeline was given its engines", "load it with `Pipeline.load`")
        other = self._loads(weights=weights)
        other.engines.update({name: engine for name, engine in self.engines.items() if name not in weights and name not in self._weights})
        return other

    def engine(self, component: str) -> Engine:
        """The component's engine, compiled once. Raises `BundleError` (no such component) and `EngineError`."""
        if component in self.engines:
            return self.engines[component]
        graph = self.bundle.component(component).graph
        with self._locks[component]:
            if component not in self.engines:
                self.engines[component] = self._compile(self.bundle.file(graph))
            return self.engines[component]

    def warm_up(self) -> None:
        """Compiles the engines and runs each once at the native size, so that the first request is as fast as the next."""
        self.compile()
        manifest = self.bundle.manifest
        hidden = self._hidden(np.zeros((2, manifest.max_tokens), dtype=np.int64))
        latents = np.zeros((1, *self._latent_shape(*manifest.native_size)), dtype=np.float32)
        inputs = {"sample": np.repeat(latents, 2, axis=0), "timestep": np.zeros(2, np.float32), "encoder_hidden_states": hidden}
        self.engine("unet").run(inputs)
        self.engine("vae_decoder").run({"latent_sample": latents})

    def generate(
        self,
        request: GenerationRequest,
        latents: NDArray[np.float32] | None = None,
        on_step: OnStep | None = None,
        control: Control | None = None,
        previews: bool = False,
    ) -> GenerationOutput:
        """Renders the request's `n` pictures; picture k is what a request for its seed alone renders.

        Networks run at the size that `sizes.render_size` says; from there the requested one is reached by a cut, or by Lanczos resampling
        where the model knows one size only. `latents` takes the place of the seeds' noise: standard normal, float32 (n, C, h, w) of the
        rendered size. `on_step` hears of each network call, with `previews` also what the pictures look like by then. `control` can end it,
        by hand or after a time.

        Raises `InputError`, `BundleError` (an input picture and no encoder, or previews and no colours), `EngineError`, `Cancelled`,
        `DeadlineExceeded`, and `RenderError` where a network gives NaN or infinite values.
        """
        timings: dict[str, float] = {}
        seeds = tuple(noise.image_seed(request.seed, k) for k in range(request.n))
        check_size(request.height, request.width, request.upscale, self.bundle.manifest.upscaler)
        size = render_size(self.bundle.manifest, self._multiple, request.height, request.width)
        shape = (1, *self._latent_shape(size.height, size.width))
        if latents is not None:
            latents = _checked(latents, (request.n, *shape[1:]))
        colours = self._colours() if previews else None
        scheduler = make_scheduler(request.scheduler, self._scheduler_config, request.eta)
        scheduler.plan(request.num_inference_steps)  # refuses impossible steps before any work
        self.compile()
        plan = self.plan_memory(request, size)
        with _timed(timings, "text_encoder"):
            hidden, truncated = self._context(request)
        origin = None if request.image is None else self._origin(request, size, timings)
        flights = launch(request, scheduler, shape, hidden, latents, origin, control, colours)
        with _timed(timings, "denoise"):
            denoise(self.engine("unet"), flights, plan.batch, on_step)
        arrays = []
        with _timed(timings, "vae_decoder"):
            for flight, seed in zip(flights, seeds, strict=True):
                if control is not None:
                    control.check()
                arrays.append(self._codec.decode(flight.latents, f"seed {seed}", tiled=plan.tiled))
        with _timed(timings, "resize"):
            images = np.empty((request.n, request.upscale * request.height, request.upscale * request.width, 3), np.uint8)
            for image, array in zip(images, arrays, strict=True):
                delivered = size.deliver(to_uint8(array), request.height, request.width)
                image[...] = self.enlarged(delivered if origin is None else origin.canvas.composed(delivered), request.upscale)
        return GenerationOutput(
            images=images,
            arrays=_joined(arrays),
            seeds=seeds,
            timings=timings,
            resampled_from=(size.height, size.width) if size.resampled or request.upscale > 1 else None,
            truncated=truncated,
            flat=tuple(is_flat(image) for image in images),
            request=request,
            tiled=self.bundle.manifest.tiled_decode if plan.tiled else None,
        )

    def plan_memory(self, request: GenerationRequest, size: RenderSize) -> MemoryPlan:
        """How the request is rendered in the memory that is left. Raises `InputError` where it cannot be."""
        rows = 2 if _guided(request) else 1
        free = left(self._memory_budget)
        return plan_memory(self._widths, size, batch_size(self.bundle.manifest, size), rows, free)

    def enlarged(self, picture: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
        """A picture (H, W, 3) `factor` times as large: by the bundle's upscaler, else by Lanczos. Raises as `upscale.upscale`."""
        if factor == 1:
            return picture
        card = self.bundle.manifest.upscaler
        return upscale(picture, factor, None if card is None else Network(self.engine(UPSCALER), card))

    def compile(self) -> None:
        """Compiles what `generate` needs and is not compiled yet, in parallel: engine libraries let go of the interpreter meanwhile.

        Raises `EngineError`.
        """
        if all(name in self.engines for name in COMPONENTS):
            return
        with ThreadPoolExecutor(len(COMPONENTS)) as pool:
            list(pool.map(self.engine, COMPONENTS))

    def _colours(self) -> ColourMap:
        colours = self.bundle.manifest.latent_colours
        if colours is None:
            raise BundleError("the bundle does not say how its latents show as colours", "do without previews, or rebuild the bundle")
        return ColourMap(colours)

    def _origin(self, request: GenerationRequest, size: RenderSize, timings: dict[str, float]) -> Origin:
        assert request.image is not None
        cell = self.bundle.manifest.vae_scale_factor
        canvas = Canvas.of(request.image, request.mask_image, (request.height, request.width), size, cell)
        with _timed(timings, "vae_encoder"):
            return Origin(canvas, self._codec.encode(canvas.rendered))

    def _latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        manifest = self.bundle.manifest
        return manifest.latent_channels, height // manifest.vae_scale_factor, width // manifest.vae_scale_factor

    def _context(self, request: GenerationRequest) -> tuple[NDArray[np.float32], tuple[Truncation, ...]]:
        """Hidden states (rows, tokens, dim): the negative prompt first, and only where there is guidance."""
        texts = {"negative_prompt": request.negative_prompt} if _guided(request) else {}
        texts["prompt"] = request.prompt
        hidden, encoded = self._prompts.encode_all(list(texts.values()), self._max_chunks())
        cut = tuple(Truncation(field, one.cut, one.cut_tokens) for field, one in zip(texts, encoded, strict=True) if one.cut_tokens)
        return hidden, cut

    def _max_chunks(self) -> int:
        """How many windows of the text encoder the UNet can attend to: any, unless its engine was compiled for a number of tokens."""
        shape = next((spec.shape for spec in self.engine("unet").inputs if spec.name == "encoder_hidden_states"), ())
        tokens = shape[1] if len(shape) == 3 else "tokens"
        return max(1, tokens // self.bundle.manifest.max_tokens) if isinstance(tokens, int) else MAX_CHUNKS

    def _hidden(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.engine("text_encoder").run({"input_ids": ids})["last_hidden_state"]


def _read_scheduler_config(bundle: Bundle) -> dict[str, Any]:
    """The checkpoint's config, with the two fields that diffusers' StableDiffusionPipeline sets on any scheduler it is given."""
    try:
        config = json.loads(bundle.file(_SCHEDULER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{_SCHEDULER} cannot be read", "rebuild the bundle from a whole checkpoint") from error
    if not isinstance(config, dict):
        raise BundleError(f"{_SCHEDULER} holds no config", "rebuild the bundle from a whole checkpoint")
    return {**config, "steps_offset": 1, "clip_sample": False}


def _read_tokenizer(bundle: Bundle) -> Tokenizer:
    return Tokenizer.load(bundle.folder("tokenizer", TOKENIZER_FILES), bundle.manifest.max_tokens)


def _guided(request: GenerationRequest) -> bool:
    """Whether the request renders with classifier-free guidance, without which a negative prompt has no place."""
    return request.guidance_scale > 1.0


def _cut(one: Truncation) -> str:
    what, verb = ("token", "was") if one.tokens == 1 else (f"{one.tokens} tokens", "were")
    return f"the last {what} of the {one.field.replace('_', ' ')} did not fit the text encoder and {verb} not used"


def _joined(pictures: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The pictures as one array; takes them out of the list as it goes, so that memory holds each once."""
    joined = np.empty((len(pictures), *pictures[0].shape), pictures[0].dtype)
    for row in joined:
        row[...] = pictures.pop(0)
    return joined


def _checked(latents: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    if latents.shape != shape or latents.dtype != np.float32 or not np.isfinite(latents).all():
        raise InputError("the latents given are not finite float32 of the request's shape", f"give standard normal values of shape {shape}")
    return latents


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    timings[stage] = round(timings.get(stage, 0.0) + (time.perf_counter() - began) * 1000, 3)
