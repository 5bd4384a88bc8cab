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
from platemark.runtime.conditioning import Conditioner, Truncation, guided
from platemark.runtime.control import CONDITION, SCALE, Controlled
from platemark.runtime.denoise import Control, OnStep, denoise
from platemark.runtime.engine import Engine
from platemark.runtime.engines import Weights, opener
from platemark.runtime.family import load_family
from platemark.runtime.inpainting import covered_channels
from platemark.runtime.launch import Scene, launch
from platemark.runtime.manifest import TiledDecode
from platemark.runtime.memory import MemoryPlan, Widths, left, plan_memory
from platemark.runtime.preview import ColourMap
from platemark.runtime.prompts import MAX_CHUNKS
from platemark.runtime.render import is_flat, to_uint8
from platemark.runtime.request import GenerationRequest, check_fits
from platemark.runtime.schedulers import make_scheduler
from platemark.runtime.sizes import RenderSize, batch_size, render_size, side_multiple
from platemark.runtime.start import Canvas, Origin, condition
from platemark.runtime.upscale import COMPONENT as UPSCALER
from platemark.runtime.upscale import Network, check_size, upscale

_SCHEDULER = "scheduler/scheduler_config.json"


@dataclass(frozen=True)
class GenerationOutput:
    """The pictures of a request. Unchecked and unmarked.

    `images`: uint8 (n, height, width, 3), as delivered. `arrays`: float32 (n, H, W, 3) in [0, 1], before rounding, cut and resizing.
    `resampled_from`: (H, W) where they were resampled, else None. `flat`: which of them show one colour only. `guided`: whether
    they were rendered with classifier-free guidance. `tiled`: how far they may be off by having been decoded in tiles, for want of memory;
    None: they were not. `timings`: milliseconds of `text_encoder`, `vae_encoder` (where a picture came in), `denoise`, `vae_decoder` and
    `resize`, over all pictures.
    """

    images: NDArray[np.uint8]
    arrays: NDArray[np.float32]
    seeds: tuple[int, ...]
    timings: dict[str, float]
    resampled_from: tuple[int, int] | None
    truncated: tuple[Truncation, ...]
    flat: tuple[bool, ...]
    guided: bool
    request: GenerationRequest
    tiled: TiledDecode | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the request could not be used, in sentences; they quote nothing of the prompts."""
        cut = tuple(_cut(one) for one in self.truncated)
        if self.tiled is not None:
            cut += (f"decoded in tiles for want of memory: about {self.tiled.psnr:.0f} dB off the whole picture, as the build measured",)
        unused = bool(self.request.negative_prompt.strip()) and not self.guided
        why = "it needs a guidance scale above 1" if self.request.guidance_scale <= 1.0 else "this model's guidance takes none"
        return (*cut, f"the negative prompt was not used: {why}") if unused else cut


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
        self._conditioner = Conditioner(bundle, self.engine)
        self.scheduler_config = _read_scheduler_config(bundle)
        self._multiple = side_multiple(bundle)
        self._widths = Widths.of(bundle)
        self._codec = Codec(bundle.manifest, self.engine)
        self.components = (*self._conditioner.components, "unet", "vae_decoder")
        for name in self.components:
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
        size = RenderSize(*self.bundle.manifest.native_size, resampled=False)
        latents = np.zeros((1, *self._latent_shape(size.height, size.width)), dtype=np.float32)
        self.unprompted(size)(latents, np.zeros(1, np.float32))
        self.engine("vae_decoder").run({"latent_sample": latents})

    def denoiser(self) -> Engine:
        """The network of the denoise loop, which reads what a request's flights bring: the UNet, behind the bundle's ControlNet if any."""
        unet = self.engine("unet")
        return Controlled(lambda: self.engine("controlnet"), unet) if "controlnet" in self.bundle.manifest.components else unet

    def unprompted(self, size: RenderSize) -> Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]:
        """The denoise loop's network for the empty text: from latents (1, C, h, w), as a sampler scales them, and time (1,), to output."""
        network, rows, extra = self.denoiser(), self._conditioner.blank(size), self._covered(None, size)

        def evaluate(latents: NDArray[np.float32], timestep: NDArray[np.float32]) -> NDArray[np.float32]:
            sample = latents if extra is None else np.concatenate([latents, extra], axis=1)
            output: NDArray[np.float32] = network.run({"sample": sample, "timestep": timestep, **rows})["out_sample"]
            return output

        return evaluate

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
        check_fits(self.bundle.manifest, request)
        timings: dict[str, float] = {}
        seeds = tuple(noise.image_seed(request.seed, k) for k in range(request.n))
        check_size(request.height, request.width, request.upscale, self.bundle.manifest.upscaler)
        size = render_size(self.bundle.manifest, self._multiple, request.height, request.width)
        shape = (1, *self._latent_shape(size.height, size.width))
        if latents is not None:
            latents = _checked(latents, (request.n, *shape[1:]))
        colours = self._colours() if previews else None
        scheduler = make_scheduler(request.scheduler, self.scheduler_config, request.eta)
        scheduler.plan(request.num_inference_steps)  # refuses impossible steps before any work
        self.compile()
        plan = self.plan_memory(request, size)
        with _timed(timings, "text_encoder"):
            rows, truncated = self._conditioner.rows(request, size, self._max_chunks())
        scene = self._scene(request, size, rows, timings)
        flights = launch(request, scheduler, shape, scene, latents, control, colours)
        with _timed(timings, "denoise"):
            denoise(self.denoiser(), flights, plan.batch, on_step)
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
                composed = delivered if scene.origin is None else scene.origin.canvas.composed(delivered)
                image[...] = self.enlarged(composed, request.upscale)
        return GenerationOutput(
            images=images,
            arrays=_joined(arrays),
            seeds=seeds,
            timings=timings,
            resampled_from=(size.height, size.width) if size.resampled or request.upscale > 1 else None,
            truncated=truncated,
            flat=tuple(is_flat(image) for image in images),
            guided=guided(self.bundle.manifest, request),
            request=request,
            tiled=self.bundle.manifest.tiled_decode if plan.tiled else None,
        )

    def plan_memory(self, request: GenerationRequest, size: RenderSize) -> MemoryPlan:
        """How the request is rendered in the memory that is left. Raises `InputError` where it cannot be."""
        rows = 2 if guided(self.bundle.manifest, request) else 1
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
        if all(name in self.engines for name in self.components):
            return
        with ThreadPoolExecutor(len(self.components)) as pool:
            list(pool.map(self.engine, self.components))

    def _colours(self) -> ColourMap:
        colours = self.bundle.manifest.latent_colours
        if colours is None:
            raise BundleError("the bundle does not say how its latents show as colours", "do without previews, or rebuild the bundle")
        return ColourMap(colours)

    def _scene(
        self, request: GenerationRequest, size: RenderSize, rows: dict[str, NDArray[np.float32]], timings: dict[str, float]
    ) -> Scene:
        """What the request's pictures have in common: the rows, and what comes of the pictures that it brings."""
        target, origin, extra = (request.height, request.width), None, None
        if request.image is not None:
            canvas = Canvas.of(request.image, request.mask_image, target, size, self.bundle.manifest.vae_scale_factor)
            with _timed(timings, "vae_encoder"):
                origin = Origin(canvas, self._codec.encode(canvas.rendered))
        if self.bundle.manifest.conditioning.inpainting:
            with _timed(timings, "vae_encoder"):
                extra = self._covered(None if origin is None else origin.canvas, size)
        if request.control_image is not None:
            count = len(rows["encoder_hidden_states"])
            given = np.repeat(condition(request.control_image, target, size), count, axis=0)
            rows = rows | {CONDITION: given, SCALE: np.full(count, request.control_scale, np.float32)}
        return Scene(rows, origin, extra)

    def _covered(self, canvas: Canvas | None, size: RenderSize) -> NDArray[np.float32] | None:
        """The further channels of a UNet that reads a mask; None for any other."""
        if not self.bundle.manifest.conditioning.inpainting:
            return None
        return covered_channels(self._codec, canvas, size, self.bundle.manifest.vae_scale_factor)

    def _latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        manifest = self.bundle.manifest
        return manifest.latent_channels, height // manifest.vae_scale_factor, width // manifest.vae_scale_factor

    def _max_chunks(self) -> int:
        """How many windows of the text encoder the UNet can attend to: any, unless its engine was compiled for a number of tokens."""
        shape = next((spec.shape for spec in self.engine("unet").inputs if spec.name == "encoder_hidden_states"), ())
        tokens = shape[1] if len(shape) == 3 else "tokens"
        return max(1, tokens // self.bundle.manifest.max_tokens) if isinstance(tokens, int) else MAX_CHUNKS


def _read_scheduler_config(bundle: Bundle) -> dict[str, Any]:
    """The checkpoint's config, with the fields that its family's reference pipeline sets on any scheduler that it is given."""
    try:
        config = json.loads(bundle.file(_SCHEDULER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{_SCHEDULER} cannot be read", "rebuild the bundle from a whole checkpoint") from error
    if not isinstance(config, dict):
        raise BundleError(f"{_SCHEDULER} holds no config", "rebuild the bundle from a whole checkpoint")
    return {**config, **load_family(bundle.manifest.family).forced(bundle.manifest.conditioning.inpainting)}


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
