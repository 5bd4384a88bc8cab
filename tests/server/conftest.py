"""A registry with released pictures, and the service over it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from platemark.provenance.identity import init_keys
from platemark.provenance.record import Facts
from platemark.provenance.registry import Registry
from platemark.provenance.stamp import Stamped, open_stamp
from platemark.server.limits import Limits

PROMPT = "SECRET-PROMPT of a red apple"


def _picture(seed: int) -> np.ndarray:
    """Soft blobs and fine grain, uint8 (256, 320, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:256, 0:320].astype(np.float64)
    picture = np.stack([80 + 90 * x / 320, 170 - 90 * y / 256, np.full((256, 320), 110.0)], axis=-1)
    for _ in range(50):
        cy, cx, radius = rng.uniform(0, 256), rng.uniform(0, 320), rng.uniform(8, 30)
        picture += np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * radius**2))[..., None] * rng.uniform(-120, 120, 3)
    return np.clip(picture + rng.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Released:
    home: Path
    one: Stamped
    two: Stamped


@pytest.fixture(scope="session")
def make_picture() -> Callable[[int], np.ndarray]:
    return _picture


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Released:
    home = tmp_path_factory.mktemp("released")
    init_keys(home, name="Test Studio")
    facts = Facts(
        model_name="test-model",
        model_sha256="ab" * 32,
        bundle_sha256="cd" * 32,
        seed=7,
        request_hmac="ef" * 32,
        settings={"num_inference_steps": "20"},
        resampled_from=None,
        decision={"action": "allow"},
        prompt=PROMPT,
    )
    stamp = open_stamp(home)
    one, two = (stamp.apply(_picture(seed), facts, stamp.reserve()) for seed in (1, 2))
    # As under a policy that lets the registry hold prompts in clear: the service must not give them out.
    with Registry.open(home) as registry:
        clear = one.record.model_copy(update={"facts": replace_prompt(one.record.facts)})
        with registry.database.begin(write=True) as connection:
            connection.exec_driver_sql("UPDATE records SET record = ? WHERE content_id = ?", (clear.model_dump_json(), clear.content_id))
    stamp.registry.close()
    return Released(home, one, two)


def replace_prompt(facts: Facts) -> Facts:
    return facts.model_copy(update={"prompt": PROMPT})


@pytest.fixture
def generous() -> Limits:
    """Limits that no test of something else meets."""
    return replace(Limits(), per_minute=100_000)
