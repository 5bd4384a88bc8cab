"""What samplers do without a reference to compare with: names, refusals by field, and runs that do not disturb each other."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from platemark.errors import InputError
from platemark.runtime.noise import Generator, draws
from platemark.runtime.schedulers import NAMES, REFERENCES, Scheduler, make_scheduler, reference_config
from platemark.runtime.schedulers.spacing import beta_quantiles

TWO_STAGE = ("heun", "dpm++sde", "dpm++sde-karras")
DISTILLED = ("lcm", "tcd")
STOCHASTIC = ("ddpm", "euler-a", "dpm++2m-sde", "dpm++2m-sde-karras", "dpm++sde", "dpm++sde-karras", "lcm", "tcd")
SHAPE = (4, 8, 8)


@pytest.mark.parametrize(
    ("own", "name"),
    [
        ("DDIMScheduler", "ddim"),
        ("DDPMScheduler", "ddpm"),
        ("EulerDiscreteScheduler", "euler"),
        ("EulerAncestralDiscreteScheduler", "euler-a"),
        ("HeunDiscreteScheduler", "heun"),
        ("DPMSolverMultistepScheduler", "dpm++2m"),
        ("DPMSolverSDEScheduler", "dpm++sde"),
        ("UniPCMultistepScheduler", "unipc"),
        ("LCMScheduler", "lcm"),
        ("TCDScheduler", "tcd"),
    ],
)
def test_none_is_the_checkpoints_own(own: str, name: str) -> None:
    assert make_scheduler(None, {"_class_name": own}).name == name
    assert REFERENCES[name] == own
    assert reference_config(None, {"_class_name": own, "beta_end": 0.01}) == (own, {"_class_name": own, "beta_end": 0.01})


@pytest.mark.parametrize(("name", "config"), [("magic", {}), (None, {"_class_name": "IPNDMScheduler"}), (None, {})])
def test_unknown_names_list_the_known(name: str | None, config: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        make_scheduler(name, config)
    assert all(known in caught.value.remedy for known in NAMES)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("dpm++2m-karras", {"use_karras_sigmas": True}),
        ("dpm++2m-sde", {"algorithm_type": "sde-dpmsolver++"}),
        ("dpm++2m-sde-karras", {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
        ("dpm++sde-karras", {"use_karras_sigmas": True}),
    ],
)
def test_a_suffix_sets_a_field(name: str, fields: dict[str, Any]) -> None:
    plain = name.removesuffix("-karras").removesuffix("-sde")
    # A curve of the checkpoint's own gives way to the one that was asked for by name.
    assert np.array_equal(run(make_scheduler(name, {"use_beta_sigmas": True}), 6, [1]), run(make_scheduler(plain, fields), 6, [1])) == (
        "karras" in name
    )
    assert np.array_equal(run(make_scheduler(name, {}), 6, [1]), run(make_scheduler(plain, fields), 6, [1]))
    assert not np.array_equal(run(make_scheduler(name, {}), 6, [1]), run(make_scheduler(plain, {}), 6, [1]))


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        *((name, "prediction_type", "flow_prediction") for name in NAMES),
        *((name, "timestep_spacing", "karras") for name in NAMES),
        *((name, "variance_type", "learned_range") for name in NAMES),
        *((name, "use_flow_sigmas", True) for name in NAMES),
        *((name, "a_field_of_the_future", 3) for name in NAMES),
        *((name, "beta_schedule", "cubic") for name in NAMES),
        *((name, "beta_schedule", "exp") for name in NAMES if name != "heun"),
        *((name, "beta_schedule", "laplace") for name in NAMES if name != "ddpm"),
        *((name, "prediction_type", "sample") for name in ("euler-a", "dpm++sde")),
        *((name, "rescale_betas_zero_snr", True) for name in TWO_STAGE),
        ("ddim", "num_train_timesteps", "many"),
        ("ddim", "trained_betas", [0.1, 0.2]),
        ("ddim", "beta_end", 0.0),
        ("ddim", "clip_sample_range", -1.0),
        ("ddim", "dynamic_thresholding_ratio", 1.5),
        ("ddpm", "variance_type", "fixed_large_log"),
        ("euler", "interpolation_type", "cubic"),
        ("euler", "timestep_type", "sometimes"),
        ("euler", "final_sigmas_type", "other"),
        ("euler", "sigma_min", -1.0),
        ("dpm++2m", "algorithm_type", "dpmsolver+++"),
        ("dpm++2m", "solver_order", 4),
        ("dpm++2m", "use_dynamic_shifting", True),
        ("dpm++sde", "noise_sampler_seed", 3),
        ("unipc", "solver_p", {"_class_name": "DDIMScheduler"}),
        ("unipc", "shift_terminal", 0.1),
        ("unipc", "solver_order", 0),
        ("unipc", "predict_x0", False),
        ("unipc", "lower_order_final", False),
        ("lcm", "original_inference_steps", 2000),
    ],
)
def test_unsupported_fields_are_refused_by_name(name: str, field: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        make_scheduler(name, {field: value})
    assert field in caught.value.message
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "config", "named"),
    [
        ("euler", {"use_karras_sigmas": True, "use_beta_sigmas": True}, "use_karras_sigmas and use_beta_sigmas"),
        ("dpm++2m", {"algorithm_type": "dpmsolver"}, "final_sigmas_type"),
        ("dpm++2m", {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min", "solver_order": 3}, "solver_order"),
        (
            "euler",
            {"interpolation_type": "log_linear", "timestep_type": "continuous", "prediction_type": "v_prediction"},
            "interpolation_type",
        ),
    ],
)
def test_fields_that_do_not_go_together_are_named(name: str, config: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        make_scheduler(name, config)


@pytest.mark.parametrize("name", NAMES)
def test_fields_of_other_samplers_are_ignored(name: str) -> None:
    plain = make_scheduler(name, {}).plan(10)
    carried = make_scheduler(name, {"skip_prk_steps": True, "tau_func": 5, "trained_betas": None, "_x": 1}).plan(10)
    assert np.array_equal(plain.timesteps, carried.timesteps)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_any_number_of_steps_gives_that_many_or_is_refused(name: str, spacing: str) -> None:
    scheduler = make_scheduler(name, {"timestep_spacing": spacing})
    for steps in (1, 2, 3, 61, 103, 250, 499, 999, 1000):
        try:
            stepper = scheduler.plan(steps)
        except InputError:
            assert steps > (50 if name in DISTILLED else 200), steps
            continue
        once = steps + (name == "pndm" and steps > 1)  # its first step is taken twice
        assert len(stepper.timesteps) == (2 * steps - 1 if name in TWO_STAGE else once)
        assert stepper.timesteps.min() >= 0
        assert stepper.timesteps.max() <= 999
        falls = np.diff(stepper.timesteps)
        assert np.all(falls <= 0 if name in (*TWO_STAGE, "pndm") or "karras" in name else falls < 0)


@pytest.mark.parametrize("steps", [0, -1, 1001])
@pytest.mark.parametrize("name", NAMES)
def test_impossible_steps_are_refused(name: str, steps: int) -> None:
    with pytest.raises(InputError):
        make_scheduler(name, {}).plan(steps)


def test_distilled_samplers_know_their_own_steps() -> None:
    with pytest.raises(InputError, match="51"):
        make_scheduler("lcm", {}).plan(51)
    assert make_scheduler("tcd", {"original_inference_steps": 100}).plan(51).timesteps[0] == 999


@pytest.mark.parametrize("name", ["ddim", "ddpm", "lcm", "tcd"])
def test_a_schedule_without_signal_cannot_start_from_noise_prediction(name: str) -> None:
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with pytest.raises(InputError, match="no signal"):
        make_scheduler(name, config).plan(10)
    assert make_scheduler(name, {**config, "prediction_type": "v_prediction"}).plan(10).timesteps[0] == 999


@pytest.mark.parametrize(("name", "eta"), [("euler", 0.5), ("ddim", -0.1), ("ddim", 1.5), ("tcd", float("nan"))])
def test_eta_has_its_place_and_range(name: str, eta: float) -> None:
    with pytest.raises(InputError, match="eta"):
        make_scheduler(name, {}, eta)


def test_eta_decides_whether_noise_is_drawn() -> None:
    assert [make_scheduler(name, {}, eta).stochastic for name in ("ddim", "tcd") for eta in (None, 0.0, 0.5)] == [
        False, False, True, True, False, True,
    ]  # fmt: skip


def test_noise_is_asked_for_by_the_stochastic_alone() -> None:
    assert [name for name in NAMES if make_scheduler(name, {}).stochastic] == list(STOCHASTIC)
    for name in NAMES:
        stepper = make_scheduler(name, {}).plan(4)
        latents = np.ones((1, *SHAPE), np.float32)
        if name in STOCHASTIC:
            with pytest.raises(InputError, match="noise"):
                stepper.step(latents, 0, latents)
        else:
            assert np.isfinite(stepper.step(latents, 0, latents)).all()


def run(scheduler: Scheduler, steps: int, seeds: Sequence[int], in_place: bool = False) -> np.ndarray:
    """A run of as many images as seeds, with noise of each image's own."""
    generators = [Generator(seed) for seed in seeds]
    draw = partial(draws, generators, SHAPE)
    start = draw()
    stepper = scheduler.plan(steps, draw)
    latents = start * np.float32(stepper.init_noise_sigma)
    for i in range(len(stepper.timesteps)):
        given = latents.copy()
        output = np.tanh(stepper.scale_model_input(latents, i)).astype(np.float32)
        kept = output.copy()
        following = stepper.step(output, i, latents, latents if in_place else None)
        assert np.array_equal(output, kept)
        assert following is latents if in_place else np.array_equal(given, latents)
        assert following.dtype == np.float32
        latents = following
    return latents


