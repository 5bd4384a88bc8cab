"""Reads the data carriers at one geometry: weights by how each ring of frequencies came through, combines, decodes, checks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from platemark.provenance.watermark import code
from platemark.provenance.watermark.key import WatermarkKey
from platemark.provenance.watermark.layout import SYMBOLS, carriers, lattice, strength_of
from platemark.provenance.watermark.payload import Payload, unseal
from platemark.provenance.watermark.spectrum import Float

_RINGS = 6


@dataclass(frozen=True)
class Reading:
    """A decoded word. `payload` is None where the check failed; `score`: the data's statistic against the word, N(0, 1) by chance for a
    given word; `symbol_error_rate`: share of the carriers that say the opposite of it."""

    payload: Payload | None
    score: float
    symbol_error_rate: float


def read_carriers(values: NDArray[np.complex64], key: WatermarkKey) -> Reading:
    """From all carriers (1816,), with phase and shift taken out: real and positive for +1."""
    net = lattice()
    return judge((values * response(values))[net.data], carriers(key).symbol, key)


def judge(received: NDArray[np.complex64], symbol: NDArray[np.intp], key: WatermarkKey) -> Reading:
    """Combines weighted carriers (n,) by the coded symbol (0..527) that each holds, decodes them to a list of words and takes the first
    that passes the check; without one, the likeliest."""
    soft = np.bincount(symbol, weights=received.real, minlength=SYMBOLS).astype(np.float32)
    words = code.decode(soft, code.LIST)
    payloads = [unseal(word, key) for word in words]
    pick = next((n for n, payload in enumerate(payloads) if payload is not None), 0)
    signed = received.real * code.encode(words[pick])[symbol]
    held = received != 0
    errors = float((signed[held] <= 0).mean()) if held.any() else 1.0
    return Reading(payloads[pick], strength_of(signed, received.real**2 + received.imag**2), errors)


def response(values: NDArray[np.complex64]) -> Float:
    """Weights of all carriers (n,) by the mean of the pilots around their frequency: what blur or compression took counts little."""
    net = lattice()
    radius = net.radius[net.pilots]
    edges = np.quantile(net.radius, np.linspace(0, 1, _RINGS + 1))
    ring = np.clip(np.searchsorted(edges, radius, side="right") - 1, 0, _RINGS - 1)
    heard = values[net.pilots].real
    count = np.bincount(ring, minlength=_RINGS)
    mean = np.bincount(ring, heard, _RINGS) / count
    overall = max(float(heard.mean()), 0.05)
    # Each ring's mean is drawn towards the overall one by as much as it is uncertain (its noise has variance one half).
    share = 1 / (1 + 0.5 / count / (0.5 * overall) ** 2)
    mean = np.maximum(share * mean + (1 - share) * overall, 0.1 * overall)
    middle = (edges[1:] + edges[:-1]) / 2
    return np.asarray(np.interp(net.radius, middle, mean), dtype=np.float32)
