"""Scheduler configs as checkpoints write them.

One pydantic model a sampler is the table of what that sampler honours. A field that it cannot honour accepts its harmless values only, so
any other value is refused by name; fields that belong to other samplers are ignored, as the reference schedulers ignore them. Knows
nothing about sampling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from platemark.errors import InputError
from platemark.runtime.schedulers.predict import Bounds
from platemark.runtime.schedulers.spacing import Levels

# Fields of other schedulers that checkpoints carry along; they say nothing about the network, only about the other sampler.
_OTHERS = """
    algorithm_type clip_sample clip_sample_range corrector_order disable_corrector dynamic_thresholding_ratio euler_at_final
    final_sigmas_type flow_shift interpolation_type lambda_min_clipped lower_order_final noise_sampler_seed original_inference_steps
    predict_x0 predictor_order sample_max_value set_alpha_to_one sigma_max sigma_min skip_prk_steps solver_order solver_p solver_type
    tau_func thresholding time_shift_type timestep_scaling timestep_type use_beta_sigmas use_exponential_sigmas
    use_karras_sigmas use_lu_lambdas
"""
_OF_OTHER_SAMPLERS = frozenset(_OTHERS.split())


class SamplerConfig(BaseModel):
    """The fields that every sampler honours: how noise was added in training, what the network predicts, how steps are spaced."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_train_timesteps: int = Field(default=1000, ge=2, le=100_000)
    beta_start: float = Field(default=0.0001, gt=0, lt=1)
    beta_end: float = Field(default=0.02, gt=0, lt=1)
    # A sampler takes those that its reference knows; the reference of each knows the first three.
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] | Literal["exp", "laplace", "sigmoid"] = "linear"
    trained_betas: list[float] | None = None
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    timestep_spacing: Literal["leading", "linspace", "trailing"] = "leading"
    steps_offset: int = Field(default=0, ge=0)
    rescale_betas_zero_snr: bool = False
    use_flow_sigmas: Literal[False] = False
    use_dynamic_shifting: Literal[False] = False
    shift_terminal: None = None
    # The learned ones mean a network that answers with its variance too.
    variance_type: Literal["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"] | None = None


class ClippingConfig(SamplerConfig):
    """Bounds on the network's x₀, as DDIM and its kin have them."""

    clip_sample: bool = True
    clip_sample_range: float = Field(default=1.0, gt=0)
    thresholding: bool = False
    dynamic_thresholding_ratio: float = Field(default=0.995, ge=0, le=1)
    sample_max_value: float = Field(default=1.0, ge=1)

    def bounds(self) -> Bounds:
        ratio = self.dynamic_thresholding_ratio if self.thresholding else None
        return Bounds(self.clip_sample_range if self.clip_sample else None, ratio, self.sample_max_value)


class ThresholdingConfig(SamplerConfig):
    """Bounds on the network's x₀, as the multistep solvers have them."""

    thresholding: bool = False
    dynamic_thresholding_ratio: float = Field(default=0.995, ge=0, le=1)
    sample_max_value: float = Field(default=1.0, ge=1)

    def bounds(self) -> Bounds:
        return Bounds(None, self.dynamic_thresholding_ratio if self.thresholding else None, self.sample_max_value)


class LevelsConfig(SamplerConfig):
    """Noise levels along a curve of their own, in place of those of the spaced timesteps. One curve at most."""

    timestep_spacing: Literal["leading", "linspace", "trailing"] = "linspace"
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    sigma_min: float | None = Field(default=None, gt=0)
    sigma_max: float | None = Field(default=None, gt=0)

    def levels(self, sampler: str) -> Levels | None:
        """The curve; None: the levels of the spaced timesteps. Raises `InputError` where two are asked for."""
        asked = [field for field in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas") if getattr(self, field)]
        if len(asked) > 1:
            raise InputError(f"the scheduler config sets {' and '.join(asked)}, and {sampler!r} follows one", "set one of them")
        return Levels(asked[0].split("_")[1], self.sigma_min, self.sigma_max) if asked else None


Config = TypeVar("Config", bound=SamplerConfig)


def parse(model: type[Config], sampler: str, config: Mapping[str, Any], schedules: tuple[str, ...] = ()) -> Config:
    """`config` as `model`; `schedules`: beta schedules that this sampler knows besides the common three. A null field takes its default.

    Raises `InputError` naming the field that `sampler` does not support.
    """
    fields = {name: value for name, value in config.items() if not name.startswith("_") and value is not None}
    known = {name: value for name, value in fields.items() if name in model.model_fields or name not in _OF_OTHER_SAMPLERS}
    try:
        parsed = model.model_validate(known)
    except ValidationError as error:
        field = str(error.errors()[0]["loc"][0])
        raise unsupported(sampler, field, fields[field]) from error
    if parsed.beta_schedule in ("exp", "laplace", "sigmoid") and parsed.beta_schedule not in schedules and parsed.trained_betas is None:
        raise unsupported(sampler, "beta_schedule", parsed.beta_schedule)
    betas = parsed.trained_betas
    if betas is not None and not (len(betas) == parsed.num_train_timesteps and all(0.0 < beta < 1.0 for beta in betas)):
        raise InputError("the scheduler config sets trained_betas that are not num_train_timesteps values in (0, 1)", "correct the config")
    return parsed


def unsupported(sampler: str, field: str, value: Any, beside: str = "") -> InputError:
    """The error that names a field; `beside` names what it does not go with."""
    message = f"the scheduler config sets {field} = {str(value)[:60]!r}{beside}, which the sampler {sampler!r} does not support"
    return InputError(message, "choose another scheduler, or use a checkpoint with a supported scheduler config")