@pytest.mark.parametrize("name", NAMES)
def test_runs_share_a_scheduler_without_disturbing_each_other(name: str) -> None:
    scheduler = make_scheduler(name, {})
    alone = [run(scheduler, 5 + seed % 3, [seed]) for seed in range(32)]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda seed: run(scheduler, 5 + seed % 3, [seed]), range(32)))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("config", [{}, {"thresholding": True}, {"clip_sample": True}], ids=str)
def test_image_k_of_a_batch_is_the_single_image_of_its_seed(name: str, config: dict[str, Any]) -> None:
    scheduler = make_scheduler(name, config)
    seeds = [7, 2**32 + 8, 2**63]
    batch = run(scheduler, 6, seeds)
    for k, seed in enumerate(seeds):
        assert np.array_equal(run(scheduler, 6, [seed])[0], batch[k])


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_steps_add_noise_of_the_seed(name: str) -> None:
    """With the same first latents, another stream of noise ends elsewhere."""
    ends = []
    for seed in (1, 1, 2):
        stepper = make_scheduler(name, {}).plan(4, partial(draws, [Generator(seed)], SHAPE))
        latents = np.ones((1, *SHAPE), np.float32)
        for i in range(len(stepper.timesteps)):
            latents = stepper.step(np.tanh(stepper.scale_model_input(latents, i)), i, latents)
        ends.append(latents)
    assert np.array_equal(ends[0], ends[1])
    assert not np.allclose(ends[0], ends[2], atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_in_place_is_the_same(name: str) -> None:
    scheduler = make_scheduler(name, {"solver_order": 3} if name in ("unipc", "dpm++2m") else {})
    assert np.array_equal(run(scheduler, 7, [3, 4]), run(scheduler, 7, [3, 4], in_place=True))
    stepper = scheduler.plan(3)
    latents, out = draws([Generator(1)], SHAPE), np.zeros((1, *SHAPE), np.float32)
    scaled = stepper.scale_model_input(latents, 0, out)
    assert scaled is out
    assert np.array_equal(scaled, stepper.scale_model_input(latents, 0))
    noised = stepper.add_noise(latents, latents, 1, out)
    assert noised is out
    assert np.array_equal(noised, stepper.add_noise(latents, latents, 1))


@pytest.mark.parametrize("name", NAMES)
def test_steps_in_place_allocate_nothing_of_the_latents_size(name: str) -> None:
    shape = (1, 4, 128, 128)
    noise = np.ones(shape, np.float32)
    stepper = make_scheduler(name, {}).plan(8, lambda: noise)
    latents, batch, output = noise.copy(), np.empty(shape, np.float32), np.full(shape, 0.1, np.float32)
    peaks = []
    tracemalloc.start()
    try:
        for i in range(len(stepper.timesteps)):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            stepper.scale_model_input(latents, i, batch)
            stepper.step(output, i, latents, latents)
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    assert peaks[0] >= noise.nbytes  # the run's own memory, or the measure measures nothing
    assert max(peaks[5 if name == "pndm" else 3 :]) < noise.nbytes / 2


def test_a_schedulers_tables_cannot_be_written() -> None:
    scheduler: Any = make_scheduler("ddim", {})
    with pytest.raises(ValueError, match="read-only"):
        scheduler._alphas[0] = 0.5


def test_beta_quantiles() -> None:
    """What scipy.stats.beta.ppf(q, 0.6, 0.6) gives."""
    known = {0.0: 0.0, 0.001: 1.855873851745199e-05, 0.1: 0.03958440558878085, 0.25: 0.17568037865269498, 0.9: 0.9604155944112192, 1.0: 1.0}
    assert np.allclose(beta_quantiles(np.array(list(known))), list(known.values()), rtol=1e-12, atol=0)


@pytest.mark.parametrize("package", ["scipy", "torch", "diffusers"])
def test_no_sampler_needs(package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from platemark.runtime.schedulers import NAMES, make_scheduler\n"
        "for name in NAMES: make_scheduler(name, {}).plan(5)\n"
        "make_scheduler('euler', {'use_beta_sigmas': True}).plan(5)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_documentation_names_every_sampler_and_class() -> None:
    text = (Path(__file__).parents[2] / "docs" / "samplers.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in NAMES)
    assert all(kind in text for kind in REFERENCES.values())


def test_a_late_start_of_pndm_is_exact_where_the_noise_is_all_there_is_to_take_away() -> None:
    """With a network that knows the noise every order is exact, so a run that began at any step lands on the picture."""
    clean, noise = draws([Generator(1), Generator(2)], SHAPE)
    for begin in range(10):
        stepper = make_scheduler("pndm", {"set_alpha_to_one": True}).plan(10)
        first = stepper.evaluation(begin)
        latents = stepper.add_noise(clean, noise, first)
        for i in range(first, len(stepper.timesteps)):
            latents = stepper.step(noise, i, latents)
        assert np.abs(latents - clean).max() < 1e-4


@pytest.mark.parametrize("skip", [{}, {"skip_prk_steps": False}])
def test_pndm_with_runge_kutta_steps_is_refused_by_name(skip: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="skip_prk_steps"):
        make_scheduler(None, {"_class_name": "PNDMScheduler", **skip})
    assert make_scheduler("pndm", {"_class_name": "PNDMScheduler", **skip}).name == "pndm"
    assert make_scheduler(None, {"_class_name": "PNDMScheduler", "skip_prk_steps": True}).name == "pndm"
