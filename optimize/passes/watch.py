"""Looks into a graph while it runs: how large every value becomes, and where a float16 graph parts from its float32 original.

Values are reduced to one number inside the graph, so that a large network is watched in the memory that it needs anyway. Runs in ONNX
Runtime on the CPU, which has no float16 arithmetic and leaves out roundings between nodes; `rounded` puts them back as casts that it keeps.
Knows nothing about where graphs come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from platemark.optimize.passes.half import constant_values, float_values
from platemark.optimize.staging import write_file
from platemark.runtime.backends.onnxruntime import compile_graph
from platemark.runtime.engine import Array

_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16
_WATCHED = "watched/"
_TWIN = "half graph/"


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a float16 graph whose nodes compute in float32 and round every result to float16, as GPUs with float32 sums do."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    halves = _half_values(out.graph)
    nodes: list[onnx.NodeProto] = []
    wide: set[str] = set()
    for node in out.graph.node:
        if node.op_type == "Cast" or halves.isdisjoint([*node.input, *node.output]):
            nodes.append(node)
            continue
        for index, name in enumerate(node.input):
            if name in halves:
                if name not in wide:
                    wide.add(name)
                    nodes.append(helper.make_node("Cast", [name], [f"{name}/wide"], f"{name}/wide", to=_FLOAT))
                node.input[index] = f"{name}/wide"
        behind = []
        for index, name in enumerate(node.output):
            if name in halves:
                node.output[index] = f"{name}/exact"
                behind.append(helper.make_node("Cast", [f"{name}/exact"], [name], f"{name}/round", to=_HALF))
        nodes += [node, *behind]
    del out.graph.node[:]
    out.graph.node.extend(nodes)
    return out


def _half_values(graph: onnx.GraphProto) -> set[str]:
    """The float16 values that are no stored weights: those that `to_half` named."""
    return {name for node in graph.node for name in node.output if name.endswith("/half")}


def magnitudes(model: onnx.ModelProto, beside: Path, cases: Iterable[dict[str, Array]]) -> dict[str, float]:
    """Float32 value → its largest magnitude over the cases; infinite where it is not finite. Weights that nodes read are among them."""
    floats = float_values(model.graph)
    names = [name for node in model.graph.node for name in node.output if name in floats]
    names += [tensor.name for tensor in model.graph.initializer if tensor.name in floats]
    nodes = []
    for name in names:
        nodes.append(helper.make_node("Abs", [name], [f"{_WATCHED}{name}/abs"]))
        nodes.append(helper.make_node("ReduceMax", [f"{_WATCHED}{name}/abs"], [f"{_WATCHED}{name}"], keepdims=0))
    found = dict.fromkeys(names, 0.0)
    for values in _run(model, nodes, [_WATCHED + name for name in names], beside, cases):
        for name in names:
            value = float(values[_WATCHED + name])
            found[name] = max(found[name], value if np.isfinite(value) else np.inf)
    return found


def errors(model: onnx.ModelProto, half: onnx.ModelProto, beside: Path, cases: Sequence[dict[str, Array]]) -> dict[str, float]:
    """Value → its relative L2 error in the float16 graph `half` (as `rounded`) of the float32 graph `model`, the worst of the cases."""
    both, twins = _joined(model, rounded(half))
    nodes = []
    for name, twin in twins.items():
        nodes.append(helper.make_node("Cast", [twin], [f"{_WATCHED}{name}/twin"], to=_FLOAT))
        nodes.append(helper.make_node("Sub", [name, f"{_WATCHED}{name}/twin"], [f"{_WATCHED}{name}/off"]))
        nodes.append(helper.make_node("ReduceL2", [f"{_WATCHED}{name}/off"], [f"{_WATCHED}{name}/error"], keepdims=0))
        nodes.append(helper.make_node("ReduceL2", [name], [f"{_WATCHED}{name}/size"], keepdims=0))
    wanted = [f"{_WATCHED}{name}/{what}" for name in twins for what in ("error", "size")]
    found = dict.fromkeys(twins, 0.0)
    for values in _run(both, nodes, wanted, beside, cases):
        for name in twins:
            error, size = float(values[f"{_WATCHED}{name}/error"]), float(values[f"{_WATCHED}{name}/size"])
            found[name] = max(found[name], error / size if size and np.isfinite(error) else float(error != 0) and np.inf)
    return found


def _joined(model: onnx.ModelProto, half: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Both graphs in one, on the same inputs and weights, and for each value of the first that depends on an input its twin."""
    both = onnx.ModelProto()
    both.CopyFrom(model)
    shared = {port.name for port in model.graph.input} | {tensor.name for tensor in model.graph.initializer}
    made = {name for node in half.graph.node for name in node.output}
    names = {name: f"{_TWIN}{name}" for name in made - shared}
    for node in half.graph.node:
        copy = both.graph.node.add()
        copy.CopyFrom(node)
        copy.name = f"{_TWIN}{node.name}"
        for place in (copy.input, copy.output):
            for index, name in enumerate(place):
                place[index] = names.get(name, name)
    floats, constant = float_values(model.graph), constant_values(model.graph)
    values = [name for node in model.graph.node for name in node.output if name in floats and name not in constant]
    twins = {name: next((names[one] for one in (f"{name}/half", f"{name}/full", name) if one in names), "") for name in values}
    return both, {name: twin for name, twin in twins.items() if twin}


def _run(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], wanted: list[str], beside: Path, cases: Iterable[dict[str, Array]]
) -> Iterable[dict[str, Array]]:
    """The wanted scalars of every case."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.node.extend(nodes)
    watched.graph.output.extend(helper.make_tensor_value_info(name, _FLOAT, []) for name in wanted)
    trial = beside.with_name(f".{beside.stem}.watched.onnx")
    try:
        write_file(trial, watched.SerializeToString())
        engine = compile_graph(trial)
        for case in cases:
            yield engine.run(case)
    finally:
        trial.unlink(missing_ok=True)
