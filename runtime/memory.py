"""How much memory a request will take, before it takes any: so many pictures a network call, the decoder whole or in tiles, or a refusal.

Estimates are of ONNX Runtime on the CPU in float32, from the networks' configs: attention holds one matrix of scores, and convolutions at
the largest size hold a few arrays of their width. Measured: within a third either way (benchmarks/results/vae_memory.md). A network
whose config says nothing of this is not reckoned with. Knows nothing about weights: they are in memory when this is asked.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platemark.errors import InputError
from platemark.runtime.bundle import Bundle
from platemark.runtime.codec import TILES
from platemark.runtime.request import MAX_SIZE
from platemark.runtime.sizes import UNET_CONFIG, RenderSize

VAE_CONFIG = "vae/config.json"
PROC = Path("/proc")
_FLOAT = 4  # bytes
_UNET_ARRAYS, _VAE_ARRAYS = 3.0, 4.5  # of the widest layer at full size that live at once
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


@dataclass(frozen=True)
class Widths:
    """What decides a bundle's memory. `attention`: (halvings of the latents, heads) of each UNet level that has it.

    `unet` and `vae`: channels of the widest array at the UNet's and the picture's full size; `vae_attention`: whether the decoder looks
    at all of its latents at once.
    """

    attention: tuple[tuple[int, int], ...]
    unet: int
    vae: int
    vae_attention: bool
    cell: int  # pixels of a latent cell, a side
    tiles: bool  # whether the bundle says how far a picture decoded in tiles is off

    @classmethod
    def of(cls, bundle: Bundle) -> Widths:
        unet, vae = _config(bundle, UNET_CONFIG), _config(bundle, VAE_CONFIG)
        channels, kinds = unet.get("block_out_channels") or [0], unet.get("down_block_types") or []
        heads = unet.get("num_attention_heads") or unet.get("attention_head_dim") or 8  # the latter is what diffusers means by heads
        each = heads if isinstance(heads, list) else [heads] * len(kinds)
        found = tuple((level, int(each[level])) for level, kind in enumerate(kinds) if "Attn" in str(kind))
        widths = vae.get("block_out_channels") or vae.get("decoder_block_out_channels") or [0]
        tiny = vae.get("_class_name") == "AutoencoderTiny"  # has no attention
        return cls(
            attention=found,
            unet=channels[0] + channels[min(1, len(channels) - 1)],
            vae=widths[min(1, len(widths) - 1)],
            vae_attention=bool(vae) and not tiny and bool(vae.get("mid_block_add_attention", True)),
            cell=bundle.manifest.vae_scale_factor,
            tiles=bundle.manifest.tiled_decode is not None,
        )


@dataclass(frozen=True)
class MemoryPlan:
    """`batch`: pictures in one network call; `tiled`: whether the decoder works in tiles; `bytes`: what is reckoned with at most."""

    batch: int
    tiled: bool
    bytes: int


def unet_bytes(widths: Widths, rows: int, cells: tuple[int, int]) -> int:
    """Of one network call on `rows` rows of latents of that (height, width)."""
    height, width = cells
    scores = max((heads * ((height >> level) * (width >> level)) ** 2 for level, heads in widths.attention), default=0)
    return int(rows * _FLOAT * (scores + _UNET_ARRAYS * widths.unet * height * width))


def decoder_bytes(widths: Widths, cells: tuple[int, int]) -> int:
    """Of decoding latents of that (height, width) at once."""
    area = cells[0] * cells[1]
    return int(_FLOAT * max(_VAE_ARRAYS * widths.vae * area * widths.cell**2, area**2 if widths.vae_attention else 0))


def plan_memory(widths: Widths, size: RenderSize, batch: int, rows: int, free: int | None) -> MemoryPlan:
    """How to render pictures of `size` in `free` bytes (None: as much as it takes), at most `batch` at once, each of `rows` rows.

    Raises `InputError`, naming the largest square that would do.
    """
    plan = _fitting(widths, (size.height // widths.cell, size.width // widths.cell), (batch, rows), free)
    if free is None or plan.bytes <= free:
        return plan
    raise InputError(
        f"rendering {size.width}x{size.height} takes about {spoken(plan.bytes)} of memory, and {spoken(max(0, free))} are left",
        f"{_smaller(widths, rows, free)}, or raise the memory budget",
    )


def _fitting(widths: Widths, cells: tuple[int, int], pictures: tuple[int, int], free: int | None) -> MemoryPlan:
    """The fastest plan that fits; where none does, the smallest."""
    batch, rows = pictures
    room = float("inf") if free is None else free
    while batch > 1 and unet_bytes(widths, batch * rows, cells) > room:
        batch -= 1
    whole, tile = decoder_bytes(widths, cells), min(TILES.tile, *cells)
    tiled = whole > room and widths.tiles and max(cells) > TILES.tile
    picture = 3 * _FLOAT * cells[0] * cells[1] * widths.cell**2
    decoded = (decoder_bytes(widths, (tile, tile)) if tiled else whole) + picture
    return MemoryPlan(batch, tiled, max(unet_bytes(widths, batch * rows, cells), decoded))


def _smaller(widths: Widths, rows: int, free: int) -> str:
    for side in range(MAX_SIZE, 0, -64):
        if _fitting(widths, (side // widths.cell, side // widths.cell), (1, rows), free).bytes <= free:
            return f"ask for {side}x{side} or less"
    return "ask for less"


def left(budget: int | None) -> int | None:
    """Bytes that this process may still take: what the system has, and no more than `budget` leaves. None where nothing says."""
    known = [value for value in (_available(), None if budget is None else budget - (_resident() or 0)) if value is not None]
    return min(known, default=None)


def parse_bytes(text: str) -> int:
    """`4GiB`, `4G`, `512 MB` (all powers of 1024) or plain bytes. Raises `InputError`."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([kmgt]?)(?:i?b)?", text.strip().lower().replace(" ", ""))
    if match is None or float(match[1]) == 0:
        raise InputError(f"{text[:20]!r} is no amount of memory", "give it as in 4GiB or 800MiB")
    return int(float(match[1]) * _UNITS[match[2]])


def spoken(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _available(proc: Path = PROC) -> int | None:
    """What the kernel could give without swapping; a limit of the process's group is not seen."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", (proc / "meminfo").read_text(encoding="ascii"))
    except OSError:
        return None
    return None if found is None else int(found[1]) * 1024


def _resident(proc: Path = PROC) -> int | None:
    try:
        found = re.search(r"VmRSS:\s+(\d+) kB", (proc / "self" / "status").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return None if found is None else int(found[1]) * 1024


def _config(bundle: Bundle, name: str) -> dict[str, Any]:
    """A network's config; empty where the bundle has none that can be read, since nothing but an estimate hangs on it."""
    if name not in bundle.manifest.files:
        return {}
    try:
        read = json.loads(bundle.file(name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}
