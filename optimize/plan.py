"""What a build will take, said before it starts: memory, disk and time, and whether this machine has them.

Sizes come from the safetensors headers, so nothing is loaded; what a byte of weights costs in each step comes from `FACTORS`, which were
measured. Knows no engine library.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from platemark.errors import InputError
from platemark.optimize.checkpoint import Checkpoint
from platemark.optimize.engines import EngineRequest
from platemark.optimize.specs import Spec, specs

_GIB = 1 << 30
_PART_OF_MEMORY = 0.95  # of what the system says is available: the rest is its own
_MEMINFO = Path("/proc/meminfo")
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"))


@dataclass(frozen=True)
class Factors:
    """Measured costs of a step: `base` bytes of libraries, `weights` bytes for each byte of the component's float32 weights, `seconds` a
    GiB of them, `start` seconds."""

    base: int
    weights: float
    seconds: float
    start: float


# Peak resident memory and processor seconds of single steps: estimates, which benchmarks/export_memory.py can check on the exact SD 1.5
# config; plans from TensorRT-RTX 1.7 on the same UNet (fp32 10.7 GiB, fp16 5.6 GiB for 3.2 GiB of float32 weights, 8.5 s in fp16).
FACTORS: dict[str, Factors] = {
    "export": Factors(base=int(0.75 * _GIB), weights=1.15, seconds=20, start=6),
    "reference": Factors(base=int(0.75 * _GIB), weights=1.05, seconds=8, start=0),
    "onnxruntime": Factors(base=int(0.25 * _GIB), weights=2.1, seconds=10, start=0.5),
    "openvino": Factors(base=int(0.35 * _GIB), weights=2.2, seconds=12, start=1),
    "plan fp32": Factors(base=int(0.5 * _GIB), weights=3.2, seconds=8, start=2),
    "plan fp16": Factors(base=int(0.5 * _GIB), weights=1.7, seconds=3, start=2),
}
# Largest activations in float32, in bytes a pixel of the picture at batch 2: the VAE holds a few maps of 128 channels at full size.
_ACTIVATIONS = {"unet": 3000, "vae_decoder": 6000, "vae_encoder": 4500}
_TEXTS = 4 << 20  # bytes of configs, tokenizers and headers
_PIPELINE = ("text_encoder", "unet", "vae_decoder")


@dataclass(frozen=True)
class Step:
    """One step: what for, peak memory in bytes, bytes that it leaves on disk, processor seconds on one core like those measured."""

    what: str
    memory: int
    disk: int
    seconds: float


@dataclass(frozen=True)
class Limits:
    """What the machine has for a build to `out`, in bytes; None where it does not tell."""

    memory: int | None
    disk: int | None


@dataclass(frozen=True)
class Plan:
    """The steps of a build, and the machine's limits. Estimates: within about a quarter for memory, a factor of two for time."""

    steps: tuple[Step, ...]
    limits: Limits
    smaller: str = "take a smaller checkpoint"

    @property
    def memory(self) -> int:
        """The peak: torch's steps and the engines' do not overlap."""
        return max(step.memory for step in self.steps)

    @property
    def disk(self) -> int:
        return sum(step.disk for step in self.steps)

    @property
    def seconds(self) -> float:
        return sum(step.seconds for step in self.steps)

    @property
    def fits(self) -> bool:
        enough = self.limits.memory is None or self.memory <= self.limits.memory
        return enough and (self.limits.disk is None or self.disk <= self.limits.disk)

    def as_dict(self) -> dict[str, Any]:
        """JSON types."""
        whole = {"memory": self.memory, "disk": self.disk, "seconds": round(self.seconds, 1), "fits": self.fits}
        return {**whole, "limits": asdict(self.limits), "steps": [asdict(step) for step in self.steps]}


def make_plan(checkpoint: Checkpoint, out: Path, request: EngineRequest | None, merges: bool, limits: Limits | None = None) -> Plan:
    """The plan of a build. `merges`: whether LoRAs change the weights. `limits`: None asks this machine.

    Of the checkpoint only configs and tensors are looked at, so it may be one that is not unpacked yet.
    """
    wide = any(tensor.dtype in ("F32", "F64") for part in checkpoint.parts.values() for tensor in part.tensors.values())
    smaller = "save the checkpoint in float16, which takes half the room" if wide else "take a smaller checkpoint"
    return Plan(tuple(_steps(checkpoint, request, merges)), limits or limits_here(out), smaller)


