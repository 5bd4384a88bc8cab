"""Exports one network to an ONNX graph whose batch, height, width and tokens stay free.

The dynamo exporter at opset 23 keeps attention and group normalisation as one operator each. Token axes: free in the UNet and in the
text encoder (up to its number of positions); fixed at the context length in the CLIP text tower, whose network adds all its positions.
Knows nothing about weights files or engines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto

from platemark.errors import EngineError
from platemark.optimize.checkpoint import Checkpoint, latent_size
from platemark.optimize.graph import name_nodes, remove_dead, set_shapes, strip
from platemark.optimize.parts import CHECKER
from platemark.runtime.engine import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

OPSET = 23  # the first with Attention; GroupNormalization since 21
OUTSIDE = 1 << 20  # bytes from which on a weight stays out of the graph while it is made
Shape = tuple[int | str, ...]
FLOAT, INT = np.dtype(np.float32), np.dtype(np.int64)
_ELEMENT_TYPES = {FLOAT: TensorProto.FLOAT, INT: TensorProto.INT64}


@dataclass(frozen=True)
class Spec:
    """The engine contract of one component.

    `limits` gives (step, usual value) of each free dim but the batch: sizes are multiples of the step. Token ids lie below `vocabulary`.
    """

    component: str
    part: str
    graph: str  # POSIX path inside the bundle
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    limits: dict[str, tuple[int, int]]
    vocabulary: int = 0


def specs(checkpoint: Checkpoint) -> dict[str, Spec]:
    """The components of a checkpoint, in build order."""
    unet, vae, factor = checkpoint.parts["unet"].config, checkpoint.parts["vae"].config, checkpoint.vae_scale_factor
    height, width = latent_size(unet)
    step = 2 ** (len(unet["block_out_channels"]) - 1)
    channels, dim, tokens = int(vae["latent_channels"]), _dim(unet), checkpoint.max_tokens
    latent: Shape = ("batch", channels, "height", "width")
    image: Shape = ("batch", 3, "height", "width")
    cells = {"height": (step, height), "width": (step, width)}
    pixels = {"height": (factor, height * factor), "width": (factor, width * factor)}
    text = TensorSpec("input_ids", INT, ("batch", "tokens"))
    states: Shape = ("batch", "tokens", dim)
    hidden, words = TensorSpec("last_hidden_state", FLOAT, states), int(checkpoint.parts["text_encoder"].config["vocab_size"])
    unet_inputs = (
        TensorSpec("sample", FLOAT, latent),
        TensorSpec("timestep", FLOAT, ("batch",)),
        TensorSpec("encoder_hidden_states", FLOAT, states),
    )
    found = [
        Spec("text_encoder", "text_encoder", "text_encoder/model.onnx", (text,), hidden, {"tokens": (1, tokens)}, words),
        Spec("unet", "unet", "unet/model.onnx", unet_inputs, TensorSpec("out_sample", FLOAT, latent), {**cells, "tokens": (1, tokens)}),
        Spec("vae_decoder", "vae", "vae/decoder.onnx", (TensorSpec("latent_sample", FLOAT, latent),), _upscaled("sample", factor), cells),
        Spec(
            "vae_encoder",
            "vae",
            "vae/encoder.onnx",
            (TensorSpec("sample", FLOAT, image),),
            _reduced("latent_mean", channels, factor),
            pixels,
        ),
    ]
    if "clip" in checkpoint.parts:
        found += clip_specs(checkpoint.parts["clip"].config["model_cfg"])
    if CHECKER in checkpoint.parts:
        found.append(_checker_spec(checkpoint.parts[CHECKER].config))
    return {spec.component: spec for spec in found}


def clip_specs(config: dict[str, Any]) -> list[Spec]:
    """The two towers of an open_clip model: image, then text."""
    size, dim, tokens = config["vision_cfg"]["image_size"], config["embed_dim"], config["text_cfg"].get("context_length", 77)
    height, width = (size, size) if isinstance(size, int) else size
    words = int(config["text_cfg"].get("vocab_size", 49408))
    pixels = TensorSpec("pixel_values", FLOAT, ("batch", 3, height, width))
    ids = TensorSpec("input_ids", INT, ("batch", tokens))
    return [
        Spec("clip_image", "clip", "clip/image.onnx", (pixels,), TensorSpec("image_embeds", FLOAT, ("batch", dim)), {}),
        Spec("clip_text", "clip", "clip/text.onnx", (ids,), TensorSpec("text_embeds", FLOAT, ("batch", dim)), {}, words),
    ]


def _checker_spec(config: dict[str, Any]) -> Spec:
    size, dim = int(config["vision_config"]["image_size"]), int(config["projection_dim"])
    pixels = TensorSpec("pixel_values", FLOAT, ("batch", 3, size, size))
    return Spec(CHECKER, CHECKER, "safety_checker/model.onnx", (pixels,), TensorSpec("image_embeds", FLOAT, ("batch", dim)), {})


def _dim(unet: dict[str, Any]) -> int:
    """Width of the text states that the UNet reads: `encoder_hid_dim` where it projects them first."""
    dim = unet.get("encoder_hid_dim") or unet["cross_attention_dim"]
    return int(dim if isinstance(dim, int) else dim[0])


def _upscaled(name: str, factor: int) -> TensorSpec:
    return TensorSpec(name, FLOAT, ("batch", 3, f"{factor}*height", f"{factor}*width"))


def _reduced(name: str, channels: int, factor: int) -> TensorSpec:
    return TensorSpec(name, FLOAT, ("batch", channels, f"height/{factor}", f"width/{factor}"))


def export_graph(
    spec: Spec, module: nn.Module, example: dict[str, Tensor], outside: dict[str, NDArray[Any]] | None = None
) -> onnx.ModelProto:
    """The graph, stripped of everything that does not compute, with its weights inside.

    `outside`, where it is given, takes the large ones instead, as views of the module's own memory: the graph has them as external data
    whose location is the key, so that they never exist twice (see `graph.link_weights`).
    `example` maps input names to tensors; no free dim may be 0 or 1 in it. Raises `EngineError` where the exporter fails, changes
    a name or type, or fixes a dim that must stay free.
    """
    import torch  # here: whoever asks for `specs` alone holds no torch

    free = {
        port.name: {axis: torch.export.Dim.DYNAMIC for axis, dim in enumerate(port.shape) if isinstance(dim, str)} for port in spec.inputs
    }
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                module,
                tuple(example[port.name] for port in spec.inputs),
                input_names=[port.name for port in spec.inputs],
                output_names=[spec.output.name],
                dynamic_shapes=free,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        cause = " ".join(str(error.__cause__ or error).split())[:200]
        raise EngineError(
            f"{spec.component} cannot be exported: {cause}", "use the versions of torch and onnxscript that Platemark names"
        ) from error
    if program is None:
        raise EngineError(
            f"{spec.component} cannot be exported: the exporter gave nothing",
            "use the versions of torch and onnxscript that Platemark names",
        )
    if outside is not None:
        _take_out(program.model, outside)
    model = program.model_proto
    check_contract(spec, model)
    name_nodes(model)
    strip(model)
    set_shapes(model, {port.name: port.shape for port in (*spec.inputs, spec.output)})
    remove_dead(model)
    return model


def _take_out(model: Any, outside: dict[str, NDArray[Any]]) -> None:
    import onnx_ir

    for name, value in model.graph.initializers.items():
        held = value.const_value
        if held is None or held.nbytes < OUTSIDE or held.dtype != onnx_ir.DataType.FLOAT:
            continue
        outside[name] = held.numpy()
        value.const_value = onnx_ir.ExternalTensor(name, 0, held.nbytes, held.dtype, shape=held.shape, name=name, base_dir="")


def check_contract(spec: Spec, model: onnx.ModelProto) -> None:
    """Raises `EngineError` where a graph's inputs or output differ from the spec in name, type, rank, or in which dims are free."""
    remedy = "use the versions of torch and onnxscript that Platemark names"
    values = [*model.graph.input, *model.graph.output]
    ports = [*spec.inputs, spec.output]
    if [value.name for value in values] != [port.name for port in ports]:
        raise EngineError(f"{spec.component}: the graph's inputs and outputs are {[v.name for v in values]}", remedy)
    if any(entry.domain not in ("", "ai.onnx") for entry in model.opset_import) or model.functions:
        raise EngineError(f"{spec.component}: the graph uses operators outside of ONNX", remedy)
    for value, port in zip(values, ports, strict=True):
        tensor = value.type.tensor_type
        if tensor.elem_type != _ELEMENT_TYPES[port.dtype] or len(tensor.shape.dim) != len(port.shape):
            raise EngineError(f"{spec.component}: {port.name} has another type or rank than {port.dtype} {list(port.shape)}", remedy)
        for axis, (dim, expected) in enumerate(zip(tensor.shape.dim, port.shape, strict=True)):
            fixed = dim.HasField("dim_value")
            if fixed == isinstance(expected, str) or (fixed and dim.dim_value != expected):
                found = dim.dim_value if fixed else f"free ({dim.dim_param})"
                raise EngineError(f"{spec.component}: axis {axis} of {port.name} is {found} where the contract says {expected}", remedy)
