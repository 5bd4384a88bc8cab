"""Parity: the numbers are right, what is off is refused with them, and inputs differ in every free dim."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from platemark.errors import ParityError  # noqa: E402
from platemark.optimize.parity import (  # noqa: E402
    BOUNDS,
    PSNR_CEILING,
    Recorded,
    check_end_to_end,
    check_engine,
    compare,
    make_cases,
    psnr,
    record,
)
from platemark.optimize.specs import FLOAT, INT, Spec  # noqa: E402
from platemark.runtime.engine import Array, TensorSpec  # noqa: E402
from platemark.runtime.manifest import EndToEnd  # noqa: E402

SPEC = Spec(
    "toy",
    "toy",
    "toy/model.onnx",
    (
        TensorSpec("sample", FLOAT, ("batch", 4, "height", "width")),
        TensorSpec("timestep", FLOAT, ("batch",)),
        TensorSpec("input_ids", INT, ("batch", "tokens")),
    ),
    (TensorSpec("y", FLOAT, ("batch", 4, "height", "width")),),
    {"height": (4, 16), "width": (4, 16), "tokens": (1, 7)},
    vocabulary=9,
)


class Scale:
    """An engine that answers the sample times a factor, with one value moved."""

    inputs, outputs = SPEC.inputs, SPEC.outputs

    def __init__(self, factor: float = 1.0, nudge: float = 0.0) -> None:
        self.factor, self.nudge = factor, nudge

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        out = inputs["sample"] * np.float32(self.factor)
        out.flat[3] += np.float32(self.nudge)
        return {"y": out}


def test_the_two_cases_differ_in_every_free_dim() -> None:
    first, second = make_cases(SPEC)
    for name, axes in {"sample": (0, 2, 3), "timestep": (0,), "input_ids": (0, 1)}.items():
        assert all(first[name].shape[axis] != second[name].shape[axis] for axis in axes)
    assert second["sample"].shape[2] != second["sample"].shape[3]
    assert all(size % 4 == 0 for case in (first, second) for size in case["sample"].shape[2:])


@pytest.mark.parametrize("value", [1, 2, 3, 4, 5, 8, 64])
def test_small_sizes_still_differ(value: int) -> None:
    spec = Spec("toy", "toy", "m", SPEC.inputs, SPEC.outputs, {"height": (8, 8 * value), "width": (8, 8 * value), "tokens": (1, 7)}, 9)
    first, second = make_cases(spec)
    assert first["sample"].shape[2] == 8 * value
    assert all(a != b for a, b in zip(first["sample"].shape[2:], second["sample"].shape[2:], strict=True))


def test_inputs_are_seeded_and_in_range() -> None:
    one, two = make_cases(SPEC, seed=5), make_cases(SPEC, seed=5)
    for a, b in zip(one, two, strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not np.array_equal(one[0]["sample"], make_cases(SPEC, seed=6)[0]["sample"])
    assert one[0]["input_ids"].max() < 9
    assert one[0]["timestep"].dtype == np.float32
    assert 0 <= one[0]["timestep"].min() <= one[0]["timestep"].max() < 1000


def test_numbers_of_a_comparison() -> None:
    expected = np.array([[3.0, 4.0]], np.float32)
    found = compare(Recorded({"x": np.zeros((1, 2))}, {"y": expected}), {"y": np.array([[3.0, 4.5]], np.float32)})
    assert found.max_abs_error == 0.5
    assert found.rel_l2_error == pytest.approx(0.1)
    assert found.cosine == pytest.approx((9 + 18) / (5 * np.hypot(3, 4.5)))
    assert found.shapes == {"x": [1, 2]}


def test_zero_references_compare() -> None:
    zero = Recorded({}, {"y": np.zeros(3, np.float32)})
    assert compare(zero, {"y": np.zeros(3, np.float32)}).rel_l2_error == 0
    assert compare(zero, {"y": np.ones(3, np.float32)}).rel_l2_error == np.inf


@pytest.mark.parametrize("spoiled", [np.array([np.nan, 1]), np.array([np.inf, 1]), np.ones((2, 1)), np.ones(3)])
def test_values_that_are_not_finite_and_other_shapes_are_never_equal(spoiled: np.ndarray) -> None:
    assert compare(Recorded({}, {"y": np.ones(2, np.float32)}), {"y": spoiled.astype(np.float32)}).rel_l2_error == np.inf


def test_the_worst_output_counts() -> None:
    right, wrong = np.ones(4, np.float32), np.full(4, 1.5, np.float32)
    found = compare(Recorded({}, {"a": right, "b": right}), {"a": right, "b": wrong})
    assert (found.rel_l2_error, found.max_abs_error) == (0.5, 0.5)
    assert compare(Recorded({}, {"a": right, "b": right}), {"a": right * np.float32("nan"), "b": wrong}).rel_l2_error == np.inf


def test_an_equal_engine_passes_with_its_record() -> None:
    recorded = record(SPEC, make_cases(SPEC), Scale())
    parity = check_engine(SPEC, recorded, Scale(1 + 1e-6), ("torch", "toy"))
    assert parity.bound_rel_l2 == BOUNDS["fp32"] == 1e-4
    assert len(parity.comparisons) == 2
    assert all(0 < c.rel_l2_error < 1e-5 for c in parity.comparisons)
    assert (parity.reference, parity.backend) == ("torch", "toy")


@pytest.mark.parametrize("wrong", [Scale(1.001), Scale(nudge=1.0), Scale(float("nan"))])
def test_an_engine_that_is_off_is_refused_with_numbers(wrong: Scale) -> None:
    recorded = record(SPEC, make_cases(SPEC), Scale())
    with pytest.raises(ParityError, match=r"toy differs .* sample 2x4x16x16.*rel L2 .*bound 1e-04.*max abs .*cosine"):
        check_engine(SPEC, recorded, wrong, ("torch", "toy"))


def test_psnr() -> None:
    zero = np.zeros((4, 4, 3), np.float32)
    assert psnr(zero, zero + np.float32(0.1)) == pytest.approx(20, abs=1e-4)
    assert psnr(zero, zero) == PSNR_CEILING
    assert psnr(zero, zero[:2]) == -np.inf
    assert psnr(zero, zero * np.nan) == -np.inf


@pytest.mark.parametrize("value", [59.9, float("nan"), -np.inf])
def test_a_pipeline_under_its_bound_is_refused(value: float) -> None:
    def made(value: float) -> EndToEnd:
        return EndToEnd(
            reference="diffusers",
            prompt="p",
            seed=0,
            num_inference_steps=4,
            guidance_scale=2,
            height=64,
            width=64,
            psnr=value,
            bound_psnr=60,
        )

    assert check_end_to_end(made(60)).psnr == 60
    with pytest.raises(ParityError, match="4 steps"):
        check_end_to_end(made(value))
