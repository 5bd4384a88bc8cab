"""Engines beyond the portable graph, made while a bundle is built: compared where they can run here, built as plans where they cannot.

Knows which components and sizes there are, and nothing of a backend but its module's functions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from platemark.errors import InputError, ParityError
from platemark.optimize.half_graph import half_graph
from platemark.optimize.specs import Spec
from platemark.optimize.staging import write_file
from platemark.runtime import backends
from platemark.runtime.devices import parse_target
from platemark.runtime.engine import sizes_of
from platemark.runtime.manifest import BuiltEngine, Precision
from platemark.runtime.parity import BOUNDS, Recorded, check

Range = tuple[int, int, int]
_PRECISIONS: dict[str, Precision] = {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16", "int8": "int8"}
SAFEST: Precision = "fp32"
_PLANS: tuple[Precision, ...] = ("fp32", "fp16")
_BATCH = dict.fromkeys(("unet", "controlnet", "text_encoder", "text_encoder_2"), (1, 2, 16))  # the rest sees pictures one by one


@dataclass(frozen=True)
class EngineRequest:
    """What `build` is asked for beyond the portable graphs: a backend's module name and, for plans, the GPUs and sizes.

    `features`: what plans are beyond the usual, as in `tensorrt.FEATURES`. `tune`: try what this machine can run instead, component by
    component, and keep the fastest.
    `profiles`: component → free dim → (smallest, usual, largest), over those of `default_profile`.
    """

    backend: str
    precision: Precision = "fp32"
    targets: tuple[str, ...] = ()
    profiles: Mapping[str, Mapping[str, Range]] = field(default_factory=dict)
    features: tuple[str, ...] = ()
    tune: bool = False

    @property
    def module(self) -> ModuleType:
        return backends.find(self.backend)

    @property
    def plans(self) -> bool:
        """Whether its engines are plans, which cannot be run by this version."""
        return hasattr(self.module, "build_plan")


def request_for(
    backend: str | None, precision: str, targets: Sequence[str], profiles: Sequence[str], features: Sequence[str] = (), tune: bool = False
) -> EngineRequest | None:
    """The request in a user's words: targets as `sm_89`, profiles as `unet:height=32,64,128`. None without a backend, unless `tune`.

    Raises `InputError`.
    """
    if tune and (backend is not None or targets or profiles or features or precision != "fp32"):
        raise InputError("--tune chooses backend and precision by itself", "leave --backend and what belongs to it out")
    if tune:
        return EngineRequest("onnxruntime", tune=True)
    if backend is None:
        if targets or profiles or features or precision != "fp32":
            raise InputError("--precision, --target, --profile and --feature are of another backend's engines", "name it with --backend")
        return None
    if precision not in _PRECISIONS:
        raise InputError(f"there is no precision {precision[:20]!r}", f"choose one of {', '.join(BOUNDS)}")
    backends.find(backend)
    named = tuple(parse_target(target) for target in targets)
    return EngineRequest(backend, _PRECISIONS[precision], named, _profiles(profiles), tuple(features))


def _profiles(texts: Sequence[str]) -> dict[str, dict[str, Range]]:
    found: dict[str, dict[str, Range]] = {}
    for text in texts:
        match = re.fullmatch(r"([a-z_]+):([a-z]+)=(\d{1,6}),(\d{1,6}),(\d{1,6})", text.strip())
        if match is None:
            raise InputError(f"{text[:60]!r} is no profile", "write it as unet:height=32,64,128: component, dim, smallest, usual, largest")
        found.setdefault(match[1], {})[match[2]] = (int(match[3]), int(match[4]), int(match[5]))
    return found


def checked(request: EngineRequest) -> EngineRequest:
    """The request with its targets in order. Raises `InputError` and `MissingExtra` for all that can be refused before any work."""
    if request.tune:
        return request
    module = request.module
    if request.plans:
        module.version()
        if request.precision not in _PLANS:
            raise InputError(f"{request.backend} plans are {' or '.join(_PLANS)}, not {request.precision}", "choose one with --precision")
        return replace(request, targets=module.check_targets(request.targets), features=module.check_features(request.features))
    if not hasattr(module, "load_blob"):
        raise InputError(f"{request.backend} has no engines to build beyond the portable graphs", "leave --backend out")
    if request.targets or request.profiles or request.features:
        raise InputError(f"{request.backend} compiles where it runs, for every size", "leave --target, --profile and --feature out")
    module.check_precision(request.precision)
    return request


def default_profile(spec: Spec) -> dict[str, Range]:
    """Free dim → (smallest, usual, largest): half and twice the usual height and width; tokens up to one prompt, four in the UNet."""
    found: dict[str, Range] = {"batch": _BATCH.get(spec.component, (1, 1, 4))}
    for dim, (step, usual) in spec.limits.items():
        if dim == "tokens":
            found[dim] = (1, usual, usual * 4 if spec.component in ("unet", "controlnet") else usual)
        else:
            found[dim] = (max(step, usual // 2 // step * step), usual, usual * 2)
    return found


def with_derived(spec: Spec, profile: Mapping[str, Range]) -> dict[str, Range]:
    """The profile with the dims that are made of others (`height/8`), for the inputs of a component."""
    found = dict(profile)
    low, usual, high = ({dim: sizes[k] for dim, sizes in profile.items()} for k in range(3))
    for dim in (dim for port in spec.inputs for dim in port.shape if isinstance(dim, str) and ("*" in dim or "/" in dim)):
        found[dim] = (sizes_of((dim,), low)[0], sizes_of((dim,), usual)[0], sizes_of((dim,), high)[0])
    return found


def make_engine(request: EngineRequest, spec: Spec, recorded: list[Recorded], stage: Path, reference: str) -> tuple[BuiltEngine, list[str]]:
    """The record of one component's engine, and the files (POSIX paths) that were written for it.

    A precision that is over its bound is given up for float32, and the record says so; a plan's float16 graph first keeps those nodes in
    float32 that would overflow. `reference` names what `recorded` holds the outputs of. Raises `ParityError`, `EngineError`, `InputError`.
    """
    if request.plans:
        return _plan(request, spec, recorded, stage, reference)
    tried: list[str] = []
    for precision in dict.fromkeys((request.precision, SAFEST)):
        try:
            return in_precision(request.backend, precision, spec, recorded, stage, reference, tried), []
        except ParityError as error:
            if precision == SAFEST:
                raise
            tried.append(f"{precision}: {error.message} (bound {BOUNDS[precision]:.0e})")
    raise AssertionError("the safest precision returns or raises")


def in_precision(
    backend: str, precision: Precision, spec: Spec, recorded: list[Recorded], stage: Path, reference: str, tried: list[str]
) -> BuiltEngine:
    """The record of one component's engine in one precision, compiled here. `tried` is what was given up before. Raises `ParityError`."""
    module = backends.find(backend)
    engine = module.compile_graph(stage / spec.graph, precision=precision)
    return BuiltEngine(
        component=spec.component,
        backend=backend,
        version=module.version(),
        precision=precision,
        device=module.device(),
        state="compared",
        parity=check(spec.component, recorded, engine, (reference, module.label()), precision),
        tried=tried,
    )


