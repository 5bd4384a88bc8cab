"""What one hypothesis of the layout `pixel` came to: its score, and what its carriers say when asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from platemark.provenance.watermark.key import WatermarkKey
from platemark.provenance.watermark.reading import Reading, judge


@dataclass(frozen=True)
class Symbols:
    """Soft symbols as received. `values` complex (n,), real and positive for +1; `symbol` (n,): the coded symbol (0..527) of each."""

    values: NDArray[np.complex64]
    symbol: NDArray[np.intp]

    def read(self, key: WatermarkKey) -> Reading:
        """Combines repeated symbols, decodes, and checks."""
        return judge(self.values, self.symbol, key)


@dataclass(frozen=True)
class Finding:
    """A scored hypothesis: `geometry` as reported, the pilots' `score` and its p-value under this hypothesis alone."""

    geometry: dict[str, Any]
    score: float
    p_value: float
    symbols: Callable[[], Symbols]
