"""Measures the watermark on emoji pictures, as the embedded model delivers them: exact-payload rate after common changes, PSNR, times.

Needs the extra `train` and Debian's `fonts-noto-color-emoji`. Run from the repository root:

    python -m benchmarks.watermark_jpeg [--count 60] [--size 512]
"""

from __future__ import annotations

import argparse
import io
import platform
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--size", type=int, default=512)
    options = parser.parse_args()
    key, rng = WatermarkKey.from_secret(bytes(range(32))), np.random.default_rng(0)
    originals = pictures(options.count, options.size)
    payloads = [Payload(int(rng.integers(1 << 42)), issuer=int(rng.integers(1 << 14))) for _ in originals]
    began = time.process_time()
    marked = [embed(picture, payload, key, rng=rng) for picture, payload in zip(originals, payloads, strict=True)]
    embed_ms = (time.process_time() - began) * 1000 / len(marked)
    print(f"{len(marked)} emoji at {options.size}x{options.size}, layout {marked[0].layout}; {platform.machine()}, numpy {np.__version__}")
    _summary(marked, embed_ms)
    print(f"\n{'attack':22} {'exact':>7} {'pilots':>7} {'ms':>5}")
    for name, attack in ATTACKS.items():
        _row(name, [attack(one.image) for one in marked], payloads, key)
    other = WatermarkKey.from_secret(bytes(reversed(range(32))))
    _row("unmarked", originals, payloads, key)
    _row("another key", [one.image for one in marked], payloads, other)


def _summary(marked: list[Marked], embed_ms: float) -> None:
    for name, values in (
        ("PSNR dB", [m.psnr for m in marked]),
        ("strength", [m.strength for m in marked]),
        ("margin", [m.margin for m in marked]),
    ):
        print(f"{name:9} mean {np.mean(values):6.2f}  min {min(values):6.2f}  max {max(values):6.2f}")
    print(f"headroom shifts used: {sorted({m.headroom_shift for m in marked})}; embedding {embed_ms:.0f} ms of CPU a picture")


def _row(name: str, changed: list[Picture], payloads: list[Payload], key: WatermarkKey) -> None:
    began = time.process_time()
    found = [detect(picture, key) for picture in changed]
    each = (time.process_time() - began) * 1000 / len(found)
    exact = np.mean([one.payload == payload for one, payload in zip(found, payloads, strict=True)])
    print(f"{name:22} {exact:7.1%} {np.mean([one.score for one in found]):7.1f} {each:5.0f}")


if __name__ == "__main__":
    main()
