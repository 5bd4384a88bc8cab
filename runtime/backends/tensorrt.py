"""NVIDIA TensorRT: turns a graph into a plan. `tensorrt_rtx` shares all of this but the library and which GPUs it can build for.

Builds plans and runs none. The native library builds for the GPU that is present only; it comes from NVIDIA's own package index.
Knows nothing about what a graph is for.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platemark.errors import EngineError, InputError, MissingExtra
from platemark.runtime import devices

Range = tuple[int, int, int]  # smallest, usual, largest
NAME, EXTRA = "TensorRT", "tensorrt"
_REMEDY = "build for the onnxruntime backend, or report this with the node's name"


# What a plan can be asked to be beyond the usual, in the builder's words. A refittable plan takes new weights without a build; streamed
# weights need not fit the GPU's memory; the compatible ones run on later versions, or on Ampere and later GPUs, and are slower.
FEATURES = {
    "refit": "REFIT_INDIVIDUAL",
    "weight-streaming": "WEIGHT_STREAMING",
    "version-compatible": "VERSION_COMPATIBLE",
    "hardware-compatible": "AMPERE_PLUS",
}


@dataclass(frozen=True)
class Plan:
    """A serialized engine, never run. `inputs`: name → {dtype, shape with names for free dims}; `layers`: (name, type) before fusion.

    `features` as in `FEATURES`.
    """

    data: bytes
    version: str
    inputs: dict[str, dict[str, Any]]
    outputs: dict[str, dict[str, Any]]
    profile: dict[str, Range]
    layers: tuple[tuple[str, str], ...]
    features: tuple[str, ...] = ()

    def report(self) -> dict[str, Any]:
        """What is known of a plan that no GPU has seen, as JSON types."""
        kinds = Counter(kind for _, kind in self.layers)
        return {
            "state": "plan built",
            "version": self.version,
            "bytes": len(self.data),
            "inputs": self.inputs,
            "outputs": self.outputs,
            "profile": self.profile,
            "features": list(self.features),
            "layers_by_type": dict(sorted(kinds.items())),
            "layers": [list(layer) for layer in self.layers],
        }


def library() -> Any:
    """The native library. Raises `MissingExtra`."""
    return load_library("tensorrt", NAME, EXTRA)


def load_library(module: str, name: str, extra: str) -> Any:
    """The library by its import name. Raises `MissingExtra`."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(f"the {name} backend", extra) from error


def version() -> str:
    """The installed library's version. Raises `MissingExtra`."""
    return str(library().__version__)


def check_targets(targets: Sequence[str]) -> tuple[str, ...]:
    """The targets to build for; the GPU present where none is named. Raises `InputError` where that is not the GPU present."""
    here = devices.gpu()
    if here is None:
        raise InputError(
            "native TensorRT builds on the GPU that it builds for, and this machine has no NVIDIA driver or GPU",
            "build there, or ahead of time with --backend tensorrt-rtx --target sm_89",
        )
    for target in targets:
        if target != here.target:
            raise InputError(
                f"native TensorRT builds for the GPU present, which is {devices.spoken(here.target)}, not {devices.spoken(target)}",
                f"leave --target out, or name {here.target}",
            )
    return (here.target,)


def check_features(wanted: Sequence[str]) -> tuple[str, ...]:
    """The features, in order and once each. Raises `InputError` for one that is none."""
    return checked_features(wanted, FEATURES, NAME)


def checked_features(wanted: Sequence[str], known: Collection[str], spoken: str) -> tuple[str, ...]:
    """As `check_features`, of the `known` ones of the library called `spoken`."""
    for feature in wanted:
        if feature not in known:
            raise InputError(f"{spoken} plans cannot be {feature[:40]!r}", f"the features here are {', '.join(known)}")
    return tuple(feature for feature in FEATURES if feature in wanted)


def build_plan(
    name: str, graph: bytes, folder: Path, targets: Sequence[str], profile: Mapping[str, Range], features: Sequence[str] = ()
) -> Plan:
    """The plan of an ONNX graph whose weights lie in `folder`. `name` is for errors; `profile` gives each free dim's range.

    How long kernels took is remembered by this process, so that equal layers of the next network are not timed again.
    Raises `EngineError` (naming the node where the graph cannot be taken), `InputError` (a range is missing or impossible),
    `MissingExtra`.
    """
    wanted = Wanted(check_targets(targets), profile, check_features(features), _TIMINGS)
    return build_with(library(), NAME, name, graph, folder, wanted)


@dataclass(frozen=True)
class Wanted:
    """What a plan is for. `timings`: kernel timings of earlier builds, taken and given back; None where the library keeps none."""

    targets: Sequence[str]
    profile: Mapping[str, Range]
    features: tuple[str, ...] = ()
    timings: bytearray | None = None


_TIMINGS = bytearray()


