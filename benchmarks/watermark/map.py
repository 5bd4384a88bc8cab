"""Local edits: how well `detect --map` finds a part of a marked picture that was replaced since.

    python -m benchmarks.watermark.map --split report --pictures 40 --out benchmarks/results/watermark_map.md

Each picture is marked as the algorithm itself decides (41 to 48 dB), a rectangle or an ellipse of it is replaced, the whole is compressed
or resized, read, mapped, and compared with the truth (intersection over union, pixel by pixel). A picture whose mark is no longer found has
no map and counts as IoU 0. Needs scikit-image and scipy; pictures: see `images`; constants were set on the half `tune`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.watermark import images, signal
from benchmarks.watermark.images import Kind, Pixels, Spec, Split
from benchmarks.watermark.table import wilson
from benchmarks.watermark.trial import algorithm, keys
from benchmarks.whole_process import machine
from platemark.errors import PlatemarkError
from platemark.provenance.watermark.embed import embed
from platemark.provenance.watermark.key import WatermarkKey
from platemark.provenance.watermark.map import presence_map
from platemark.provenance.watermark.payload import Payload

KINDS: tuple[Kind, ...] = ("photo", "mosaic", "flat")
SHARES = (0.05, 0.15, 0.3)
GOOD = 0.6
Mask = NDArray[np.bool_]


def resized(picture: Pixels, factor: float) -> Pixels:
    size = round(picture.shape[1] * factor), round(picture.shape[0] * factor)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "none": lambda picture: picture,
    "JPEG 75": lambda picture: signal.jpeg(picture, 75),
    "resize 75 %": lambda picture: resized(picture, 0.75),
    "resize 75 %, JPEG 75": lambda picture: signal.jpeg(resized(picture, 0.75), 75),
}


@dataclass(frozen=True)
class Outcome:
    """`edit`, `share` and `change` name the trial; `iou` is None for unedited pictures; `absent`, `unknown`: shares of the map."""

    edit: str
    share: float
    change: str
    iou: float | None
    absent: float
    unknown: float


def region(share: float, size: int, rng: np.random.Generator) -> Mask:
    """A rectangle or an ellipse of that share of the area, whole within the picture."""
    ellipse, aspect = bool(rng.integers(2)), float(np.exp(rng.uniform(-0.4, 0.4)))
    area = share * size**2 * (4 / np.pi if ellipse else 1)
    height, width = (min(size, round(np.sqrt(area * by))) for by in (aspect, 1 / aspect))
    top, left = (int(rng.integers(0, size - side + 1)) for side in (height, width))
    y, x = np.mgrid[:size, :size] + 0.5
    y, x = (y - top) / height * 2 - 1, (x - left) / width * 2 - 1
    return np.asarray(y * y + x * x <= 1 if ellipse else np.maximum(abs(y), abs(x)) <= 1)


def blurred(picture: Pixels, where: Mask) -> Pixels:
    return signal.blur(picture, 8)


def inpainted(picture: Pixels, where: Mask) -> Pixels:
    """Filled smoothly from its border (Laplace's equation, at an eighth of the size) with a little grain."""
    small = resized(picture, 0.125).astype(np.float32)
    hole = np.asarray(Image.fromarray(where).resize(small.shape[1::-1], Image.Resampling.NEAREST))[..., None]
    for _ in range(1500):
        padded = np.pad(small, ((1, 1), (1, 1), (0, 0)), mode="edge")
        around = (padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]) / 4
        small = np.where(hole, around, small)
    large = np.asarray(Image.fromarray(signal.rounded(small)).resize(picture.shape[1::-1], Image.Resampling.BICUBIC))
    return signal.rounded(large + np.random.default_rng(0).normal(0, 2, large.shape))


