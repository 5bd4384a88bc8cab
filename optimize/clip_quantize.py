"""The image tower in 8 bits: matrices as int8 with one scale a channel, activations quantised as they come.

Writes ONNX and safetensors; knows nothing about who reads them.

Weights use 7 of the 8 bits, since CPUs without VNNI saturate when they add products of 8 by 8 bits.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import onnx
import torch
from torch import nn

from platemark.optimize.export import export_graph
from platemark.optimize.graph import name_constants, name_values
from platemark.optimize.parity import make_cases
from platemark.optimize.parts import Part
from platemark.optimize.specs import Spec
from platemark.optimize.weights import read_header

IMAGE_PREFIX = "visual."  # of the image tower's tensors in an open_clip checkpoint
TEXT_WEIGHTS = "text.safetensors"
_INLINE = 1 << 30  # bytes of weights up to which a graph fits into one protobuf message with room to spare


def quantized_image_tower(spec: Spec, module: nn.Module) -> bytes:
    """The graph file, its weights inside."""
    from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped]

    model = export_graph(spec, module, {name: torch.from_numpy(value) for name, value in make_cases(spec)[0].items()})
    name_values(model)
    name_constants(model)
    model.metadata_props.append(onnx.StringStringEntryProto(key="onnx.quant.pre_process", value="onnxruntime.quant"))  # else it warns
    large = sum(tensor.ByteSize() for tensor in model.graph.initializer) > _INLINE
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name, "float.onnx"), Path(name, "int8.onnx")
        onnx.save_model(model, source, save_as_external_data=large)
        quantize_dynamic(source, target, ["MatMul", "Gemm"], per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)
        quantized = onnx.load(target)
    del quantized.metadata_props[:]
    quantized.producer_name, quantized.producer_version = "platemark", ""
    data: bytes = quantized.SerializeToString(deterministic=True)
    return data


def text_weights(part: Part) -> Part:
    """Writes the text tower's tensors into a file of their own, as they are stored, and returns the part that refers to it."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = part.folder / TEXT_WEIGHTS
    tensors: dict[str, torch.Tensor] = {}
    for weights in part.weights:
        with safe_open(weights, framework="pt") as stored:
            tensors |= {name: stored.get_tensor(name) for name in stored.keys() if not name.startswith(IMAGE_PREFIX)}  # noqa: SIM118
    save_file(tensors, path, metadata={"format": "pt"})
    return dataclasses.replace(part, weights=(path,), tensors=read_header(path))
