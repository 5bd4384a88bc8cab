"""One network at a time: its graph with the weights outside, and its torch reference as an engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from platemark.optimize.export import export_graph
from platemark.optimize.graph import link_weights, name_constants, name_values, share_constants
from platemark.optimize.modules import ByName, Named
from platemark.optimize.parts import Part
from platemark.optimize.passes.upsample import split_upsampled
from platemark.optimize.specs import Spec
from platemark.runtime.backends.torch import wrap
from platemark.runtime.engine import Array, Engine

PREFIX = "net."  # what `modules` calls the network inside its wrapper


def export_linked(spec: Spec, module: nn.Module, part: Part, example: Mapping[str, Array]) -> bytes:
    """The graph file of one component. The same bytes every time for the same checkpoint and versions."""
    weights: dict[str, NDArray[Any]] = {}  # views: a copy would double the memory that a large network takes
    model = export_graph(spec, module, {name: torch.from_numpy(value) for name, value in example.items()}, weights)
    name_values(model)
    share_constants(model)
    link_weights(model, part.tensors.values(), PREFIX, weights)
    split_upsampled(model)
    name_constants(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def reference(spec: Spec, module: nn.Module) -> Engine:
    """The torch network behind the engine contract."""
    return wrap(spec.component, ByName(module) if isinstance(module, Named) else module, spec.inputs, spec.outputs)
