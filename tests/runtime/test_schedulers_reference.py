"""Whole runs of every sampler against the diffusers scheduler built from the same config, with the same noise from the same seeds."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from platemark.errors import InputError
from platemark.runtime.noise import Generator, draws
from platemark.runtime.schedulers import NAMES, make_scheduler, reference_config

pytestmark = pytest.mark.torch

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "steps_offset": 1}
V_ZERO = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
SEEDS, SHAPE = (5, 2**40 + 6), (4, 6, 5)  # 120 values an image: whole blocks of 16 and a rest
CLASSES = ("ddim", "ddpm", "euler", "euler-a", "heun", "dpm++2m", "dpm++2m-sde", "dpm++sde", "unipc", "lcm", "tcd", "pndm")
CLIPPING = ("ddim", "ddpm", "lcm", "tcd", "heun")
THRESHOLDING = ("ddim", "ddpm", "lcm", "tcd", "dpm++2m", "dpm++2m-sde", "unipc")
KARRAS = {"use_karras_sigmas": True}
BOUND = 1e-4
NO_SAMPLE = ("euler-a", "dpm++sde", "pndm")  # whose reference has no prediction of x₀
Network = Callable[[np.ndarray, float], np.ndarray]


def network(alphas_cumprod: np.ndarray, prediction: str, continuous: bool = False) -> Network:
    """A denoiser of sorts: x₀ is a bounded, nonlinear function of position, value and time; the answer leads to it from the input."""
    alphas = np.maximum(alphas_cumprod.astype(np.float64), 2.0**-24)

    def answer(sample: np.ndarray, timestep: float) -> np.ndarray:
        bar = 1 / (1 + np.exp(8 * timestep)) if continuous else np.interp(timestep, np.arange(len(alphas)), alphas)
        alpha, sigma = np.sqrt(bar), np.sqrt(1 - bar)
        x = sample.astype(np.float64)
        wave = np.cos(np.arange(sample.size).reshape(sample.shape) * 0.37)
        original = np.tanh(x * 0.8) + wave * (0.5 + sigma)
        epsilon = (x - alpha * original) / sigma
        answers = {"epsilon": epsilon, "sample": original, "v_prediction": alpha * epsilon - sigma * original}
        return answers[prediction].astype(np.float32)

    return answer


def reference(name: str | None, config: dict[str, Any]) -> Any:
    """The diffusers scheduler."""
    kind, fields = reference_config(name, config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it says that dpmsolver will go one day
        return getattr(module_of(kind), kind).from_config(fields)


def module_of(kind: str) -> Any:
    """DPM++ SDE imports torchsde for its Brownian tree, which these runs replace, so an empty module does."""
    diffusers = importlib.import_module("diffusers")
    if kind != "DPMSolverSDEScheduler" or importlib.util.find_spec("torchsde") is not None:
        return diffusers
    sys.modules["torchsde"] = types.ModuleType("torchsde")
    try:
        return importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde")
    finally:
        del sys.modules["torchsde"]


def brownian(scheduler: Any, generators: list[Any]) -> Callable[[Any, Any], Any]:
    """What a Brownian tree gives for the two intervals of a step, from normals for its two halves."""
    import torch

    half: list[Any] = []

    def increment(start: Any, end: Any) -> Any:
        drawn = torch.stack([torch.randn(SHAPE, generator=generator) for generator in generators])
        if scheduler.state_in_first_order:
            half[:] = [drawn, end]
            return drawn
        first, middle = half
        return (first * (start - middle).sqrt() + drawn * (middle - end).sqrt()) / (start - end).sqrt()

    return increment


def diffusers_run(scheduler: Any, answer: Network, steps: int, eta: float | None) -> list[np.ndarray]:
    import torch

    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # else a timestep that occurs twice makes the reference start at its second place
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in SEEDS]
    latents = torch.stack([torch.randn(SHAPE, generator=generator) for generator in generators]) * scheduler.init_noise_sigma
    extra: dict[str, Any] = {} if eta is None else {"eta": eta}
    return [latents.numpy(), *evaluations(scheduler, answer, latents, 0, {**extra, **noise_for(scheduler, generators)})]


def noise_for(scheduler: Any, generators: list[Any]) -> dict[str, Any]:
    """How the scheduler is given its noise: one generator an image, or the increments of a path, or none."""
    kind = type(scheduler).__name__
    if kind == "DPMSolverSDEScheduler":
        scheduler.noise_sampler = brownian(scheduler, generators)
        return {}
    plain = ("EulerDiscreteScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler", "PNDMScheduler")
    return {} if kind in plain else {"generator": generators}


def evaluations(scheduler: Any, answer: Network, latents: Any, begin: int, extra: dict[str, Any]) -> Iterator[np.ndarray]:
    """The latents after each evaluation from `begin` on."""
    import torch

    for timestep in scheduler.timesteps[begin:]:
        scaled = scheduler.scale_model_input(latents, timestep)
        output = torch.from_numpy(answer(scaled.numpy(), float(timestep)))
        latents = scheduler.step(output, timestep, latents, **extra).prev_sample.to(torch.float32)
        yield latents.numpy()


def numpy_run(scheduler: Any, answer: Network, steps: int) -> list[np.ndarray]:
    import torch

    generators = [torch.Generator("cpu").manual_seed(seed) for seed in SEEDS]

    def draw() -> np.ndarray:
        return np.stack([torch.randn(SHAPE, generator=generator).numpy() for generator in generators])

    start = draw()
    stepper = scheduler.plan(steps, draw)
    latents = start * np.float32(stepper.init_noise_sigma)
    trail = [latents]
    for i, timestep in enumerate(stepper.timesteps):
        output = answer(stepper.scale_model_input(latents, i), float(timestep))
        latents = stepper.step(output, i, latents)
        assert latents.dtype == np.float32
        trail.append(latents)
    return trail


def distance(name: str | None, config: dict[str, Any], steps: int, eta: float | None = None) -> float:
    """The largest absolute difference of the results; or, of the latents on the way, relative to their size where that is above 1."""
    theirs = reference(name, config)
    continuous = config.get("timestep_type") == "continuous" and config["prediction_type"] == "v_prediction"
    answer = network(theirs.alphas_cumprod.numpy(), config.get("prediction_type", "epsilon"), continuous)
    expected = diffusers_run(theirs, answer, steps, eta)
    actual = numpy_run(make_scheduler(name, config, eta), answer, steps)
    assert len(actual) == len(expected)
    assert np.isfinite(expected[-1]).all()
    assert expected[-1].std() > 0.01
    way = max(float(np.abs(a - b).max() / max(1.0, np.abs(b).max())) for a, b in zip(actual, expected, strict=True))
    return max(way, float(np.abs(actual[-1] - expected[-1]).max()))


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_predictions_and_spacings(name: str, prediction: str, spacing: str) -> None:
    if prediction == "sample" and name in NO_SAMPLE:
        with pytest.raises(InputError, match="prediction_type"):
            make_scheduler(name, {"prediction_type": prediction})
        return
    config = {**SD, "prediction_type": prediction, "timestep_spacing": spacing}
    for steps in (1, 7, 20):
        assert distance(name, config, steps) <= BOUND, steps


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    "schedule",
    [
        {"beta_schedule": "linear"},
        {"trained_betas": list(np.linspace(0.001, 0.02, 1000))},
        {"num_train_timesteps": 500},
        {"beta_start": 0.0001, "beta_end": 0.02, "steps_offset": 0},
    ],
)
def test_noise_schedules(name: str, schedule: dict[str, Any]) -> None:
    assert distance(name, {**SD, **schedule}, 12) <= BOUND


@pytest.mark.parametrize(
    ("name", "schedule"), [*((name, "squaredcos_cap_v2") for name in CLASSES), ("heun", "exp"), ("ddpm", "laplace"), ("ddpm", "sigmoid")]
)
def test_steep_schedules(name: str, schedule: str) -> None:
    """Cosine schedules start at σ = 20,000, where a float32 is 0.002 from the next: latents in σ are equal to two of those."""
    in_sigma = name in ("euler", "euler-a", "heun", "dpm++sde")
    bound = 2 * float(np.spacing(np.float32(2e4))) if in_sigma and schedule == "squaredcos_cap_v2" else BOUND
    assert distance(name, {**SD, "beta_schedule": schedule}, 20) <= bound


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in ("heun", "dpm++sde", "pndm")])
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_zero_terminal_snr(name: str, prediction: str) -> None:
    if prediction == "sample" and name in NO_SAMPLE:
        pytest.skip("the reference has no such run")
    for steps in (4, 15, 25):
        assert distance(name, {**SD, **V_ZERO, "prediction_type": prediction}, steps) <= BOUND, steps


@pytest.mark.parametrize("name", ["euler", "euler-a"])
def test_zero_terminal_snr_in_very_few_steps(name: str) -> None:
    """From σ = 4096 to 0 in a step or two: equal to two float32 at 4096, which is what the reference's own square root is off by."""
    for steps in (1, 2, 3):
        assert distance(name, {**SD, **V_ZERO}, steps) <= 2 * float(np.spacing(np.float32(4096))), steps


