"""Whole runs of every sampler against the diffusers scheduler built from the same config."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from platemark.runtime.schedulers import make_scheduler

pytestmark = pytest.mark.torch

CLASSES = {"ddim": "DDIMScheduler", "euler": "EulerDiscreteScheduler", "dpm++2m": "DPMSolverMultistepScheduler"}
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


def pseudo_network(sample: np.ndarray, timestep: float) -> np.ndarray:
    """A bounded, nonlinear answer that depends on position, value and time."""
    wave = np.cos(np.arange(sample.size, dtype=np.float32).reshape(sample.shape) * np.float32(0.37))
    return (np.sin(sample * np.float32(0.9)) + wave * np.float32(0.5 + timestep / 2000)).astype(np.float32)


def numpy_run(name: str | None, config: dict[str, Any], steps: int, noise: np.ndarray) -> list[np.ndarray]:
    stepper = make_scheduler(name, config).plan(steps)
    latents = noise * np.float32(stepper.init_noise_sigma)
    trail = [latents]
    for i, timestep in enumerate(stepper.timesteps):
        output = pseudo_network(stepper.scale_model_input(latents, i), float(timestep))
        latents = stepper.step(output, i, latents)
        assert latents.dtype == np.float32
        trail.append(latents)
    return trail


def diffusers_run(name: str, config: dict[str, Any], steps: int, noise: np.ndarray) -> list[np.ndarray]:
    import diffusers
    import torch

    scheduler = getattr(diffusers, CLASSES[name]).from_config(config)
    scheduler.set_timesteps(steps)
    if name != "ddim":
        scheduler.set_begin_index(0)  # else a timestep that occurs twice makes the reference start at its second place
    latents = torch.from_numpy(noise) * scheduler.init_noise_sigma
    trail = [latents.numpy()]
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, timestep)
        output = torch.from_numpy(pseudo_network(scaled.numpy(), float(timestep)))
        latents = scheduler.step(output, timestep, latents).prev_sample
        trail.append(latents.numpy())
    return trail


def noise() -> np.ndarray:
    return np.random.default_rng(7).standard_normal((2, 4, 6, 5)).astype(np.float32)


def off(ours: np.ndarray, theirs: np.ndarray, scale: float) -> float:
    return float(np.abs(ours - theirs).max()) / max(1.0, scale)


def worst(name: str, config: dict[str, Any], steps: int) -> float:
    """The larger of the difference of the results and the largest on the way. Where values pass 1 (a pseudo network does not remove the
    noise of a σ of 10,000, and float32 resolves no more), relative to the result and to the run's largest latent.
    """
    ours, theirs = numpy_run(name, config, steps, noise()), diffusers_run(name, config, steps, noise())
    assert len(ours) == len(theirs)
    largest = max(float(np.abs(b).max()) for b in theirs)
    on_the_way = max(off(a, b, largest) for a, b in zip(ours, theirs, strict=True))
    return max(off(ours[-1], theirs[-1], float(np.abs(theirs[-1]).max())), on_the_way)


@pytest.mark.parametrize("name", list(CLASSES))
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_run_equals_reference(name: str, prediction: str, spacing: str, schedule: str) -> None:
    config = {**SD, "prediction_type": prediction, "timestep_spacing": spacing, "beta_schedule": schedule, "steps_offset": 1}
    if spacing == "linspace" and schedule == "squaredcos_cap_v2":
        config["lambda_min_clipped"] = -5.1  # as the reference asks for with a cosine schedule
    assert worst(name, config, 20) <= 1e-4
    assert worst(name, config, 7) <= 1e-4


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("ddim", {}),
        ("ddim", {"clip_sample": True, "clip_sample_range": 2.0}),
        ("ddim", {"set_alpha_to_one": False, "steps_offset": 1}),
        ("ddim", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}),
        ("ddim", {"trained_betas": list(np.linspace(0.001, 0.02, 1000))}),
        ("ddim", {"num_train_timesteps": 500}),
        ("euler", {"final_sigmas_type": "sigma_min"}),
        ("euler", {"use_karras_sigmas": True}),
        ("euler", {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 12.0}),
        ("euler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}),
        ("dpm++2m", {"final_sigmas_type": "sigma_min"}),
        ("dpm++2m", {"final_sigmas_type": "sigma_min", "lower_order_final": False}),
        ("dpm++2m", {"final_sigmas_type": "sigma_min", "lower_order_final": False, "euler_at_final": True}),
        ("dpm++2m", {"use_karras_sigmas": True}),
        ("dpm++2m", {"use_karras_sigmas": True, "beta_schedule": "squaredcos_cap_v2"}),
        ("dpm++2m", {"solver_order": 1}),
        ("dpm++2m", {"solver_type": "heun"}),
        ("dpm++2m", {"solver_type": "bh2"}),
        ("dpm++2m", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}),
        ("dpm++2m", {"lambda_min_clipped": -2.5, "timestep_spacing": "trailing"}),
        ("dpm++2m", {"lambda_min_clipped": -2.5, "timestep_spacing": "leading", "steps_offset": 1}),
    ],
)
@pytest.mark.parametrize("steps", [1, 2, 14, 15, 25])
def test_every_honoured_field(name: str, extra: dict[str, Any], steps: int) -> None:
    assert worst(name, {**SD, **extra}, steps) <= 1e-4


@pytest.mark.parametrize("steps", [50, 100])
@pytest.mark.parametrize("name", list(CLASSES))
def test_long_runs(name: str, steps: int) -> None:
    assert worst(name, SD, steps) <= 1e-4


def test_published_configs() -> None:
    sd21 = {**SD, "_class_name": "DDIMScheduler", "_diffusers_version": "0.8.0", "num_train_timesteps": 1000, "steps_offset": 1}
    sd21 |= {"prediction_type": "v_prediction", "set_alpha_to_one": False, "skip_prk_steps": True, "trained_betas": None}
    sdxl = {**SD, "_class_name": "EulerDiscreteScheduler", "interpolation_type": "linear", "num_train_timesteps": 1000}
    sdxl |= {"prediction_type": "epsilon", "sample_max_value": 1.0, "set_alpha_to_one": False, "skip_prk_steps": True}
    sdxl |= {"steps_offset": 1, "timestep_spacing": "leading", "trained_betas": None, "use_karras_sigmas": False}
    for own, config in (("ddim", sd21), ("euler", sdxl)):
        default, named = numpy_run(None, config, 20, noise())[-1], diffusers_run(own, config, 20, noise())[-1]
        assert np.abs(default - named).max() <= 1e-4
        for name in CLASSES:
            assert worst(name, config, 20) <= 1e-4
