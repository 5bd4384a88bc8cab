"""NVIDIA TensorRT-RTX: plans built ahead of time, on any x86-64 machine, for GPUs that are somewhere else.

One plan serves every compute capability that was named when it was built; the GPU's driver finishes it at first use there. Without a
driver nothing can be deserialized, so a plan is checked by its header, size, ports and profile alone, and says `plan built`.
Its targets do not include SM 9.0 (H100, H200): those take the native `tensorrt`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from platemark.errors import EngineError, InputError
from platemark.runtime import devices
from platemark.runtime.backends import tensorrt
from platemark.runtime.backends.tensorrt import Plan, Range, Wanted

NAME, EXTRA = "TensorRT-RTX", "tensorrt-rtx"
_FEATURES = ("refit", "weight-streaming")
# The start of a plan as release 1.7 writes it (observed; NVIDIA does not publish the format): magic, 12 bytes, the plan's length,
# then major, minor, patch and build number, one byte each.
_MAGIC, _LENGTH, _VERSION = b"vtrt", slice(16, 24), slice(24, 28)


def library() -> Any:
    """The library. Raises `MissingExtra`."""
    return tensorrt.load_library("tensorrt_rtx", NAME, EXTRA)


def version() -> str:
    """The installed library's version. Raises `MissingExtra`."""
    return str(library().__version__)


def targets() -> tuple[str, ...]:
    """The compute capabilities that it can build for: `sm_75`, … Raises `MissingExtra`."""
    found = (name for name in dir(library().ComputeCapability) if name.startswith("SM"))
    return tuple(sorted((f"sm_{name[2:]}" for name in found), key=lambda target: int(target[3:])))


def check_targets(wanted: Sequence[str]) -> tuple[str, ...]:
    """The targets, in order and once each. Raises `InputError` where none is named or one cannot be built for."""
    known = targets()
    if not wanted:
        raise InputError(f"{NAME} builds for GPUs that are named", f"add --target, once or more: {', '.join(known)}")
    for target in wanted:
        if target not in known:
            raise InputError(
                f"{NAME} {version()} builds no engines for {devices.spoken(target)}",
                f"use --backend tensorrt on a machine with that GPU; the targets here are {', '.join(known)}",
            )
    return tuple(sorted(set(wanted), key=known.index))


def check_features(wanted: Sequence[str]) -> tuple[str, ...]:
    """As `tensorrt.check_features`: a plan for several versions needs a library that is not among NVIDIA's packages for this one, and one
    for several GPUs names them as targets."""
    return tensorrt.checked_features(wanted, _FEATURES, NAME)


def build_plan(
    name: str, graph: bytes, folder: Path, targets: Sequence[str], profile: Mapping[str, Range], features: Sequence[str] = ()
) -> Plan:
    """As `tensorrt.build_plan`, for GPUs that need not be here; the plan's header is checked. (Its timing cache does nothing since 1.2.)"""
    wanted = Wanted(check_targets(targets), profile, check_features(features))
    plan = tensorrt.build_with(library(), NAME, name, graph, folder, wanted)
    check_plan(name, plan.data, plan.version)
    return plan


def check_plan(name: str, data: bytes, wanted: str) -> None:
    """Raises `EngineError` where the bytes are not a whole plan of the version `wanted` (`1.7.1.116`)."""
    remedy = "build it again with `platemark build`"
    if data[:4] != _MAGIC or len(data) < _VERSION.stop:
        raise EngineError(f"the plan of {name} is no {NAME} plan", remedy)
    length = int.from_bytes(data[_LENGTH], "little")
    if length != len(data):
        raise EngineError(f"the plan of {name} is cut short: {len(data)} bytes of {length}", remedy)
    found = ".".join(str(number) for number in data[_VERSION])
    if found != wanted:
        raise EngineError(f"the plan of {name} was built by {NAME} {found}, this is {wanted}", remedy)
