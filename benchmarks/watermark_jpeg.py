"""Measures the watermark on emoji pictures, as the embedded model delivers them: exact-payload rate after common changes, PSNR, times.

Needs the extra `train` and Debian's `fonts-noto-color-emoji`. Run from the repository root:

    python -m benchmarks.watermark_jpeg [--count 60] [--size 512] [--table benchmarks/results/watermark_jpeg.md]

Prints Markdown tables; `--table` writes them, under the command and the machine.
"""

from __future__ import annotations

import argparse
import io
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.whole_process import machine
from platemark.provenance.watermark.detect import detect
from platemark.provenance.watermark.embed import Marked, embed
from platemark.provenance.watermark.key import WatermarkKey
from platemark.provenance.watermark.payload import Payload
from training.glyphs import choose, draw

Picture = NDArray[np.uint8]


def jpeg(picture: Picture, quality: int) -> Picture:
    """Through JPEG with Pillow's default (4:2:0) colour resolution."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def scaled(picture: Picture, factor: float, *, back: bool) -> Picture:
    """Resized by `factor` (bicubic) and, with `back`, to the first size again."""
    image = Image.fromarray(picture)
    small = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    return np.asarray(small.resize(image.size, Image.Resampling.BICUBIC) if back else small)


ATTACKS: dict[str, Callable[[Picture], Picture]] = {
    "none (PNG)": lambda picture: picture,
    "JPEG 90": lambda picture: jpeg(picture, 90),
    "JPEG 75": lambda picture: jpeg(picture, 75),
    "JPEG 50": lambda picture: jpeg(picture, 50),
    "resize 75 % and back": lambda picture: scaled(picture, 0.75, back=True),
    "resize 75 %": lambda picture: scaled(picture, 0.75, back=False),
    "resize 50 %": lambda picture: scaled(picture, 0.5, back=False),
    "mirrored": lambda picture: np.ascontiguousarray(picture[:, ::-1]),
}


def pictures(count: int, size: int) -> list[Picture]:
    """Glyphs spread over the whole set, drawn at 128 and resized with Lanczos."""
    glyphs = choose()
    chosen = [glyphs[k * len(glyphs) // count] for k in range(count)]
    return [np.asarray(draw(glyph).resize((size, size), Image.Resampling.LANCZOS)) for glyph in chosen]


def measure(count: int, size: int) -> str:
    """Marks the pictures, changes and reads them; returns two Markdown tables."""
    key, rng = WatermarkKey.from_secret(bytes(range(32))), np.random.default_rng(0)
    originals = pictures(count, size)
    payloads = [Payload(int(rng.integers(1 << 42)), issuer=int(rng.integers(1 << 14))) for _ in originals]
    began = time.process_time()
    marked = [embed(picture, payload, key, rng=rng) for picture, payload in zip(originals, payloads, strict=True)]
    embed_ms = (time.process_time() - began) * 1000 / len(marked)
    lines = [f"{len(marked)} emoji at {size}x{size}, layout {marked[0].layout}, numpy {np.__version__}.", ""]
    lines += [*summary(marked, embed_ms), "", "| attack | exact payload | pilots | ms of CPU |", "|---|---|---|---|"]
    lines += [row(name, [attack(one.image) for one in marked], payloads, key) for name, attack in ATTACKS.items()]
    other = WatermarkKey.from_secret(bytes(reversed(range(32))))
    lines += [row("unmarked", originals, payloads, key), row("another key", [one.image for one in marked], payloads, other)]
    return "\n".join(lines)


def summary(marked: list[Marked], embed_ms: float) -> list[str]:
    """The lines on quality: PSNR (dB), strength, margin, and what embedding took (ms of CPU a picture)."""
    table = ["| measure | mean | min | max |", "|---|---|---|---|"]
    for name, values in (
        ("PSNR dB", [m.psnr for m in marked]),
        ("strength", [m.strength for m in marked]),
        ("margin", [m.margin for m in marked]),
    ):
        table.append(f"| {name} | {np.mean(values):.2f} | {min(values):.2f} | {max(values):.2f} |")
    shifts = sorted({m.headroom_shift for m in marked})
    return [*table, "", f"Headroom shifts used: {shifts}; embedding takes {embed_ms:.0f} ms of CPU a picture."]


def row(name: str, changed: list[Picture], payloads: list[Payload], key: WatermarkKey) -> str:
    """A line of the table: share of exact payloads, mean pilot score, time to read one picture."""
    began = time.process_time()
    found = [detect(picture, key) for picture in changed]
    each = (time.process_time() - began) * 1000 / len(found)
    exact = np.mean([one.payload == payload for one, payload in zip(found, payloads, strict=True)])
    return f"| {name} | {100 * exact:.1f} % | {np.mean([one.score for one in found]):.1f} | {each:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--table", type=Path, help="write the tables here, e.g. benchmarks/results/watermark_jpeg.md")
    options = parser.parse_args()
    table = measure(options.count, options.size)
    print(f"{machine()}\n\n{table}")
    if options.table:
        command = shlex.join(["python", "-m", "benchmarks.watermark_jpeg", *sys.argv[1:]])
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(f"# The watermark after common changes\n\n`{command}`, on {machine()}\n\n{table}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
