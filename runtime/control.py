"""A ControlNet in front of the UNet (Zhang et al. 2023): together they are the one network that the denoise loop calls.

Knows nothing about pictures: the condition comes as rows like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Lock

import numpy as np

from platemark.runtime.engine import Array, Engine, TensorSpec, run_into, sizes_of

CONDITION, SCALE = "controlnet_cond", "conditioning_scale"
RESIDUAL = "residual_"  # how the UNet's further inputs, which are the ControlNet's outputs, begin


class Controlled:
    """Rows that bring a condition go through the ControlNet first; the UNet's residuals of the others are zeros, which change nothing."""

    def __init__(self, control: Callable[[], Engine], unet: Engine) -> None:
        """`control`: asked for when the first condition comes."""
        self._control, self._unet = control, unet
        self._residuals = tuple(spec for spec in unet.inputs if spec.name.startswith(RESIDUAL))
        self._zeros: dict[str, Array] = {}
        self._lock = Lock()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The UNet's, less what the ControlNet gives it."""
        return tuple(spec for spec in self._unet.inputs if spec not in self._residuals)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._unet.outputs

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """As an `Engine`. `controlnet_cond` (rows, 3, H, W) and `conditioning_scale` (rows,) may be among the inputs."""
        return self._unet.run(self._all(inputs))

    def run_into(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """As a `BindingEngine`; inputs as of `run`."""
        run_into(self._unet, self._all(inputs), outputs)

    def _all(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """What the UNet reads, residuals included."""
        own = {name: values for name, values in inputs.items() if name not in (CONDITION, SCALE)}
        if CONDITION not in inputs:
            return own | self._nothing(own["sample"])
        control = self._control()
        return own | control.run({spec.name: inputs[spec.name] for spec in control.inputs})

    def _nothing(self, sample: Array) -> dict[str, Array]:
        """Zeros of every residual's shape, those of the last call where it was as large."""
        rows, _, height, width = sample.shape
        sizes = {"batch": rows, "height": height, "width": width}
        shapes = {spec.name: sizes_of(spec.shape, sizes) for spec in self._residuals}
        with self._lock:
            if any(self._zeros.get(name, sample[:0]).shape != shape for name, shape in shapes.items()):
                self._zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
            return self._zeros
