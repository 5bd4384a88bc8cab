"""Weights of 8 bits for OpenVINO: one scale and zero point an output channel, in the form that its CPU plugin takes for compressed weights.

Only the weights are narrowed; the computation stays in float32. (NNCF does the same, and loads torch wherever that is installed, which no
part of the runtime may.) The backend `openvino` asks for it.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LEVELS = 255
_LEAST = 4096  # elements: smaller weights stay as they are
_THROUGH = ("Convert", "Transpose")


def narrow_weights(model: Any) -> int:
    """Narrows the weights of every matrix product and convolution in place; returns how many."""
    ops = importlib.import_module("openvino.opset13")
    done: dict[str, Any] = {}
    for node in list(model.get_ordered_ops()):
        if node.get_type_name() not in ("MatMul", "Convolution"):
            continue
        found = _stored(node)
        if found is None:
            continue
        constant, axis = found
        name = constant.get_friendly_name()
        if name not in done:
            done[name] = _decompressed(ops, np.asarray(constant.data, np.float32), axis)
            _rewire(constant, done[name])
    return len(done)


def _stored(node: Any) -> tuple[Any, int] | None:
    """The constant behind a node's second input, and which of its axes counts output channels; None where it is computed."""
    at, transposed = node.input(1).get_source_output().get_node(), False
    while at.get_type_name() in _THROUGH:
        transposed ^= at.get_type_name() == "Transpose"
        at = at.input(0).get_source_output().get_node()
    if at.get_type_name() != "Constant" or not at.get_element_type().is_real() or int(np.prod(at.shape)) < _LEAST:
        return None
    if node.get_type_name() == "Convolution":
        return (at, 0) if not transposed else None
    if len(at.shape) != 2:
        return None
    rows = transposed ^ bool(node.get_attributes().get("transpose_b", False))
    return at, 0 if rows else 1


def _decompressed(ops: Any, values: NDArray[np.float32], axis: int) -> Any:
    """(convert(q) - convert(z)) · s, which is `values` to within half a step."""
    others = tuple(at for at in range(values.ndim) if at != axis)
    low = np.minimum(values.min(axis=others, keepdims=True), 0)
    high = np.maximum(values.max(axis=others, keepdims=True), 0)
    scale = np.where(high > low, (high - low) / _LEVELS, 1).astype(np.float32)
    zero = np.clip(np.rint(-low / scale), 0, _LEVELS)
    narrow = np.clip(np.rint(values / scale) + zero, 0, _LEVELS).astype(np.uint8)
    wide = ops.subtract(ops.convert(ops.constant(narrow), "f32"), ops.convert(ops.constant(zero.astype(np.uint8)), "f32"))
    return ops.multiply(wide, ops.constant(scale))


def _rewire(constant: Any, made: Any) -> None:
    """Lets everything that reads the constant (behind its cast, where it has one) read what was made."""
    for target in list(constant.output(0).get_target_inputs()):
        reader = target.get_node()
        if reader.get_type_name() == "Convert":
            for behind in list(reader.output(0).get_target_inputs()):
                behind.replace_source_output(made.output(0))
        elif constant.get_element_type().get_type_name() == "f32":
            target.replace_source_output(made.output(0))
