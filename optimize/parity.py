"""Compares engines with their torch reference, on recorded inputs, and refuses what is off.

The references are computed in this process, by the very modules that were exported. Knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from platemark.errors import ParityError
from platemark.optimize.export import INT, Spec
from platemark.runtime.bundle import Comparison, EndToEnd, Parity
from platemark.runtime.engine import Array, Engine, TensorSpec

# Relative L2 error, ‖a−b‖/‖b‖, that an engine may have by the precision it computes in: fp32 leaves room for another order of summation.
BOUNDS: dict[str, float] = {"fp32": 1e-4}
END_TO_END_PSNR = 60.0  # dB between images in [0, 1]; a thousandth of the range is 60 dB
PSNR_CEILING = 200.0  # dB: recorded for images that are equal, where PSNR has no finite value
_REMEDY = "build again; if it fails again, the weights changed during the build or this engine computes wrongly: report it"


@dataclass(frozen=True)
class Recorded:
    """One set of inputs and what the reference made of it."""

    inputs: dict[str, Array]
    output: Array


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
    shape = tuple(dims[dim] if isinstance(dim, str) else dim for dim in port.shape)
    if port.dtype == INT:
        return rng.integers(0, spec.vocabulary, shape, np.int64)
    if port.name == "timestep":
        return rng.integers(0, 1000, shape).astype(np.float32)
    return rng.standard_normal(shape, np.float32)


def record(spec: Spec, cases: list[dict[str, Array]], reference: Engine) -> list[Recorded]:
    """The reference's output for every set of inputs."""
    return [Recorded(case, reference.run(case)[spec.output.name]) for case in cases]


def compare(recorded: Recorded, actual: Array) -> Comparison:
    """How far `actual` is off. Infinite errors and a cosine of -1 where shapes differ or a value is not finite."""
    shapes = {name: list(value.shape) for name, value in recorded.inputs.items()}
    expected = recorded.output
    if actual.shape != expected.shape or not (np.isfinite(actual).all() and np.isfinite(expected).all()):
        return Comparison(shapes=shapes, max_abs_error=np.inf, rel_l2_error=np.inf, cosine=-1.0)
    a, b = actual.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    norm_a, norm_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    error = float(np.linalg.norm(a - b))
    return Comparison(
        shapes=shapes,
        max_abs_error=_rounded(float(np.abs(a - b).max(initial=0.0))),
        rel_l2_error=_rounded(error / norm_b if norm_b else (0.0 if error == 0 else np.inf)),
        cosine=round(float(a @ b) / (norm_a * norm_b) if norm_a and norm_b else float(error == 0), 9),
    )


def _rounded(value: float) -> float:
    """To three digits: the rest is the order of summation, and would make every manifest differ."""
    return float(f"{value:.3g}")


def check_engine(spec: Spec, recorded: list[Recorded], engine: Engine, labels: tuple[str, str], precision: str = "fp32") -> Parity:
    """Runs the engine on every recorded input. `labels` name the reference and the backend.

    Raises `ParityError` naming the component, the numbers and the bound.
    """
    bound = BOUNDS[precision]
    comparisons = []
    for one in recorded:
        comparison = compare(one, engine.run(one.inputs)[spec.output.name])
        if not comparison.rel_l2_error <= bound:
            raise ParityError(
                f"{spec.component} differs from its reference at {_shapes(comparison)}: "
                f"rel L2 {comparison.rel_l2_error:.3g} (bound {bound:.0e}), "
                f"max abs {comparison.max_abs_error:.3g}, cosine {comparison.cosine:.6f}",
                _REMEDY,
            )
        comparisons.append(comparison)
    return Parity(reference=labels[0], backend=labels[1], bound_rel_l2=bound, comparisons=comparisons)


def _shapes(comparison: Comparison) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in comparison.shapes.items())


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
