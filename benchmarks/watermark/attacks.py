"""Named attacks with strengths. Each takes and gives uint8 RGB (height, width, 3) and follows from its seed alone.

`Attack.target` is the exact-payload rate that the project set itself for the row, None where a row is only reported. Attacks are blind:
they know neither the key nor the original. Those that need more than the picture are named in `COLLUSION` (marked pictures of the same
issuer: `collude`) and `MODEL` (a diffusion model: `regenerate`). Geometry is drawn anew for each picture. Knows nothing of any watermark.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.watermark import chains, geometry, signal
from benchmarks.watermark.signal import Pixels

Group = Literal["plain", "photometric", "compression", "resize", "crop", "rotation", "filter", "noise", "chain", "warp"]
Change = Callable[[Pixels, np.random.Generator], Pixels]


@dataclass(frozen=True)
class Attack:
    """One row. `target` (a rate, 0 to 1) holds for pictures of `min_side` pixels or more."""

    name: str
    group: Group
    change: Change
    target: float | None = None
    min_side: int = 0

    def __call__(self, picture: Pixels, seed: int) -> Pixels:
        """The changed picture; `seed` and the attack's name draw what is random in it."""
        rng = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        return np.ascontiguousarray(self.change(picture, rng))


def _plain(change: Callable[..., Pixels], *arguments: object, **options: object) -> Change:
    """A change that draws nothing."""
    return lambda picture, rng: change(picture, *arguments, **options)


def _drawn(change: Callable[..., Pixels], *arguments: object, **options: object) -> Change:
    """A change that takes the generator after the picture."""
    return lambda picture, rng: change(picture, rng, *arguments, **options)


def _all() -> list[Attack]:
    rows = [Attack("none", "plain", _plain(signal.same), 0.995)]
    rows += [Attack(f"jpeg-{q}", "compression", _plain(signal.jpeg, q), _JPEG.get(q)) for q in (95, 90, 75, 70, 50, 30, 20, 10)]
    rows += [Attack(f"webp-{q}", "compression", _plain(signal.webp, q), {90: 0.97, 75: 0.97, 50: 0.97}.get(q)) for q in (90, 75, 50, 20)]
    rows += [Attack("avif-50", "compression", _plain(signal.avif, 50))]
    rows += [Attack("palette-256", "photometric", _plain(signal.palette, 256), 0.995)]
    rows += _photometric() + _resize() + _crops() + _rotations() + _filters() + _chains() + _warps()
    return rows


_JPEG = {95: 0.995, 90: 0.995, 75: 0.99, 70: 0.99, 50: 0.99, 30: 0.97, 20: 0.90}


def _photometric() -> list[Attack]:
    row = partial(Attack, group="photometric", target=0.995)
    rows = [row(f"brightness-{f}", change=_plain(signal.brightness, f)) for f in (0.7, 1.3)]
    rows += [row(f"contrast-{f}", change=_plain(signal.contrast, f)) for f in (0.7, 1.3)]
    rows += [row(f"gamma-{f}", change=_plain(signal.gamma, f)) for f in (0.7, 1.5)]
    rows += [row(f"saturation-{f}", change=_plain(signal.saturation, f)) for f in (0.5, 1.5)]
    rows += [row("gray", change=_plain(signal.gray)), row("sharpen", change=_plain(signal.sharpen))]
    rows += [Attack("brightness-2", "photometric", _plain(signal.brightness, 2.0))]
    rows += [row("flip", change=_plain(geometry.flip)), row("flip-vertical", change=_plain(geometry.flip_vertical))]
    return rows


def _resize() -> list[Attack]:
    rows = [Attack(f"resize-{p}", "resize", _drawn(geometry.resize, p / 100), 0.99) for p in (50, 75, 150, 200)]
    rows += [Attack("resize-50..200", "resize", _drawn(geometry.resize_any, 0.5, 2.0), 0.99)]
    rows += [Attack("resize-25", "resize", _drawn(geometry.resize, 0.25), 0.90, min_side=768)]
    rows += [Attack("resize-50-and-back", "resize", _drawn(geometry.resize_and_back, 0.5), 0.99)]
    return rows