def trials(number: int, spec: Spec, other: Spec) -> Iterator[Outcome]:
    """All edits and changes of one picture. `other`: where pasted pixels come from."""
    rng, key = np.random.default_rng([number, 0x3A9]), keys()[number % len(keys())]
    try:
        marked = embed(images.load(spec), Payload(number + 1, issuer=7), key, rng=rng).image
        theirs = embed(images.load(other), Payload(number + 90001, issuer=7), key, rng=rng).image
    except PlatemarkError as error:
        print(f"left out: {spec.name} or {other.name}: {error.message}", file=sys.stderr)
        return
    edits: dict[str, Callable[[Pixels, Mask], Pixels]] = {
        "paste": lambda picture, where: images.load(other), "paste, marked too": lambda picture, where: theirs,
        "blur σ8": blurred, "inpaint": inpainted,
    }  # fmt: skip
    yield from _changed("unedited", 0.0, marked, np.zeros(marked.shape[:2], dtype=bool), key)
    for edit, made in edits.items():
        for share in SHARES:
            where = region(share, spec.size, rng)
            yield from _changed(edit, share, np.where(where[..., None], made(marked, where), marked), where, key)


def _changed(edit: str, share: float, picture: Pixels, truth: Mask, key: WatermarkKey) -> Iterator[Outcome]:
    for change, function in CHANGES.items():
        after = function(picture)
        found = presence_map(after, key)
        if found is None:
            yield Outcome(edit, share, change, 0.0 if share else None, 0.0, 1.0)
            continue
        where = np.asarray(Image.fromarray(truth).resize(after.shape[1::-1], Image.Resampling.NEAREST))
        mask = found.mask()
        iou = float((mask & where).sum() / (mask | where).sum()) if share else None
        yield Outcome(edit, share, change, iou, float(mask.mean()), float(found.unknown.mean()))


def table(outcomes: list[Outcome]) -> list[str]:
    """One line an edit and share, one group of columns a change."""
    edited, clean = defaultdict(list), defaultdict(list)
    for one in outcomes:
        (clean[one.change] if one.iou is None else edited[one.edit, one.share, one.change]).append(one)
    lines = [
        "| edit | share of the area | change after | n | mean IoU | median | IoU ≥ 0.6 | 95 % interval |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (edit, share, change), found in sorted(edited.items(), key=lambda item: (item[0][1], item[0][0])):
        values = np.array([one.iou for one in found])
        good = int((values >= GOOD).sum())
        low, high = wilson(good, len(values))
        cells = (
            edit, f"{share:.0%}", change, len(values), f"{values.mean():.2f}", f"{np.median(values):.2f}", f"{good / len(values):.0%}",
            f"{100 * low:.0f} to {100 * high:.0f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "Unedited pictures:", "", "| change | n | with any region | mean share called absent | largest | mean share unknown |"]
    lines.append("|---|---|---|---|---|---|")
    for change, found in clean.items():
        absent = np.array([one.absent for one in found])
        any_, unknown = (absent > 0).mean(), np.mean([one.unknown for one in found])
        lines.append(f"| {change} | {len(found)} | {any_:.0%} | {absent.mean():.2%} | {absent.max():.1%} | {unknown:.0%} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("tune", "report"), default="tune")
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--first", type=int, default=0, help="number of the first picture")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    split: Split = given.split
    specs = images.ordered(split, 512, KINDS)
    outcomes: list[Outcome] = []
    text = ""
    for number in range(given.first, given.first + given.pictures):
        outcomes += trials(number, specs[number % len(specs)], specs[(number + len(specs) // 2) % len(specs)])
        print(f"{number + 1 - given.first} of {given.pictures}", file=sys.stderr)
        text = written(split, outcomes)
        if given.out:
            given.out.write_text(text, encoding="utf-8")
    print(text)


def written(split: Split, outcomes: list[Outcome]) -> str:
    """The whole text of a table."""
    command = shlex.join(["python", "-m", "benchmarks.watermark.map", *sys.argv[1:]])
    head = [
        f"Local edits found by `detect --map`. 512×512, half '{split}', {', '.join(KINDS)}, marked as the algorithm decides (41 to 48 dB)."
    ]
    head += [f"Algorithm {algorithm()}. `{command}`, on {machine()}.", ""]
    return "\n".join([*head, *table(outcomes)]) + "\n"


if __name__ == "__main__":
    main()
