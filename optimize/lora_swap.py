"""LoRAs on a finished bundle: the values that single weights get, without a build. Needs numpy alone.

Sums are made from the bundle's own weights every time and rounded once to the stored precision, as `lora.merge` does: so one set of LoRAs
leaves no trace in the next, and none gives the weights themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from platemark.optimize.lora import PARTS, Lora, assign, changed, known_weights
from platemark.optimize.weights import StoredTensor, as_stored, read_header
from platemark.runtime.bundle import Bundle
from platemark.runtime.engine import Array
from platemark.runtime.engines import Weights
from platemark.runtime.manifest import MergedLora


@dataclass(frozen=True)
class Swap:
    """`weights` for `Pipeline.with_weights`, and what each LoRA did."""

    weights: Weights
    reports: tuple[MergedLora, ...]


def swap(bundle: Bundle, loras: Sequence[Lora]) -> Swap:
    """What the LoRAs make of a bundle's weights; nothing for none. Raises as `lora.merge` does."""
    parts = [part for part in PARTS if part in bundle.manifest.components]
    held = {part: _tensors(bundle, part) for part in parts}
    known = {name: tensor for part in parts for name, tensor in known_weights(part, held[part]).items()}
    plan, reports = assign(loras, known)
    weights: dict[str, dict[str, Array]] = {}
    for part in parts:
        values = {tensor.name: as_stored(tensor, changed(tensor, plan[tensor])) for tensor in held[part].values() if tensor in plan}
        if values:
            weights[part] = values
    return Swap(weights, tuple(reports))


def _tensors(bundle: Bundle, part: str) -> dict[str, StoredTensor]:
    return {name: tensor for file in bundle.component(part).weights for name, tensor in read_header(bundle.file(file)).items()}