def _crops() -> list[Attack]:
    targets = {90: 0.98, 75: 0.98, 50: 0.98, 25: 0.90, 10: 0.60}
    rows = [Attack(f"crop-{p}", "crop", _drawn(geometry.crop, p / 100), target) for p, target in targets.items()]
    rows += [Attack("crop-70-resize", "crop", _drawn(geometry.crop_and_resize, 0.7, 0.6, 1.4), 0.98)]
    rows += [Attack("crop-50-resize", "crop", _drawn(geometry.crop_and_resize, 0.5, 0.6, 1.4), 0.98)]
    rows += [Attack("occlusion-10", "crop", _drawn(geometry.occlude, 0.10), 0.98)]
    return rows


def _rotations() -> list[Attack]:
    row = partial(Attack, group="rotation", target=0.97)
    rows = [Attack(f"rotate-{a}", "rotation", _plain(geometry.quarter_turns, a // 90), 0.995) for a in (90, 180, 270)]
    rows += [row(f"rotate-{a}", change=_drawn(geometry.rotate, a, "inscribed")) for a in (1, 5, 15, 45)]
    rows += [row(f"rotate-any-{how}", change=_drawn(geometry.rotate, None, how)) for how in ("keep", "expand", "inscribed")]
    return rows


def _filters() -> list[Attack]:
    rows = [Attack(f"blur-{s}", "filter", _plain(signal.blur, s), {1: 0.98, 2: 0.98}.get(s)) for s in (1, 2, 3, 4)]
    rows += [Attack(f"median-{n}", "filter", _plain(signal.median, n), {3: 0.98}.get(n)) for n in (3, 5)]
    rows += [Attack(f"noise-{s}", "noise", _drawn(signal.noise, s), 0.95 if s <= 25 else None) for s in (5, 10, 25, 50)]
    rows += [
        Attack("denoise-nlm-10", "filter", _plain(signal.denoise, 10), 0.85),
        Attack("denoise-nlm-20", "filter", _plain(signal.denoise, 20)),
    ]
    rows += [Attack("noise-25-denoise-nlm-20", "filter", _drawn(signal.noise_and_denoise, 25, 20))]
    return rows


def _chains() -> list[Attack]:
    row = partial(Attack, group="chain", target=0.95)
    rows = [row("screenshot", change=_drawn(chains.screenshot)), row("page-screenshot", change=_drawn(chains.page_screenshot))]
    rows += [row("print-like", change=_drawn(chains.print_like)), row("social", change=_drawn(chains.social))]
    rows += [Attack("meme", "chain", _drawn(chains.meme), 0.85)]
    return rows


def _warps() -> list[Attack]:
    rows = [Attack(f"aspect-{p}", "warp", _drawn(geometry.aspect, p / 100), 0.90) for p in (85, 92, 108, 115)]
    rows += [Attack("perspective-3", "warp", _drawn(geometry.perspective, 0.03), 0.80)]
    return rows


COLLUDERS = 10
COLLUSION: dict[str, float | None] = {"average-10": 0.90, "average-10-originals": 0.90}
MODEL = ("vae-regeneration", "img2img-0.3")
ATTACKS: dict[str, Attack] = {attack.name: attack for attack in _all()}


def collude(picture: Pixels, residuals: NDArray[np.float32]) -> Pixels:
    """Takes the mean of an issuer's residuals (n, height, width, 3) off the picture, as strong as one mark is: what kills a fixed pattern.

    A residual is a marked picture less its original, or less a denoised copy where the attacker has no original (`signal.residual`). The
    mean is scaled to the root mean square of one residual: any part that all of them share goes with it.
    """
    mean = residuals.mean(axis=0)
    scale = np.sqrt((residuals**2).mean()) / max(float(np.sqrt((mean**2).mean())), 1e-6)
    return signal.rounded(picture - mean * min(float(scale), float(len(residuals)) ** 0.5))
