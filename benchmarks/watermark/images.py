"""The pictures that the watermark is measured on, split by source photograph into the halves `tune` and `report`.

Photographs: those inside scikit-image and scikit-learn, and of Debian's wallpaper packages; crops and mosaics of them. Flat art: emoji,
text, charts, drawn wallpapers and the embedded model's own pictures. Gradients and noise. Everything is drawn from the name alone, so that
two runs see the same pixels. Knows nothing of watermarks.

The sources (nothing of them is in this repository): `pip install scikit-image scikit-learn emoji` and, on Debian,
`apt-get install mate-backgrounds lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 plasma-workspace-wallpapers ukui-wallpapers
fonts-noto-color-emoji fonts-dejavu`. A source that is not installed is left out; `describe` says which were used.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.watermark import drawn

Pixels = NDArray[np.uint8]
Split = Literal["tune", "report"]
Kind = Literal["photo", "mosaic", "flat", "gradient", "noise"]
KINDS: tuple[Kind, ...] = ("photo", "mosaic", "flat", "gradient", "noise")
EDITION = 1  # raise it when a drawing changes: kept pictures carry it in their names
CROPS = 4  # windows of each photograph
MOSAICS, FLAT, GRADIENTS, NOISES = 12, 40, 12, 6  # of each half

_PACKAGES = {
    "skimage/data": (
        "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
        "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg",
    ),
    "sklearn/datasets/images": ("china.jpg", "flower.jpg"),
}  # fmt: skip
_WALLPAPERS = {
    "backgrounds": (
        "2004default.jpg", "Bridge_by_Sander_Klootwijk.jpg", "Dragonfly_by_Bolly.jpg", "Fossa_by_Jasper_Roks.jpg",
        "Infinite-Sea_by_Aury88.jpg", "Kleiber_by_Lukas_Baubkus.jpg", "Picture_0B_by_freespace.jpg", "Picture_1A_by_freespace.jpg",
        "Wine_by_Jakkub_Mede.jpg", "aitzgorri_by_Aitzol_Berasategi.jpg", "analogpattern_by_Peter_Nerlich.jpg",
        "free_by_Peter_Nerlich.jpg", "friends_by_Aitzol_Berasategi.jpg", "greentock_by_Peter_Nerlich.jpg",
        "life_by_Aitzol_Berasategi.jpg", "picosdeeuropa_by_Aitzol_Berasategi.jpg", "seeding_by_Clements_Engelhardt.jpg",
        "sunset_by_Aitzol_Berasategi.jpg",
    ),
    "backgrounds/mate/nature": (
        "Aqua.jpg", "Blinds.jpg", "Dune.jpg", "FreshFlower.jpg", "Garden.jpg", "GreenMeadow.jpg", "LadyBird.jpg", "RainDrops.jpg",
        "Storm.jpg", "TwoWings.jpg", "Wood.jpg", "YellowFlower.jpg",
    ),
    "wallpapers": tuple(
        f"{name}/contents/images/2560x1600.jpg"
        for name in (
            "Autumn", "BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow", "FallenLeaf", "Grey", "Kite",
            "OneStandsOut", "Path", "summer_1am",
        )
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Spec:
    """A picture by name. `sources`: the photographs (or the drawing) that it comes from; `size`: pixels of its square side."""

    name: str
    kind: Kind
    size: int
    sources: tuple[str, ...]

    @property
    def seed(self) -> int:
        """32 bits that follow from the name and the size."""
        return zlib.crc32(f"{self.name}/{self.size}".encode())


def photographs() -> dict[str, Path]:
    """Name → file of every photograph that is installed here, in alphabetical order."""
    found = {}
    for folder, names in _PACKAGES.items():
        package, _, rest = folder.partition("/")
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin:
            found.update({f"{package}/{name}": Path(spec.origin).parent / rest / name for name in names})
    for folder, names in _WALLPAPERS.items():
        found.update({f"{folder.split('/')[0]}/{name.split('/')[0]}": Path("/usr/share") / folder / name for name in names})
    return {name: path for name, path in sorted(found.items()) if path.is_file()}


def half(split: Split) -> list[str]:
    """The photographs of one half: every second one of the alphabet of all that the list names, installed or not."""
    names = [f"{folder.split('/')[0]}/{name.split('/')[0]}" for folder, files in {**_PACKAGES, **_WALLPAPERS}.items() for name in files]
    here = photographs()
    return [name for name in sorted(names)[split == "report" :: 2] if name in here]


def specs(split: Split, size: int, kinds: Iterable[Kind] = KINDS) -> list[Spec]:
    """All pictures of one half at one size (square). Photographs under three quarters of the size are left out."""
    made: dict[Kind, Callable[[], list[Spec]]] = {
        "photo": lambda: _photos(split, size),
        "mosaic": lambda: _mosaics(split, size),
        "flat": lambda: [Spec(f"flat/{split}/{drawn.FLAT[n % len(drawn.FLAT)]}/{n}", "flat", size, ()) for n in range(FLAT)],
        "gradient": lambda: [Spec(f"gradient/{split}/{n}", "gradient", size, ()) for n in range(GRADIENTS)],
        "noise": lambda: [Spec(f"noise/{split}/{n}", "noise", size, ()) for n in range(NOISES)],
    }
    return [spec for kind in kinds for spec in made[kind]()]


def ordered(split: Split, size: int, kinds: Iterable[Kind] = KINDS) -> list[Spec]:
    """The same in a fixed random order, so that the first few stand for all."""
    found = specs(split, size, kinds)
    return [found[place] for place in np.random.default_rng(5).permutation(len(found))]


def _photos(split: Split, size: int) -> list[Spec]:
    large = [name for name in half(split) if min(_size(photographs()[name])) >= 0.75 * size]
    return [Spec(f"{name}#{n}", "photo", size, (name,)) for n in range(CROPS) for name in large]


def _mosaics(split: Split, size: int) -> list[Spec]:
    names, rng = half(split), np.random.default_rng(zlib.crc32(split.encode()))
    picks = [sorted(rng.choice(names, 4, replace=False).tolist()) for _ in range(MOSAICS)]
    return [Spec(f"mosaic/{split}/{n}", "mosaic", size, tuple(pick)) for n, pick in enumerate(picks)]


def load(spec: Spec) -> Pixels:
    """uint8 RGB (size, size, 3); kept as .npy in the system's folder for temporary files, because decoding large photographs is slow."""
    path = _cache() / f"{EDITION}-{spec.seed:08x}-{spec.size}.npy"
    if not path.is_file():
        part = path.with_suffix(f".{os.getpid()}.part")
        with part.open("wb") as handle:
            np.save(handle, _make(spec), allow_pickle=False)
        part.replace(path)
    return np.asarray(np.load(path, allow_pickle=False), dtype=np.uint8)