def _plan(request: EngineRequest, spec: Spec, recorded: list[Recorded], stage: Path, reference: str) -> tuple[BuiltEngine, list[str]]:
    """A plan, from a graph that was compared in ONNX Runtime; in float32 where the float16 graph is over its bound."""
    path, half, tried = stage / spec.graph, None, list[str]()
    if request.precision == "fp16":
        try:
            half = half_graph(spec, path, recorded, reference)
        except ParityError as error:
            tried = [error.message]
    graph = half.data if half else path.read_bytes()
    profile = with_derived(spec, {**default_profile(spec), **request.profiles.get(spec.component, {})})
    plan = request.module.build_plan(spec.component, graph, path.parent, request.targets, profile, request.features)
    place = f"engines/{request.backend}-{plan.version}-{'-'.join(request.targets)}"
    files = {f"{place}/{spec.component}.plan": plan.data, f"{place}/{spec.component}.json": _json(plan.report())}
    for name, data in files.items():
        write_file(stage / name, data)
    record = BuiltEngine(
        component=spec.component,
        backend=request.backend,
        version=plan.version,
        precision="fp16" if half else "fp32",
        device=" ".join(request.targets),
        profile=plan.profile,
        file=next(iter(files)),
        state="plan built",
        graph_parity=half.parity if half else None,
        kept=half.kept if half else [],
        tried=half.tried if half else tried,
    )
    return record, list(files)


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
