"""Harmless pictures that the picture checks are measured on, split by source into the halves `tune` and `report`.

Photographs (those of `benchmarks.watermark.images`, whole and in windows), drawings and gradients from there, pictures that the embedded
model made; and the faces inside scikit-image. Thresholds and looks are chosen on `tune`; `report` shares no photograph and no name with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from benchmarks.watermark import images

Pixels = NDArray[np.uint8]
Half = Literal["tune", "report"]
HALVES: tuple[Half, Half] = ("tune", "report")
SIZE, WINDOWS, LONGEST = 512, 3, 1024  # of windows; windows a photograph; longer side of a whole one, in pixels
MADE = 8  # every how manyth of the embedded model's names


@dataclass(frozen=True)
class Item:
    """A harmless picture, and what it comes from."""

    half: Half
    kind: str
    name: str
    picture: Pixels


def harmless(made: Path | None) -> Iterator[Item]:
    """All pictures. `made`: the file of `training.evaluate --pictures`; None: the embedded model makes them anew (minutes)."""
    for half in HALVES:
        yield from _photographs(half)
        for spec in images.specs(half, SIZE, ("flat", "gradient")):
            yield Item(half, spec.kind, spec.name, images.load(spec))
    for place, picture in _kept(made) if made else _made():
        shown = Image.fromarray(picture).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        yield Item(HALVES[place // MADE % 2], "embedded model", f"name {place}", np.asarray(shown))


def _photographs(half: Half) -> Iterator[Item]:
    for name in images.half(half):
        with Image.open(images.photographs()[name]) as opened:
            whole = opened.convert("RGB")
            whole.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        yield Item(half, "photograph", name, np.asarray(whole))
        for number in range(WINDOWS):
            spec = images.Spec(f"{name}#{number}", "photo", SIZE, (name,))
            yield Item(half, "window", spec.name, images.load(spec))


def _kept(file: Path) -> Iterator[tuple[int, Pixels]]:
    kept = np.load(file, allow_pickle=False)
    yield from ((int(place), picture) for place, picture in list(zip(kept["index"], kept["pictures"], strict=True))[::MADE])


def _made() -> Iterator[tuple[int, Pixels]]:
    from platemark.models import embedded
    from platemark.runtime.bundle import open_bundle
    from platemark.runtime.pipeline import Pipeline
    from platemark.runtime.request import GenerationRequest

    bundle = open_bundle(embedded())
    pipeline = Pipeline.load(bundle)
    for place, name in list(enumerate(bundle.names()))[::MADE]:
        request = GenerationRequest.make(bundle.manifest, prompt=name, seed=place)
        yield place, pipeline.generate(request).images[0]


def faces(side: int) -> tuple[list[Pixels], list[Pixels]]:
    """(100 faces, 100 pictures without one) of Labeled Faces in the Wild as scikit-image has them, 25 pixels grey, grown to `side`."""
    from skimage import data

    grey = np.rint(np.asarray(data.lfw_subset()) * 255).astype(np.uint8)
    grown = [np.asarray(Image.fromarray(one).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)) for one in grey]
    return grown[:100], grown[100:]


def pasted(number: int, side: int) -> tuple[Pixels, tuple[int, int, int, int]]:
    """A photograph of the report half, 1024 pixels square, with a face of `side` pixels at a random place, and its box."""
    names = images.half("report")
    with Image.open(images.photographs()[names[number % len(names)]]) as opened:
        scene = ImageOps.fit(opened.convert("RGB"), (LONGEST, LONGEST))
    left, top = (int(at) for at in np.random.default_rng(number).integers(0, LONGEST - side, 2))
    scene.paste(Image.fromarray(faces(side)[0][4 * number % 100]), (left, top))
    return np.asarray(scene), (left, top, left + side, top + side)


def peak_mib() -> float:
    """The most memory that this process ever held, MiB. (`ru_maxrss` of a child begins with its parent's.)"""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
