"""What `bundle.json` says, as data: the networks with their proofs, the engines, where all of it came from. Knows no files."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from platemark.runtime.family import names

Precision = Literal["fp32", "fp16", "bf16", "int8"]  # that an engine computes in; int8: of its weights


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Comparison(_Strict):
    """One comparison of a graph with its reference, at one set of input shapes.

    `max_abs_error` and `rel_l2_error` (‖a−b‖/‖b‖) over all outputs; `shapes` maps input name to shape.
    """

    shapes: dict[str, list[int]]
    max_abs_error: float
    rel_l2_error: float
    cosine: float


class Parity(_Strict):
    """What an engine was compared with, on which inputs (two shapes at least), how far it was off, and the bound it had to keep.

    `one_shape`: the graph takes one shape only, so the inputs differ in their values alone.
    """

    reference: str  # "torch 2.14.1 fp32"
    backend: str  # "onnxruntime 1.32.0 cpu"
    bound_rel_l2: float
    comparisons: list[Comparison] = Field(min_length=2)
    one_shape: bool = False


class EndToEnd(_Strict):
    """The whole pipeline against the reference pipeline: PSNR (dB) of images in [0, 1] with the same noise."""

    reference: str
    prompt: str
    seed: int
    num_inference_steps: int
    guidance_scale: float
    height: int
    width: int
    psnr: float
    bound_psnr: float


class Component(_Strict):
    """One network. `graph` and `weights` are POSIX paths inside the bundle; the graph refers to the weights beside it."""

    graph: str
    weights: list[str]
    precision: Literal["fp32", "fp16", "bf16"]
    opset: int
    parity: Parity


class MergedLora(_Strict):
    """A LoRA in the weights: how strongly, how many weights it changed, and what of it this checkpoint has no place for."""

    file: str
    sha256: str
    scale: float
    applied: int
    unmatched: list[str]


class BuiltEngine(_Strict):
    """One component for one backend beyond the portable graph. `version`, `device`, `precision` and `profile` are of its device key.

    `profile` maps a free dim to its (smallest, usual, largest) size, and is empty where every size will do. `file` is a POSIX path inside
    the bundle; None: it is compiled where it runs, into the user's cache. `compared` has a parity record; `plan built` was never run, and
    `graph_parity` is that of the graph it was made from, in ONNX Runtime (None: the component's own). `device` names each GPU, spaced.
    `kept` are nodes of a float16 graph that stay float32; `tried` says which precisions were given up, and why.
    """

    component: str
    backend: str
    version: str
    precision: Precision
    device: str  # "x86_64 avx2", "sm_89"
    profile: dict[str, tuple[int, int, int]] = {}
    file: str | None = None
    state: Literal["compared", "plan built"]
    parity: Parity | None = None
    graph_parity: Parity | None = None
    kept: list[str] = []
    tried: list[str] = []


class Origin(_Strict):
    """Where the checkpoint's folder came from, where it was made for the build.

    `file`: one file that was taken apart, with its `sha256`; `left_out` names the tensors in it that belong to no network. `hub`: a
    repository `org/name`, at the commit `revision`.
    """

    kind: Literal["file", "hub"]
    name: str
    sha256: str | None = None
    revision: str | None = None
    left_out: list[str] = []


class LatentColours(_Strict):
    """How latents show as colours in [0, 1]: linearly, per cell. `weights`: (C, 3); `bias`: (3,).

    `r2`: the share of the variance that the map explains in pictures that it was not fitted to.
    """

    weights: list[list[float]]
    bias: list[float] = Field(min_length=3, max_length=3)
    r2: float


class TiledDecode(_Strict):
    """How far pictures decoded in tiles of `tile` latent cells a side are off those decoded at once, at worst of those measured.

    `max_abs_error` in [0, 1]; the pictures were of `height` x `width` pixels.
    """

    tile: int
    height: int
    width: int
    psnr: float
    max_abs_error: float


class UpscalerCard(_Strict):
    """What the component `upscaler` was found to be, by running it. Picture in, the same picture `factor` times as large out.

    `tile`: cells a side of the only size that it takes; None: any size from `smallest` up whose sides are multiples of `multiple`.
    `value_range`: a white pixel's value. `reach`: cells around a pixel that it looks at.
    """

    name: str
    factor: int = Field(ge=2, le=8)
    tile: int | None = Field(default=None, ge=8)
    multiple: int = Field(default=1, ge=1, le=64)
    smallest: int = Field(default=1, ge=1)
    value_range: float = Field(gt=0)
    reach: int = Field(ge=0, le=128)


class Trial(_Strict):
    """One engine that was tried for a component when the bundle was tuned, on the machine that built it.

    `milliseconds`: of one call at the usual size, the fastest of a few; `rel_l2_error`: its worst. Both None where it was not usable, and
    `outcome` says why; else that is `kept` or `slower`.
    """

    component: str
    backend: str
    precision: Precision
    version: str
    milliseconds: float | None = None
    rel_l2_error: float | None = None
    outcome: str


class Source(_Strict):
    """Where the bundle came from: the checkpoint's folder name, the sha256 of each weight file, and the LoRAs merged into them."""

    checkpoint: str
    weights: dict[str, str]
    loras: list[MergedLora] = Field(default_factory=list)
    origin: Origin | None = None


def _known_family(name: str) -> str:
    if name not in names():
        raise ValueError(f"this Platemark knows {', '.join(names())}")
    return name


class Conditioning(_Strict):
    """What the UNet reads besides the noisy latents, the time and the text.

    `inpainting`: a mask and the latents of the picture without what is painted anew, as further channels. `guidance_embedding`: the width
    of the guidance scale's embedding, from which there is no classifier-free guidance; 0: none. `empty_negative_is_zero`: whether no
    negative prompt is a row of zeros, and not the empty text.
    """

    inpainting: bool = False
    guidance_embedding: int = Field(default=0, ge=0)
    empty_negative_is_zero: bool = False


class Manifest(_Strict):
    """`bundle.json`. `components` keys: `text_encoder`, `text_encoder_2`, `unet`, `controlnet`, `vae_decoder`, `vae_encoder`,
    `clip_image`, `clip_text`, `safety_checker`; which of them a bundle has is its family's and its checkpoint's affair.

    `engines` are those built for other backends, `engines_end_to_end` the whole pipeline on each backend whose engines were compared,
    `default_backend` the one to render with when none is named, and `backends` says otherwise for single components: the fastest of what
    `tuned` lists.
    `files` lists every file of the bundle but `bundle.json` itself: POSIX path → sha256.
    `native_size` is (height, width) in pixels of what the VAE decoder makes at the checkpoint's sample size;
    `output_size` the size delivered when the request names none (a larger one is reached by Lanczos resampling).
    Latents as the UNet has them are (the VAE's − shift_factor − latents_mean) · scaling_factor / latents_std, the last two by channel.
    """

    format_version: Literal[1]
    name: str
    family: Annotated[str, AfterValidator(_known_family)]
    conditioning: Conditioning = Conditioning()
    created_with: str  # "platemark 0.1.0"
    source: Source
    files: dict[str, str]
    components: dict[str, Component]
    end_to_end: EndToEnd
    engines: list[BuiltEngine] = []
    engines_end_to_end: dict[str, EndToEnd] = {}
    default_backend: str = "onnxruntime"
    backends: dict[str, str] = {}
    tuned: list[Trial] = []
    native_size: tuple[int, int]
    output_size: tuple[int, int]
    latent_channels: int
    vae_scale_factor: int  # pixels per latent cell, a side
    scaling_factor: float
    shift_factor: float
    latents_mean: list[float] | None = None
    latents_std: list[Annotated[float, Field(gt=0)]] | None = None
    max_tokens: int
    default_steps: int
    default_guidance: float
    upscaler: UpscalerCard | None = None
    default_scheduler: str | None = None  # None: the checkpoint's own class
    latent_colours: LatentColours | None = None  # what previews are made with
    tiled_decode: TiledDecode | None = None  # None: its pictures are decoded at once or not at all

    @model_validator(mode="after")
    def _colours_fit(self) -> Manifest:
        colours = self.latent_colours
        if colours is not None and [len(row) for row in colours.weights] != [3] * self.latent_channels:
            raise ValueError("latent_colours is not a map from the latents' channels to three colours")
        return self
