"""What one hypothesis of the search came to, and the reading of its symbols. The same for every layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from platemark.provenance.watermark import code
from platemark.provenance.watermark.key import WatermarkKey
from platemark.provenance.watermark.layout import SYMBOLS, LayoutName, strength_of
from platemark.provenance.watermark.payload import Payload, unseal


@dataclass(frozen=True)
class Symbols:
    """Soft symbols as received. `values` complex (n,), real and positive for +1; `symbol` (n,): the coded symbol (0..527) of each."""

    values: NDArray[np.complex64]
    symbol: NDArray[np.intp]


@dataclass(frozen=True)
class Finding:
    """A scored hypothesis. `p_value`: of the pilots' `score` under this hypothesis alone; `symbols` fetches what its data carriers say."""

    layout: LayoutName
    geometry: dict[str, Any]
    score: float
    p_value: float
    symbols: Callable[[], Symbols]


@dataclass(frozen=True)
class Reading:
    """A decoded word. `payload` is None where the check failed; `score`: the data's statistic against the word, N(0, 1) by chance for a
    given word; `symbol_error_rate`: share of the carriers that say the opposite of it."""

    payload: Payload | None
    score: float
    symbol_error_rate: float


def read(symbols: Symbols, key: WatermarkKey) -> Reading:
    """Combines repeated symbols, decodes, and checks."""
    values = symbols.values
    soft = np.bincount(symbols.symbol, weights=values.real, minlength=SYMBOLS).astype(np.float32)
    bits = code.decode(soft)
    signed = values.real * code.encode(bits)[symbols.symbol]
    held = values != 0
    errors = float((signed[held] <= 0).mean()) if held.any() else 1.0
    return Reading(unseal(bits, key), strength_of(signed, values.real**2 + values.imag**2), errors)
