"""torch as the reference: wraps a module into the engine contract, so that the same loop runs both. Imports torch only when it wraps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from platemark.errors import EngineError, MissingExtra
from platemark.runtime.engine import Array, TensorSpec

if TYPE_CHECKING:
    from torch.nn import Module


class TorchEngine:
    """One module, called with its inputs by name. Its outputs are one tensor, or a sequence of tensors, in the order of `outputs`."""

    def __init__(self, name: str, module: Module, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        self.name, self._module = name, module
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        import torch

        tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in inputs.items()}
        try:
            with torch.inference_mode():
                result = self._module(**tensors)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            message = f"torch failed in {self.name}: {' '.join(str(error).split())[:300]}"
            raise EngineError(message, "check the inputs' names and shapes") from error
        values = result if isinstance(result, (tuple, list)) else (result,)
        return {spec.name: value.float().numpy() for spec, value in zip(self._outputs, values, strict=True)}


def wrap(name: str, module: Module, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> TorchEngine:
    """`module` (in evaluation mode, on the CPU) as an engine. Raises `MissingExtra` where torch is not installed."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtra("the torch backend", "build") from error
    return TorchEngine(name, module, inputs, outputs)