def build_with(trt: Any, spoken: str, name: str, graph: bytes, folder: Path, wanted: Wanted) -> Plan:
    """As `build_plan`, with the library `trt`, called `spoken` in errors. Targets are set where the library can."""
    logger = _collector(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    _parse(trt, logger, network, f"{spoken} cannot take {name}", graph, folder)
    allow_unfused_attention(trt, network)
    config = _config(trt, builder, wanted)
    ranges = _add_profile(builder, config, network, name, wanted.profile)
    inputs, outputs = _ports(trt, network)
    layers = tuple((layer.name, layer.type.name) for layer in map(network.get_layer, range(network.num_layers)))
    if not outputs:
        raise EngineError(f"{spoken} cannot take {name}: it is no ONNX graph", _REMEDY)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise EngineError(f"{spoken} cannot build {name}: {logger.last() or 'it gave no reason'}", _REMEDY)
    if wanted.timings is not None:
        wanted.timings[:] = bytes(config.get_timing_cache().serialize())
    return Plan(bytes(serialized), str(trt.__version__), inputs, outputs, ranges, layers, wanted.features)


def _config(trt: Any, builder: Any, wanted: Wanted) -> Any:
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # ten bits of mantissa are not fp32
    if hasattr(config, "set_compute_capability"):
        config.num_compute_capabilities = len(wanted.targets)
        for index, target in enumerate(wanted.targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, target.replace("_", "").upper()), index)
    for feature in wanted.features:
        if feature == "hardware-compatible":
            config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, FEATURES[feature])
        else:
            config.set_flag(getattr(trt.BuilderFlag, FEATURES[feature]))
    if wanted.timings is not None:
        config.set_timing_cache(config.create_timing_cache(bytes(wanted.timings)), ignore_mismatch=True)
    return config


def _parse(trt: Any, logger: Any, network: Any, failed: str, graph: bytes, folder: Path) -> None:
    parser = trt.OnnxParser(network, logger)
    # The path stands for a file of the folder: the parser looks for the weights beside it, and opens nothing of that name.
    if parser.parse(graph, str(folder / "graph.onnx")):
        return
    if parser.num_errors:
        error = parser.get_error(0)
        node = error.node_name() or "the graph"
        raise EngineError(f"{failed}: {node} ({error.node_operator() or 'no operator'}): {' '.join(error.desc().split())[:200]}", _REMEDY)
    raise EngineError(f"{failed}: {logger.last() or 'it gave no reason'}", _REMEDY)


def allow_unfused_attention(trt: Any, network: Any) -> int:
    """Lets the builder take attention apart where it has no fused kernel, as in float32. Returns the number of attention operators."""
    count = 0
    for layer in map(network.get_layer, range(network.num_layers)):
        if layer.type.name == "ATTENTION_INPUT":
            layer.__class__ = trt.IAttentionInputLayer  # the binding's own way of downcasting
            layer.attention.decomposable = True
            count += 1
    return count


def _add_profile(builder: Any, config: Any, network: Any, name: str, profile: Mapping[str, Range]) -> dict[str, Range]:
    """One optimization profile for all inputs; the ranges of the dims that it used."""
    made, used = builder.create_optimization_profile(), dict[str, Range]()
    for port in map(network.get_input, range(network.num_inputs)):
        ranges: list[Range] = []
        for axis, size in enumerate(port.shape):
            dim = port.get_dimension_name(axis)
            ranges.append((size, size, size) if size >= 0 else _range(profile, name, dim))
            if size < 0:
                used[dim] = ranges[-1]
        made.set_shape(port.name, *(tuple(one[k] for one in ranges) for k in range(3)))
    config.add_optimization_profile(made)
    return used


def _range(profile: Mapping[str, Range], name: str, dim: str | None) -> Range:
    if dim is None or dim not in profile:
        raise InputError(f"{name} has a free dim {dim!r} that the profile gives no sizes for", "give them with --profile")
    low, usual, high = profile[dim]
    if not 1 <= low <= usual <= high:
        raise InputError(f"{name}: the sizes {low}, {usual}, {high} of {dim} are not in order", "give smallest, usual and largest")
    return low, usual, high


def _ports(trt: Any, network: Any) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    both = ({port.name: _port(trt, port) for port in ports} for ports in (inputs, outputs))
    first, second = both
    return first, second


def _port(trt: Any, port: Any) -> dict[str, Any]:
    shape = [size if size >= 0 else port.get_dimension_name(axis) or "?" for axis, size in enumerate(port.shape)]
    return {"dtype": trt.nptype(port.dtype).__name__, "shape": shape}


def _collector(trt: Any) -> Any:
    """A logger that keeps what goes wrong instead of writing it to the terminal."""

    class Collector(trt.ILogger):  # type: ignore[misc]  # the library ships no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.lines.append(" ".join(message.split())[:300])

        def last(self) -> str:
            return self.lines[-1] if self.lines else ""

    return Collector()
