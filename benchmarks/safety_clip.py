"""What an exported CLIP costs a picture, in 32 and in 8 bits, and how far 8 bits move its embeddings.

    python -m benchmarks.safety_clip [--models ViT-B-32 ViT-L-14] [--table benchmarks/results/safety_clip.md]

The weights are random, drawn here: cost does not depend on them, and no trained model is downloaded. The cosines in the table are those of
the export's own parity record; a trained model's are its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.safety_pictures import peak_mib
from benchmarks.whole_process import machine

RUNS, WARM = 20, 3
HEAD = "| model | image tower | least cosine | folder MiB | p50 ms | p95 ms | CPU ms | load ms | peak MiB |"
PRECISIONS = ("fp32", "int8")


def draw_weights(model: str, file: Path) -> None:
    """The model's own random start, as safetensors."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    net = open_clip.create_model(model)
    tensors = {name: value.contiguous() for name, value in net.state_dict().items() if name != "attn_mask"}
    save_file(tensors, file, metadata={"format": "pt"})


def look(folder: Path, threads: int) -> dict[str, float]:
    """Loads the exported folder as the gate does; ms a picture of 512 pixels (its preparation included), load ms, peak MiB."""
    from platemark.safety.detectors.clip_loading import clip_of_folder

    cells = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(cells).resize((512, 512), Image.Resampling.BICUBIC))
    began = time.perf_counter()
    model = clip_of_folder(folder, threads)
    loaded, walls, before = (time.perf_counter() - began) * 1000, [], 0.0
    for run in range(WARM + RUNS):
        if run == WARM:
            before = time.process_time()
        began = time.perf_counter()
        model.embed_image(picture)
        walls.append((time.perf_counter() - began) * 1000)
    cpu = (time.process_time() - before) * 1000 / RUNS
    return {
        "p50": float(np.median(walls[WARM:])),
        "p95": float(np.percentile(walls[WARM:], 95)),
        "cpu": cpu,
        "load": loaded,
        "peak": peak_mib(),
    }


def rows(model: str, folder: Path, threads: int) -> list[str]:
    """One line a precision; each look in a process of its own, without torch."""
    from platemark.optimize.clip import export_clip

    weights = folder / "weights.safetensors"
    draw_weights(model, weights)
    found = []
    for precision in PRECISIONS:
        manifest = export_clip(model, folder / precision, weights=weights, precision="int8" if precision == "int8" else "fp32")
        command = [sys.executable, "-m", "benchmarks.safety_clip", "--look", str(folder / precision), str(threads)]
        took = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        size = sum((folder / precision / name).stat().st_size for name in manifest["files"]) / 2**20
        numbers = " | ".join(f"{took[key]:.0f}" for key in ("p50", "p95", "cpu", "load", "peak"))
        found.append(f"| {model} | {precision} | {min(manifest['image']['cosines']):.4f} | {size:.0f} | {numbers} |")
        sys.stderr.write(found[-1] + "\n")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["ViT-B-32", "ViT-L-14"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", type=Path, help="write the table here, e.g. benchmarks/results/safety_clip.md")
    parser.add_argument("--look", nargs=2, metavar=("FOLDER", "THREADS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.look:
        print(json.dumps(look(Path(args.look[0]), int(args.look[1]))))
        return
    lines = [HEAD, "|" + "---|" * HEAD.count(" | ") + "---|"]
    for model in args.models:
        with tempfile.TemporaryDirectory() as name:
            lines += rows(model, Path(name), args.threads)
    told = f"Random weights; {args.threads} thread(s); load average {os.getloadavg()[0]:.1f} at the end (other work ran beside)."
    text = "\n".join([told, "", *lines])
    print(text)
    if args.table:
        command = shlex.join(["python", "-m", "benchmarks.safety_clip", *sys.argv[1:]])
        args.table.write_text(f"# CLIP towers of real size\n\n`{command}`, on {machine()}\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
