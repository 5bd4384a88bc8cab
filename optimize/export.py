"""Exports one network to an ONNX graph whose batch, height, width and tokens stay free.

The dynamo exporter at opset 23 keeps attention and group normalisation as one operator each. Token axes: free in the UNet and in the
text encoder (up to its number of positions); fixed at the context length in the CLIP text tower, whose network adds all its positions.
Knows nothing about weights files or engines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto

from platemark.errors import EngineError
from platemark.optimize.graph import name_nodes, remove_dead, set_shapes, strip
from platemark.optimize.specs import FLOAT, INT, Spec

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

OPSET = 23  # the first with Attention; GroupNormalization since 21
OUTSIDE = 1 << 20  # bytes from which on a weight stays out of the graph while it is made
_ELEMENT_TYPES = {FLOAT: TensorProto.FLOAT, INT: TensorProto.INT64}


def export_graph(
    spec: Spec, module: nn.Module, example: dict[str, Tensor], outside: dict[str, NDArray[Any]] | None = None
) -> onnx.ModelProto:
    """The graph, stripped of everything that does not compute, with its weights inside.

    `outside`, where it is given, takes the large ones instead, as views of the module's own memory: the graph has them as external data
    whose location is the key, so that they never exist twice (see `graph.link_weights`).
    `example` maps input names to tensors; no free dim may be 0 or 1 in it. Raises `EngineError` where the exporter fails, changes
    a name or type, or fixes a dim that must stay free.
    """
    import torch  # here: whoever asks for `OPSET` alone holds no torch

    from platemark.optimize.modules import Named

    free = {
        port.name: {axis: torch.export.Dim.DYNAMIC for axis, dim in enumerate(port.shape) if isinstance(dim, str)} for port in spec.inputs
    }
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                module,
                tuple(example[port.name] for port in spec.inputs),
                input_names=[port.name for port in spec.inputs],
                output_names=[port.name for port in spec.outputs],
                dynamic_shapes={"inputs": tuple(free.values())} if isinstance(module, Named) else free,
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
    set_shapes(model, {port.name: port.shape for port in (*spec.inputs, *spec.outputs)})
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
    ports = [*spec.inputs, *spec.outputs]
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
