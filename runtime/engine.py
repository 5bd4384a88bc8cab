"""The contract between the denoise loop and whatever computes: named arrays in, named arrays out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from platemark.errors import EngineError

Array = NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. A dim is an int where it is fixed and a name (`"batch"`) where it is free."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]


def sizes_of(shape: Sequence[int | str], dims: Mapping[str, int]) -> tuple[int, ...]:
    """A shape in numbers. Free dims are names from `dims`, or made of one: `height/8`, `8*height`. Raises `KeyError` for others."""
    return tuple(dim if isinstance(dim, int) else _size(dim, dims) for dim in shape)


def _size(dim: str, dims: Mapping[str, int]) -> int:
    if "*" in dim:
        factor, name = dim.split("*")
        return int(factor) * dims[name]
    name, _, divisor = dim.partition("/")
    return dims[name] // int(divisor or 1)


class Engine(Protocol):
    """One compiled network. Safe to call from several threads at once."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Computes every output. Raises `EngineError` naming the engine and the cause."""
        ...


@runtime_checkable
class BindingEngine(Engine, Protocol):
    """An engine that can write into arrays of the caller's."""

    def run_into(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Computes the outputs named, into C-contiguous arrays of just their shapes and dtypes. Raises `EngineError`."""
        ...


def run_into(engine: Engine, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
    """Computes the outputs named into arrays of the caller's; where the engine cannot, its own are copied. Raises `EngineError`."""
    if isinstance(engine, BindingEngine):
        engine.run_into(inputs, outputs)
        return
    answers = engine.run(inputs)
    for name, array in outputs.items():
        if answers[name].shape != array.shape:
            raise EngineError(f"the network gives {name} as {answers[name].shape}, not {array.shape}", "rebuild the bundle")
        np.copyto(array, answers[name])


def check_inputs(engine: str, specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> None:
    """Raises `EngineError`, naming the engine and the input, where names, dtypes or numbers of dims are not those of the specs."""
    remedy = "rebuild the bundle with `platemark build`; `platemark doctor` shows what this machine can run"
    expected = {spec.name: spec for spec in specs}
    if set(inputs) != set(expected):
        message = f"{engine} takes the inputs {', '.join(sorted(expected))}, not {', '.join(sorted(inputs)) or 'none'}"
        raise EngineError(message, remedy)
    for name, value in inputs.items():
        spec = expected[name]
        if value.dtype != spec.dtype or value.ndim != len(spec.shape):
            message = f"{engine} takes {name} as {spec.dtype} of {len(spec.shape)} dims, not {value.dtype} of {value.ndim}"
            raise EngineError(message, remedy)
