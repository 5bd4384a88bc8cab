"""Compares engines with their torch reference, on recorded inputs, and refuses what is off.

The references are computed in this process, by the very modules that were exported. Knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from platemark.errors import CheckpointError, ParityError
from platemark.optimize.specs import INT, Spec
from platemark.runtime.engine import Array, Engine, TensorSpec, sizes_of
from platemark.runtime.manifest import EndToEnd, Parity
from platemark.runtime.parity import BOUNDS, PRECISIONS, Recorded, check, compare

__all__ = ["BOUNDS", "Recorded", "check_end_to_end", "check_engine", "compare", "make_cases", "psnr", "record"]

END_TO_END_PSNR = {name: bound.psnr for name, bound in PRECISIONS.items()}
PSNR_CEILING = 200.0  # dB: recorded for images that are equal, where PSNR has no finite value
_REMEDY = "build again; if it fails again, the weights changed during the build or this engine computes wrongly: report it"


def make_cases(spec: Spec, seed: int = 0) -> list[dict[str, Array]]:
    """Two sets of seeded inputs whose shapes differ in every free dim: a pair at the usual size, and a single one, smaller and oblong."""
    rng = np.random.Generator(np.random.PCG64(seed))
    usual = {name: step * max(1, value // step) for name, (step, value) in spec.limits.items()}
    other = {name: step * _other(value // step, name) for name, (step, value) in spec.limits.items()}
    return [
        {port.name: _random(port, spec, {"batch": batch, **dims}, rng) for port in spec.inputs} for batch, dims in ((2, usual), (1, other))
    ]


def _other(count: int, name: str) -> int:
    """Another number of steps than `count`: about half of it, for widths three quarters."""
    value = max(1, count * (3 if name == "width" else 2) // 4)
    return value if value != count else count + 1


def _random(port: TensorSpec, spec: Spec, dims: Mapping[str, int], rng: np.random.Generator) -> Array:
    shape = sizes_of(port.shape, dims)
    if port.dtype == INT:
        return rng.integers(0, spec.vocabulary, shape, np.int64)
    if port.name == "timestep":
        return rng.integers(0, 1000, shape).astype(np.float32)
    return rng.standard_normal(shape, np.float32)


def record(spec: Spec, cases: list[dict[str, Array]], reference: Engine) -> list[Recorded]:
    """The reference's outputs for every set of inputs. Raises `CheckpointError` where one is no answer: not finite, or one value."""
    recorded = [Recorded(case, reference.run(case)) for case in cases]
    for values in (values for one in recorded for values in one.outputs.values()):
        flat = values.size > 1 and float(np.ptp(values)) == 0
        if flat or not np.isfinite(values).all():
            what = "one value everywhere" if flat else "values that are not finite"
            raise CheckpointError(f"{spec.component}: torch itself gives {what}", "the weights are damaged: download the checkpoint again")
    return recorded


def check_engine(spec: Spec, recorded: list[Recorded], engine: Engine, labels: tuple[str, str], precision: str = "fp32") -> Parity:
    """Runs the engine on every recorded input. `labels` name the reference and the backend.

    Raises `ParityError` naming the component, the numbers and the bound.
    """
    return check(spec.component, recorded, engine, labels, precision)


def psnr(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """PSNR in dB of images in [0, 1], at most `PSNR_CEILING`; -inf where a value is not finite or shapes differ."""
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return -np.inf
    error = float(np.mean(np.square(a.astype(np.float64) - b.astype(np.float64))))
    return min(PSNR_CEILING, -10 * np.log10(error)) if error > 0 else PSNR_CEILING


def check_end_to_end(record: EndToEnd) -> EndToEnd:
    """The record itself. Raises `ParityError` where it is under its bound."""
    if not record.psnr >= record.bound_psnr:
        raise ParityError(
            f"the whole pipeline differs from {record.reference}: {record.psnr:.1f} dB after {record.num_inference_steps} steps "
            f"(bound {record.bound_psnr:.0f} dB)",
            _REMEDY,
        )
    return record
