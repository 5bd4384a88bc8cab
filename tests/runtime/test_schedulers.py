"""What samplers do without a reference to compare with: names, refusals by field, and runs that do not disturb each other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from platemark.errors import InputError
from platemark.runtime.schedulers import NAMES, make_scheduler


@pytest.mark.parametrize(
    ("own", "name"),
    [("DDIMScheduler", "ddim"), ("EulerDiscreteScheduler", "euler"), ("DPMSolverMultistepScheduler", "dpm++2m")],
)
def test_none_is_the_checkpoints_own(own: str, name: str) -> None:
    assert make_scheduler(None, {"_class_name": own}).name == name


@pytest.mark.parametrize(("name", "config"), [("magic", {}), (None, {"_class_name": "PNDMScheduler"}), (None, {})])
def test_unknown_names_list_the_known(name: str | None, config: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        make_scheduler(name, config)
    assert all(known in caught.value.remedy for known in NAMES)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("ddim", "thresholding", True),
        ("ddim", "prediction_type", "flow_prediction"),
        ("ddim", "beta_schedule", "sigmoid"),
        ("ddim", "timestep_spacing", "karras"),
        ("ddim", "variance_type", "learned_range"),
        ("ddim", "use_flow_sigmas", True),
        ("ddim", "a_field_of_the_future", 3),
        ("ddim", "num_train_timesteps", "many"),
        ("ddim", "trained_betas", [0.1, 0.2]),
        ("ddim", "beta_end", 0.0),
        ("euler", "interpolation_type", "log_linear"),
        ("euler", "timestep_type", "continuous"),
        ("euler", "use_exponential_sigmas", True),
        ("euler", "use_beta_sigmas", True),
        ("euler", "final_sigmas_type", "other"),
        ("dpm++2m", "algorithm_type", "sde-dpmsolver++"),
        ("dpm++2m", "solver_order", 3),
        ("dpm++2m", "use_lu_lambdas", True),
        ("dpm++2m", "use_dynamic_shifting", True),
    ],
)
def test_unsupported_fields_are_refused_by_name(name: str, field: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        make_scheduler(name, {field: value})
    assert field in caught.value.message


@pytest.mark.parametrize("name", NAMES)
def test_fields_of_other_samplers_are_ignored(name: str) -> None:
    plain = make_scheduler(name, {}).plan(10)
    carried = make_scheduler(name, {"skip_prk_steps": True, "original_inference_steps": 50, "trained_betas": None, "_x": 1}).plan(10)
    assert np.array_equal(plain.timesteps, carried.timesteps)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_any_number_of_steps_gives_that_many_or_is_refused(name: str, spacing: str) -> None:
    scheduler = make_scheduler(name, {"timestep_spacing": spacing})
    for steps in (1, 2, 3, 61, 103, 250, 499, 999, 1000):
        try:
            stepper = scheduler.plan(steps)
        except InputError:
            assert steps > 200, steps
            continue
        assert len(stepper.timesteps) == steps
        assert stepper.timesteps.min() >= 0
        assert stepper.timesteps.max() <= 999
        assert np.all(np.diff(stepper.timesteps) < 0)


@pytest.mark.parametrize("steps", [0, -1, 1001])
@pytest.mark.parametrize("name", NAMES)
def test_impossible_steps_are_refused(name: str, steps: int) -> None:
    with pytest.raises(InputError):
        make_scheduler(name, {}).plan(steps)


def test_a_schedule_without_signal_cannot_start_from_noise_prediction() -> None:
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with pytest.raises(InputError):
        make_scheduler("ddim", config).plan(10)
    assert make_scheduler("ddim", {**config, "prediction_type": "v_prediction"}).plan(10).timesteps[0] == 999


def run(scheduler: Any, steps: int, seed: int) -> np.ndarray:
    stepper = scheduler.plan(steps)
    latents = np.random.default_rng(seed).standard_normal((1, 4, 8, 8)).astype(np.float32) * np.float32(stepper.init_noise_sigma)
    for i in range(steps):
        given = latents.copy()
        output = np.tanh(stepper.scale_model_input(latents, i)).astype(np.float32)
        following = stepper.step(output, i, latents)
        assert np.array_equal(given, latents)  # a step leaves its argument as it is
        latents = following
    return latents


@pytest.mark.parametrize("name", NAMES)
def test_runs_share_a_scheduler_without_disturbing_each_other(name: str) -> None:
    scheduler = make_scheduler(name, {})
    alone = [run(scheduler, 5 + seed % 3, seed) for seed in range(32)]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda seed: run(scheduler, 5 + seed % 3, seed), range(32)))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
