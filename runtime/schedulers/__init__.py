"""Samplers in numpy, each equal to the diffusers scheduler of the same config. Deterministic: none of these draws noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from platemark.errors import InputError
from platemark.runtime.schedulers.base import Scheduler, Stepper
from platemark.runtime.schedulers.ddim import DDIM
from platemark.runtime.schedulers.dpmpp import DPMSolverPP
from platemark.runtime.schedulers.euler import Euler

__all__ = ["NAMES", "Scheduler", "Stepper", "make_scheduler"]

_SAMPLERS: dict[str, type[DDIM] | type[Euler] | type[DPMSolverPP]] = {"ddim": DDIM, "euler": Euler, "dpm++2m": DPMSolverPP}
_BY_CLASS = {"DDIMScheduler": "ddim", "EulerDiscreteScheduler": "euler", "DPMSolverMultistepScheduler": "dpm++2m"}
NAMES: tuple[str, ...] = tuple(_SAMPLERS)


def make_scheduler(name: str | None, config: Mapping[str, Any]) -> Scheduler:
    """The sampler `name` (one of `NAMES`; None: the config's `_class_name`) with the noise schedule of a diffusers scheduler config.

    Raises `InputError` for an unknown name, and for a config field that the sampler does not support, by name.
    """
    own = config.get("_class_name")
    chosen = _BY_CLASS.get(str(own)) if name is None else name
    if chosen not in _SAMPLERS:
        wanted = repr(name) if name is not None else f"the checkpoint's own {own!r}"
        raise InputError(f"unknown scheduler: {wanted[:60]}", f"choose one of {', '.join(NAMES)}")
    return _SAMPLERS[chosen](config)