FIELDS: list[tuple[str, dict[str, Any]]] = [
    *((name, {"clip_sample": True, "clip_sample_range": limit}) for name in CLIPPING for limit in (1.0, 0.5)),
    *((name, {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 1.5}) for name in THRESHOLDING),
    *((name, {"thresholding": True, "dynamic_thresholding_ratio": 0.995, "clip_sample": True}) for name in THRESHOLDING),
    *((name, {"set_alpha_to_one": False, "steps_offset": 0}) for name in ("ddim", "lcm", "tcd")),
    *(
        ("ddpm", {"variance_type": variance, "timestep_spacing": spacing})
        for variance in ("fixed_small", "fixed_small_log", "fixed_large")
        for spacing in ("leading", "trailing")
    ),
    *((name, {"original_inference_steps": 40, "timestep_scaling": 1.0}) for name in ("lcm", "tcd")),
    ("euler", {"interpolation_type": "log_linear"}),
    ("euler", {"interpolation_type": "log_linear", "use_karras_sigmas": True}),
    ("euler", {"final_sigmas_type": "sigma_min"}),
    ("euler", {"timestep_type": "continuous", "prediction_type": "v_prediction"}),
    ("euler", {"timestep_type": "continuous", "prediction_type": "v_prediction", **KARRAS, "sigma_min": 0.002, "sigma_max": 700.0}),
    ("euler", {"timestep_type": "continuous", "prediction_type": "epsilon"}),
    ("dpm++2m", {"solver_type": "bh2"}),
    ("dpm++2m", {"use_lu_lambdas": True}),
    ("dpm++2m", {"use_lu_lambdas": True, "beta_schedule": "squaredcos_cap_v2"}),
    ("dpm++2m", {"use_lu_lambdas": True, **KARRAS}),
    *(("dpm++2m", {"lambda_min_clipped": -2.5, "timestep_spacing": spacing}) for spacing in ("leading", "linspace", "trailing")),
    *((name, {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}) for name in ("dpm++2m", "dpm++2m-sde")),
]