def _make(spec: Spec) -> Pixels:
    rng = np.random.default_rng(spec.seed)
    if spec.kind == "photo":
        return window(spec.sources[0], spec.size, rng)
    if spec.kind == "mosaic":
        tiles = [window(source, spec.size // 2, rng) for source in spec.sources]
        return np.concatenate([np.concatenate(tiles[:2], axis=1), np.concatenate(tiles[2:], axis=1)], axis=0)
    return drawn.draw(spec.kind, spec.name, spec.size, rng)


def window(source: str, size: int, rng: np.random.Generator) -> Pixels:
    """A random square of a photograph, from native resolution (where it is large enough) to the whole short side, at `size`."""
    with Image.open(photographs()[source]) as opened:
        image = opened.convert("RGB")
    short = min(image.size)
    side = short if short <= size else round(size * (short / size) ** rng.uniform(0, 1))
    left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS, box=box) if side != size else image.crop(box))


def describe(split: Split, size: int) -> str:
    """One line for a table: how many pictures of each kind, from how many photographs."""
    chosen = specs(split, size)
    counts = ", ".join(f"{sum(s.kind == kind for s in chosen)} {kind}" for kind in KINDS)
    return f"{counts}; half '{split}': {len(half(split))} of {len(photographs())} photographs"


@functools.cache
def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


@functools.cache
def _cache() -> Path:
    folder = Path(tempfile.gettempdir()) / f"platemark-watermark-pictures-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
