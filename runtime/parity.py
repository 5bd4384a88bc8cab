"""How far an engine is off what it is compared with, and how far it may be. Knows nothing about who computes either."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from platemark.errors import ParityError
from platemark.runtime.engine import Array, Engine, sizes_of
from platemark.runtime.manifest import Comparison, Parity


@dataclass(frozen=True)
class Bound:
    """How far engines of a precision may be off: relative L2 error ‖a−b‖/‖b‖ of a component, and PSNR in dB of the whole pipeline's
    picture in [0, 1], against the reference in float32."""

    rel_l2: float
    psnr: float


# By the precision that is computed in. fp32 leaves room for another order of summation; fp16 and bf16 for a mantissa of 10 and 7 bits
# through some hundred layers (measured in SD 1.5's UNet: 2.3e-2 in bf16); int8 are weights of 8 bits, one scale a channel, computed in
# float32 (measured there: 1.0e-2). A thousandth of the range is 60 dB, 8-bit rounding alone 59.
PRECISIONS = {"fp32": Bound(1e-4, 60.0), "fp16": Bound(1e-2, 40.0), "bf16": Bound(5e-2, 35.0), "int8": Bound(5e-2, 30.0)}
BOUNDS = {name: bound.rel_l2 for name, bound in PRECISIONS.items()}
_REMEDY = "build again; if it fails again, the weights changed during the build or this engine computes wrongly: report it"


@dataclass(frozen=True)
class Recorded:
    """One set of inputs and what the reference made of it."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]


def compare(recorded: Recorded, actual: Mapping[str, Array]) -> Comparison:
    """How far `actual` is off, by its worst output. Infinite errors and a cosine of -1 where shapes differ or a value is not finite."""
    shapes = {name: list(value.shape) for name, value in recorded.inputs.items()}
    return max((_compare(shapes, wanted, actual[name]) for name, wanted in recorded.outputs.items()), key=lambda one: one.rel_l2_error)


def _compare(shapes: dict[str, list[int]], expected: Array, actual: Array) -> Comparison:
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


def check(name: str, recorded: list[Recorded], engine: Engine, labels: tuple[str, str], precision: str = "fp32") -> Parity:
    """Runs the engine on every recorded input and compares all its outputs. `name` is the component's, `labels` name reference and
    backend. Raises `ParityError` naming the component, the numbers and the bound.
    """
    bound = BOUNDS[precision]
    comparisons = []
    for one in recorded:
        comparison = compare(one, engine.run(one.inputs))
        if not comparison.rel_l2_error <= bound:
            raise ParityError(
                f"{name} differs from its reference at {_shapes(comparison)}: "
                f"rel L2 {comparison.rel_l2_error:.3g} (bound {bound:.0e}), "
                f"max abs {comparison.max_abs_error:.3g}, cosine {comparison.cosine:.6f}",
                _REMEDY,
            )
        comparisons.append(comparison)
    return Parity(reference=labels[0], backend=labels[1], bound_rel_l2=bound, comparisons=comparisons)


def _shapes(comparison: Comparison) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in comparison.shapes.items())


def probes(engine: Engine, dims: Mapping[str, int], seed: int = 0) -> list[dict[str, Array]]:
    """Two sets of seeded inputs of an engine whose free dims are named: with `dims`, then as a batch of one with half the tokens.

    Token ids stay under 256, which every byte-level vocabulary has.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    smaller = {**dims, "batch": 1, "tokens": max(1, dims.get("tokens", 2) // 2)}
    return [{port.name: _probe(port.name, port.dtype, port.shape, sizes, rng) for port in engine.inputs} for sizes in (dims, smaller)]


def _probe(
    name: str, dtype: np.dtype[np.generic], shape: tuple[int | str, ...], dims: Mapping[str, int], rng: np.random.Generator
) -> Array:
    sizes = sizes_of(shape, dims)
    if dtype == np.int64:
        return rng.integers(0, 256, sizes, np.int64)
    if name == "timestep":
        return rng.integers(0, 1000, sizes).astype(np.float32)
    return rng.standard_normal(sizes, np.float32)
