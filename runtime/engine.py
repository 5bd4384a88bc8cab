"""The contract between the denoise loop and whatever computes: named arrays in, named arrays out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. A dim is an int where it is fixed and a name (`"batch"`) where it is free."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]


class Engine(Protocol):
    """One compiled network. Safe to call from several threads at once."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Computes every output. Raises `EngineError` naming the engine and the cause."""
        ...
