"""A picture, its facts, and identities made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from platemark.provenance.identity import Identity, development_identity, init_keys
from platemark.provenance.record import Facts


def _picture(seed: int = 0, height: int = 320, width: int = 384) -> np.ndarray:
    """Smooth colours with soft blobs and fine grain: enough texture for a mark and a perceptual hash."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    picture = np.stack([80 + 90 * x / width, 170 - 90 * y / height, np.full((height, width), 110.0)], axis=-1)
    for _ in range(60):
        cy, cx, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(8, 30)
        picture += np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * radius**2))[..., None] * rng.uniform(-120, 120, 3)
    return np.clip(picture + rng.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)


def _facts(**changes: Any) -> Facts:
    values: dict[str, Any] = {
        "model_name": "test-model",
        "model_sha256": "ab" * 32,
        "bundle_sha256": "cd" * 32,
        "seed": 2**64 - 1,
        "request_hmac": "ef" * 32,
        "settings": {"steps": "20"},
        "resampled_from": None,
        "decision": {"action": "allow", "policy_id": "standard", "policy_sha256": "12" * 32, "scores": {"weapon": 0.1}},
    }
    return Facts(**{**values, **changes})


@pytest.fixture(scope="session")
def make_picture() -> Callable[..., np.ndarray]:
    """`make_picture(seed, height, width)`."""
    return _picture


@pytest.fixture(scope="session")
def make_facts() -> Callable[..., Facts]:
    """`make_facts(field=value, ...)`."""
    return _facts


@pytest.fixture(scope="session")
def picture() -> np.ndarray:
    return _picture()


@pytest.fixture(scope="session")
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder where somebody ran `keys init`."""
    home = tmp_path_factory.mktemp("own")
    init_keys(home, name="Test Studio")
    return home


@pytest.fixture(scope="session")
def own(own_home: Path) -> Identity:
    return development_identity(own_home)


@pytest.fixture(scope="session")
def dev_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with a development identity only."""
    home = tmp_path_factory.mktemp("dev")
    development_identity(home)
    return home


@pytest.fixture(scope="session")
def dev(dev_home: Path) -> Identity:
    return development_identity(dev_home)
