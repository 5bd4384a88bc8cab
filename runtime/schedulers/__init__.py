"""Samplers in numpy, each equal to the diffusers scheduler of the same config and noise. docs/samplers.md has the table.

A family's module is loaded when it is first asked for: a process uses one or two of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from platemark.errors import InputError
from platemark.runtime.schedulers.base import Draw, Scheduler, Stepper

__all__ = ["DEFAULT_ETA", "NAMES", "REFERENCES", "Draw", "Scheduler", "Stepper", "make_scheduler", "reference_config"]


@dataclass(frozen=True)
class _Sampler:
    """`place`: module and class here. `reference`: the diffusers class. `fields`: what the name itself sets in the config."""

    place: str
    reference: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def make(self, name: str, config: Mapping[str, Any], **options: float) -> Scheduler:
        module, kind = self.place.split(".")
        scheduler: Scheduler = getattr(import_module(f"{__name__}.{module}"), kind)(name, config, **options)
        return scheduler


_KARRAS = {"use_karras_sigmas": True, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_SDE = {"algorithm_type": "sde-dpmsolver++"}
_MULTISTEP, _TWO_STAGE = "DPMSolverMultistepScheduler", "DPMSolverSDEScheduler"
_SAMPLERS: dict[str, _Sampler] = {
    "ddim": _Sampler("ddim.DDIM", "DDIMScheduler"),
    "ddpm": _Sampler("ddpm.DDPM", "DDPMScheduler"),
    "euler": _Sampler("euler.Euler", "EulerDiscreteScheduler"),
    "euler-a": _Sampler("euler.EulerAncestral", "EulerAncestralDiscreteScheduler"),
    "heun": _Sampler("heun.Heun", "HeunDiscreteScheduler"),
    "pndm": _Sampler("pndm.PNDM", "PNDMScheduler", {"skip_prk_steps": True}),
    "dpm++2m": _Sampler("dpmpp.DPMSolver", _MULTISTEP),
    "dpm++2m-karras": _Sampler("dpmpp.DPMSolver", _MULTISTEP, _KARRAS),
    "dpm++2m-sde": _Sampler("dpmpp.DPMSolver", _MULTISTEP, _SDE),
    "dpm++2m-sde-karras": _Sampler("dpmpp.DPMSolver", _MULTISTEP, {**_SDE, **_KARRAS}),
    "dpm++sde": _Sampler("dpmsde.DPMSDE", _TWO_STAGE),
    "dpm++sde-karras": _Sampler("dpmsde.DPMSDE", _TWO_STAGE, _KARRAS),
    "unipc": _Sampler("unipc.UniPC", "UniPCMultistepScheduler"),
    "lcm": _Sampler("consistency.LCM", "LCMScheduler"),
    "tcd": _Sampler("consistency.TCD", "TCDScheduler"),
}
# How much noise the steps of these draw, from 0 to 1, where nothing else is asked for.
DEFAULT_ETA = {"ddim": 0.0, "tcd": 0.3}
NAMES: tuple[str, ...] = tuple(_SAMPLERS)
# The diffusers class of each name.
REFERENCES: dict[str, str] = {name: sampler.reference for name, sampler in _SAMPLERS.items()}
_BY_CLASS = {sampler.reference: name for name, sampler in reversed(_SAMPLERS.items())}


def make_scheduler(name: str | None, config: Mapping[str, Any], eta: float | None = None) -> Scheduler:
    """The sampler `name` (one of `NAMES`; None: the config's `_class_name`) with the noise schedule of a diffusers scheduler config.

    `eta` in [0, 1], for those of `DEFAULT_ETA`: how much noise the steps draw. Raises `InputError` for an unknown name, for a
    config field that the sampler does not support, by name, and for an `eta` that it has no place for.
    """
    own = config.get("_class_name")
    chosen = _BY_CLASS.get(str(own)) if name is None else name
    if chosen not in _SAMPLERS:
        wanted = repr(name) if name is not None else f"the checkpoint's own {own!r}"
        raise InputError(f"unknown scheduler: {wanted[:60]}", f"choose one of {', '.join(NAMES)}")
    if eta is not None and (chosen not in DEFAULT_ETA or not 0.0 <= eta <= 1.0):
        raise InputError(f"the scheduler {chosen!r} cannot use eta = {eta:g}", f"give 0 to 1 to one of {', '.join(DEFAULT_ETA)}")
    options = {"eta": DEFAULT_ETA[chosen] if eta is None else eta} if chosen in DEFAULT_ETA else {}
    fields = {} if name is None else _SAMPLERS[chosen].fields
    return _SAMPLERS[chosen].make(chosen, {**config, **fields}, **options)


def reference_config(name: str | None, config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The diffusers class of a sampler, and the config from which it is the same sampler."""
    if name is None:
        return str(config.get("_class_name")), dict(config)
    return REFERENCES[name], {**config, **_SAMPLERS[name].fields}
