"""Peak memory of decoding a picture, at once and in tiles, beside what the runtime reckons with before it begins.

    python -m benchmarks.vae_memory [--width 8] [--table FILE]

The decoder has Stable Diffusion's layers, attention and random weights, with channels divided by `--width` so that a small machine can
run it: its matrix of attention scores, which is what grows out of bounds, is as large as in the real one. Each size runs in a process of
its own. A size whose whole decode would not fit in half of what the machine has left is not tried.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.whole_process import machine
from platemark.bench import memory as resident
from platemark.runtime.backends.onnxruntime import compile_graph
from platemark.runtime.codec import TILES
from platemark.runtime.memory import Widths, decoder_bytes, left, spoken

CELL = 8
CHANNELS = (128, 256, 512, 512)
SIDES = (512, 768, 1024, 2048)


def export(folder: Path, width: int) -> None:
    """The decoder as `model.onnx`, of the build's own exporter."""
    import onnx
    import torch
    from diffusers import AutoencoderKL

    from platemark.optimize.export import TensorSpec, export_graph
    from platemark.optimize.modules import VaeDecoder
    from platemark.optimize.specs import FLOAT, Spec

    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    net = AutoencoderKL(
        block_out_channels=tuple(c // width for c in CHANNELS), layers_per_block=2, norm_num_groups=min(32, CHANNELS[0] // width), **kinds
    )
    taken = TensorSpec("latent_sample", FLOAT, ("batch", 4, "height", "width"))
    given = TensorSpec("sample", FLOAT, ("batch", 3, "8*height", "8*width"))
    spec = Spec("vae_decoder", "vae", "model.onnx", (taken,), given, {"height": (8, 64), "width": (8, 64)})
    onnx.save(export_graph(spec, VaeDecoder(net).eval(), {"latent_sample": torch.randn(2, 4, 16, 16)}), folder / "model.onnx")


def measure(graph: Path, side: int, *, tiled: bool) -> int:
    """Peak resident bytes above what was resident before, of one decode in this process."""
    engine = compile_graph(graph, threads=1)
    cells = np.random.default_rng(0).normal(size=(1, 4, side // CELL, side // CELL)).astype(np.float32)
    engine.run({"latent_sample": cells[:, :, :8, :8]})

    def compute(rows: slice, columns: slice) -> np.ndarray:
        return engine.run({"latent_sample": np.ascontiguousarray(cells[:, :, rows, columns])})["sample"][0]

    since = resident.reset_peak()
    before = resident.resident(since).rss_bytes
    if tiled:
        TILES.whole(compute, (side // CELL, side // CELL), 3, CELL)
    else:
        compute(slice(None), slice(None))
    peak = resident.resident(since).peak_rss_bytes
    return (peak or 0) - (before or 0)


def widths(width: int) -> Widths:
    return Widths(attention=(), unet=0, vae=CHANNELS[1] // width, vae_attention=True, cell=CELL, tiles=True)


def table(graph: Path, width: int) -> str:
    """Markdown."""
    lines = ["| pixels | at once: reckoned | measured | in tiles: reckoned | measured |", "|---|---|---|---|---|"]
    for side in SIDES:
        cells, tile = side // CELL, min(TILES.tile, side // CELL)
        figures = []
        for tiled, sides in ((False, (cells, cells)), (True, (tile, tile))):
            wanted = decoder_bytes(widths(width), sides) + 12 * side**2
            fits = wanted * 2 < (left(None) or 0)
            figures += [spoken(wanted), spoken(apart(graph, side, tiled)) if fits else "not tried"]
        lines.append(f"| {side}x{side} | {' | '.join(figures)} |")
    return "\n".join(lines)


def apart(graph: Path, side: int, tiled: bool) -> int:
    command = [sys.executable, "-m", "benchmarks.vae_memory", "--one", str(graph), str(side), str(int(tiled))]
    return int(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=8, help="what the channels are divided by")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(Path(args.one[0]), int(args.one[1]), tiled=args.one[2] == "1")))
        return
    with tempfile.TemporaryDirectory() as folder:
        export(Path(folder), args.width)
        head = f"{machine()}\n\nChannels of Stable Diffusion's decoder divided by {args.width}."
        text = f"{head}\n\n{table(Path(folder) / 'model.onnx', args.width)}"
    print(text)
    if args.table:
        args.table.write_text(f"# Memory of decoding\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