@pytest.mark.parametrize(("name", "fields"), FIELDS)
def test_fields(name: str, fields: dict[str, Any]) -> None:
    for steps in (2, 15, 25):
        assert distance(name, {**SD, **fields}, steps) <= BOUND, steps


@pytest.mark.parametrize("name", ["euler", "heun", "dpm++2m", "dpm++2m-sde", "dpm++sde", "unipc"])
@pytest.mark.parametrize("curve", ["karras", "exponential", "beta"])
def test_curves_of_noise_levels(name: str, curve: str) -> None:
    config = {**SD, f"use_{curve}_sigmas": True}
    assert distance(name, config, 1) <= BOUND
    assert distance(name, {**config, "timestep_spacing": "trailing"}, 8) <= BOUND
    assert distance(name, {**config, "timestep_spacing": "leading", "sigma_min": 0.05, "sigma_max": 12.0}, 25) <= BOUND


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver", "deis"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver", ["midpoint", "heun"])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_dpm_solvers(algorithm: str, order: int, solver: str, final: str) -> None:
    config = {**SD, "algorithm_type": algorithm, "solver_order": order, "solver_type": solver, "final_sigmas_type": final}
    on_noise = algorithm in ("dpmsolver", "sde-dpmsolver")
    if algorithm == "deis" and final == "zero":
        pytest.skip("the reference refuses what it reads as dpmsolver++ otherwise")
    if (on_noise and final == "zero") or (algorithm == "sde-dpmsolver" and order == 3):
        with pytest.raises(InputError, match=r"final_sigmas_type|solver_order"):
            make_scheduler("dpm++2m", config)
        return
    assert distance("dpm++2m", config, 3) <= BOUND
    assert distance("dpm++2m", {**config, "euler_at_final": True}, 16) <= BOUND
    assert distance("dpm++2m", {**config, "lower_order_final": False, "prediction_type": "v_prediction"}, 9) <= BOUND
    if on_noise:
        assert distance("dpm++2m", {**config, "thresholding": True, "prediction_type": "sample"}, 9) <= BOUND


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver", ["bh1", "bh2", "midpoint"])
@pytest.mark.parametrize("predict_x0", [True, False])
def test_unipc_solvers(order: int, solver: str, predict_x0: bool) -> None:
    config = {**SD, "solver_order": order, "solver_type": solver, "predict_x0": predict_x0, "final_sigmas_type": "sigma_min"}
    for prediction in ("epsilon", "v_prediction", "sample"):
        assert distance("unipc", {**config, "prediction_type": prediction, "disable_corrector": [0, 2]}, 9) <= BOUND
    assert distance("unipc", {**config, "lower_order_final": False}, 9) <= BOUND
    if predict_x0 and solver != "bh1":  # which is NaN in the reference's last step
        for steps in (1, 2, 3, 20):
            assert distance("unipc", {**config, "final_sigmas_type": "zero"}, steps) <= BOUND


