"""Makes the abstract positive control: soft blobs of colour, moved about until a detector of sexual pictures scores them high.

    python -m benchmarks.safety_control [--detector nsfw] [--seed 0] [--goal 0.95] [--out tests/safety/data/control_nsfw.png]

It shows nothing. A test needs a picture that the detector is sure of, to prove that what it says reaches the decision, and no explicit
picture is to be made or kept for that. It says nothing about how well explicit pictures are found.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from platemark.safety.detectors import registry
from platemark.safety.signals import Signal

SIDE, BLOBS = 224, 40
MOST = 20_000  # looks; an attempt that is stuck is given up after `PATIENCE` without a gain
PATIENCE = 1_500

Blobs = NDArray[np.float64]  # (N, 7): row, column, height, width (in sides), red, green, blue (in [0, 1])


def draw(blobs: Blobs) -> NDArray[np.uint8]:
    """uint8 RGB (224, 224, 3): Gaussian blobs over one another on grey."""
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    canvas = np.full((SIDE, SIDE, 3), 0.5)
    for row, column, height, width, *colour in blobs:
        cover = np.exp(-(((rows - row) / height) ** 2) - ((columns - column) / width) ** 2)[..., None]
        canvas = canvas * (1 - cover) + np.array(colour) * cover
    return np.rint(np.clip(canvas, 0, 1) * 255).astype(np.uint8)


def climb(detector: str, seed: int, goal: float) -> tuple[NDArray[np.uint8], float]:
    """Random changes, kept where the score does not fall: (picture, its score)."""
    looks = registry.load(detector, threads=1)
    rng = np.random.default_rng(seed)
    blobs = np.concatenate([rng.random((BLOBS, 2)), rng.uniform(0.05, 0.3, (BLOBS, 2)), rng.random((BLOBS, 3))], axis=1)
    best, gained = _score(looks.observe(draw(blobs)).signals), 0
    for look in range(MOST):
        changed = _changed(blobs, rng)
        score = _score(looks.observe(draw(changed)).signals)
        if score > best:
            gained = look
        if score >= best:
            blobs, best = changed, score
        if best >= goal or look - gained > PATIENCE:
            break
        if look % 200 == 0:
            sys.stderr.write(f"\r{look} looks: {best:.3f}")
    sys.stderr.write("\n")
    return draw(blobs), best


def _score(signals: tuple[Signal, ...]) -> float:
    return max(signal.score for signal in signals)


def _changed(blobs: Blobs, rng: np.random.Generator) -> Blobs:
    """One or two blobs moved, stretched and recoloured, a little or a lot."""
    found = blobs.copy()
    for place in rng.integers(0, len(blobs), rng.integers(1, 3)):
        found[place] += rng.normal(0, rng.choice([0.02, 0.1, 0.3]), 7) * np.array([1, 1, 0.3, 0.3, 1, 1, 1])
    found[:, 2:4] = np.clip(found[:, 2:4], 0.02, 0.5)
    found[:, 4:] = np.clip(found[:, 4:], 0, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", default="nsfw", choices=["nsfw", "opennsfw"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--goal", type=float, default=0.95)
    parser.add_argument("--out", type=Path, default=Path("tests/safety/data/control_nsfw.png"))
    args = parser.parse_args()
    picture, score = climb(args.detector, args.seed, args.goal)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(args.out, optimize=True)
    print(f"{args.out}: {args.detector} {score:.3f}")


if __name__ == "__main__":
    main()