def _steps(checkpoint: Checkpoint, request: EngineRequest | None, merges: bool) -> Iterator[Step]:
    files = sum(tensor.length for part in checkpoint.parts.values() for tensor in part.tensors.values()) + _TEXTS
    copies = 2 if merges else 1
    yield Step("copying the checkpoint", 64 << 20, files * copies, files * copies / _GIB * 3)
    found = specs(checkpoint)
    sizes = {name: _fp32(checkpoint, spec) for name, spec in found.items()}
    height, width = checkpoint.native_size
    for name, size in sizes.items():
        active = _ACTIVATIONS.get(name, 0) * height * width
        yield _step(f"{name}: export", "export", size, disk=1 << 20)
        yield _step(f"{name}: reference", "reference", size, active=active)
        yield _step(f"{name}: onnxruntime", "onnxruntime", size, active=active)
        if request is not None:
            yield _engine_step(name, request, size, active)
    everything, active = sum(sizes[name] for name in _PIPELINE), _ACTIVATIONS["vae_decoder"] * height * width // 2
    yield _step("the whole pipeline: reference", "reference", everything, active=active)
    yield _step("the whole pipeline: onnxruntime", "onnxruntime", everything, active=active)
    if request is not None and not request.plans:
        yield _step(f"the whole pipeline: {request.backend}", request.backend, everything, active=active)


def _engine_step(name: str, request: EngineRequest, size: int, active: int) -> Step:
    if request.tune:
        return _step(f"{name}: tuning", "openvino", size, active=active)
    if not request.plans:
        return _step(f"{name}: {request.backend}", request.backend, size, active=active)
    kept = size // 2 if request.precision == "fp16" else size
    return _step(f"{name}: plan", f"plan {request.precision}", size, disk=kept + (1 << 20))


def _step(what: str, kind: str, size: int, *, active: int = 0, disk: int = 0) -> Step:
    factors = FACTORS.get(kind, FACTORS["onnxruntime"])
    memory = factors.base + int(factors.weights * size) + active
    return Step(what, memory, disk, factors.start + factors.seconds * size / _GIB)


def _fp32(checkpoint: Checkpoint, spec: Spec) -> int:
    """Float32 bytes of what a component computes with: of a VAE's weights, its own half."""
    half = {"vae_decoder": ("decoder.", "post_quant"), "vae_encoder": ("encoder.", "quant_conv")}.get(spec.component)
    tensors = checkpoint.parts[spec.part].tensors.values()
    return 4 * sum(tensor.size for tensor in tensors if tensor.is_float and (half is None or tensor.name.startswith(half)))


def limits_here(out: Path) -> Limits:
    """Memory that is available now (of the machine or of the control group, whichever is less), and room where `out` will be.

    Also counted as room is what a killed build to `out` left behind: the next one goes on in it.
    """
    place = out.resolve()
    while not place.exists():
        place = place.parent
    memory = [value for value in (_available(), _cgroup()) if value is not None]
    held = sum(path.stat().st_size for path in out.with_name(f"{out.name}.partial").rglob("*") if path.is_file())  # of a killed build
    return Limits(int(min(memory) * _PART_OF_MEMORY) if memory else None, shutil.disk_usage(place).free + held)


def _available() -> int | None:
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration, IndexError):
        pass
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _cgroup() -> int | None:
    try:
        most, used = (int(path.read_text(encoding="ascii")) for path in _LIMITS)  # "max" where there is no limit: no number
    except (OSError, ValueError):
        return None
    return max(0, most - used)


def check_fits(plan: Plan, request: EngineRequest | None) -> None:
    """Raises `InputError`, naming the smaller option, where the machine has too little memory or room for a build."""
    limits = plan.limits
    if limits.disk is not None and plan.disk > limits.disk:
        message = f"the build needs about {_gib(plan.disk)} on disk, and {_gib(limits.disk)} are free"
        raise InputError(message, f"make room, name another output folder, or {_smaller(request, plan)}")
    if limits.memory is not None and plan.memory > limits.memory:
        step = max(plan.steps, key=lambda step: step.memory)
        message = f"{step.what} needs about {_gib(step.memory)} of memory, and {_gib(limits.memory)} are available"
        raise InputError(message, f"end other programs, build on a larger machine, or {_smaller(request, plan)}")


def _smaller(request: EngineRequest | None, plan: Plan) -> str:
    """The next smaller thing to ask for."""
    if request is not None and request.plans and request.precision == "fp32":
        return "build plans with --precision fp16, which take half of it"
    if request is not None:
        return "leave --backend out: the portable graphs take less"
    return plan.smaller


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= _GIB // 10 else f"{size / 2**20:.0f} MiB"


def lines(plan: Plan) -> Iterator[str]:
    """The plan as a table."""
    width = max(len(step.what) for step in plan.steps)
    yield f"{'step':{width}}  {'memory':>9}  {'disk':>9}  {'time':>7}"
    for step in plan.steps:
        disk = _gib(step.disk) if step.disk else "-"
        yield f"{step.what:{width}}  {_gib(step.memory):>9}  {disk:>9}  {_time(step.seconds):>7}"
    yield f"{'peak and sums':{width}}  {_gib(plan.memory):>9}  {_gib(plan.disk):>9}  {_time(plan.seconds):>7}"
    memory, disk = (("unknown" if value is None else _gib(value)) for value in (plan.limits.memory, plan.limits.disk))
    yield f"{'available here':{width}}  {memory:>9}  {disk:>9}  {'fits' if plan.fits else 'too little':>7}"


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 100 else f"{seconds:.0f} s"