@pytest.mark.parametrize("name", ["ddim", "tcd"])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_eta(name: str, eta: float) -> None:
    for steps in (1, 4, 25):
        assert distance(name, {**SD, "timestep_spacing": "trailing"}, steps, eta) <= BOUND


@pytest.mark.parametrize("steps", [50, 100])
@pytest.mark.parametrize("name", [name for name in CLASSES if name not in ("lcm", "tcd")])
def test_long_runs(name: str, steps: int) -> None:
    assert distance(name, SD, steps) <= BOUND


SD15 = {**SD, "_class_name": "PNDMScheduler", "num_train_timesteps": 1000, "skip_prk_steps": True, "set_alpha_to_one": False}
SD21 = {**SD15, "_class_name": "DDIMScheduler", "_diffusers_version": "0.8.0", "prediction_type": "v_prediction", "trained_betas": None}
SDXL = {
    **SD15,
    "_class_name": "EulerDiscreteScheduler",
    "interpolation_type": "linear",
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
}
TURBO = {**SDXL, "timestep_spacing": "trailing"}
LCM = {**SD15, "_class_name": "LCMScheduler", "original_inference_steps": 50, "rescale_betas_zero_snr": False, "timestep_scaling": 10.0}
PUBLISHED = {"sd15": SD15, "sd21": SD21, "sdxl": {**SDXL, "use_karras_sigmas": False, "trained_betas": None}, "turbo": TURBO, "lcm": LCM}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED)
def test_published_configs(name: str, config: dict[str, Any]) -> None:
    assert distance(name, config, 8) <= BOUND


@pytest.mark.parametrize("config", [SD15, SD21, SDXL, TURBO, LCM])
def test_the_checkpoints_own_class(config: dict[str, Any]) -> None:
    assert distance(None, config, 6) <= BOUND


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "pndm"])  # see test_schedulers.test_a_late_start_of_pndm
def test_noised_latents_and_late_starts(name: str) -> None:
    """What image-to-image does: noise onto latents at a step, and a run from there on."""
    import torch

    theirs = reference(name, SD)
    steps = 10
    theirs.set_timesteps(steps)
    begin = 6  # the first stage of a step, with one evaluation a step and with two
    if hasattr(theirs, "set_begin_index"):
        theirs.set_begin_index(begin)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in SEEDS]
    mine = [Generator(seed) for seed in SEEDS]
    clean, noise = draws(mine, SHAPE), draws(mine, SHAPE)
    stepper = make_scheduler(name, SD).plan(steps, lambda: draws(mine, SHAPE))
    for generator in generators:  # the two that are drawn already
        torch.randn(SHAPE, generator=generator)
        torch.randn(SHAPE, generator=generator)
    latents = stepper.add_noise(clean, noise, begin)
    expected = theirs.add_noise(torch.from_numpy(clean), torch.from_numpy(noise), theirs.timesteps[begin : begin + 1])
    assert np.abs(latents - expected.numpy()).max() <= 1e-5
    assert np.array_equal(stepper.add_noise(clean, noise, len(stepper.timesteps)), clean)
    answer = network(theirs.alphas_cumprod.numpy(), "epsilon")
    *_, result = evaluations(theirs, answer, expected, begin, noise_for(theirs, generators))
    for i in range(begin, len(stepper.timesteps)):
        latents = stepper.step(answer(stepper.scale_model_input(latents, i), float(stepper.timesteps[i])), i, latents)
    assert np.abs(latents - result).max() <= BOUND
