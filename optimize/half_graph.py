"""The float16 graph of a component: made, with the nodes that would overflow left in float32, and compared as a GPU would round it.

Knows no engine library but ONNX Runtime, in which it compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from platemark.errors import ParityError
from platemark.optimize.passes.half import constant_values, to_half
from platemark.optimize.passes.watch import magnitudes, rounded
from platemark.optimize.specs import Spec
from platemark.optimize.staging import write_file
from platemark.runtime.backends import onnxruntime
from platemark.runtime.manifest import Parity
from platemark.runtime.parity import BOUNDS, Recorded, check

HALF_MAX = 65504.0
_MARGIN = 4  # prompts and noise that were not recorded reach further
_MASK = 1e30  # constants from here on stand for infinity, in attention masks


@dataclass(frozen=True)
class HalfGraph:
    """A graph in float16 but for the nodes `kept`; `tried` says what was found on the way."""

    data: bytes
    parity: Parity
    kept: list[str]
    tried: list[str]


def half_graph(spec: Spec, path: Path, recorded: list[Recorded], reference: str) -> HalfGraph:
    """The float16 graph of the float32 graph at `path`, compared with the recordings. `reference` names what recorded them.

    First the whole graph; where a value comes near what float16 holds, the nodes that make or read it stay float32.
    Raises `ParityError`, whose message says what was tried, where it is over its bound all the same.
    """
    model = onnx.load(path, load_external_data=False)
    kept, why = overflowing(model, magnitudes(model, path, [one.inputs for one in recorded]))
    tried = [f"fp16 throughout: {why}; {len(kept)} nodes stay float32"] if kept else []
    to_half(model, kept)
    try:
        parity = _compared(spec, model, path, recorded, reference)
    except ParityError as error:
        said = [*tried, f"fp16{' with them' if kept else ''}: {error.message} (bound {BOUNDS['fp16']:.0e})"]
        raise ParityError("; ".join(said), error.remedy) from error
    return HalfGraph(model.SerializeToString(deterministic=True), parity, kept, tried)


def overflowing(model: onnx.ModelProto, found: dict[str, float]) -> tuple[list[str], str]:
    """The nodes that make or read a value beyond float16 (with a margin), in order, and the largest in words."""
    constant = constant_values(model.graph)
    large = {name: size for name, size in found.items() if size > HALF_MAX / _MARGIN and not (name in constant and size > _MASK)}
    kept = [n.name for n in model.graph.node if large.keys() & {*n.input, *n.output} and not set(n.output) <= constant]
    if not kept:
        return [], ""
    worst = max(large, key=large.__getitem__)
    maker = next((node.name for node in model.graph.node if worst in node.output), worst)
    return kept, f"{len(large)} values pass {HALF_MAX / _MARGIN:.0f}, the largest {large[worst]:.3g} at {maker}"


def _compared(spec: Spec, half: onnx.ModelProto, beside: Path, recorded: list[Recorded], reference: str) -> Parity:
    trial = beside.with_name(f".{spec.component}.trial.onnx")
    label = f"{onnxruntime.label()}, rounded to float16 behind every node"
    try:
        write_file(trial, rounded(half).SerializeToString(deterministic=True))
        return check(spec.component, recorded, onnxruntime.compile_graph(trial), (reference, label), "fp16")
    finally:
        trial.unlink(missing_ok=True)
