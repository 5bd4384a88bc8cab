"""Peak memory and processor time of each step of a build, with Stable Diffusion 1.5's exact configs and random weights.

    python -m benchmarks.export_memory [--components unet vae_decoder text_encoder] [--steps export reference onnxruntime] [--table FILE]

Weights are random float16 of the published shapes, written to a temporary folder (UNet: 1.7 GB on disk). Every step runs in a process of
its own and is asked for its peak resident memory, which counts pages of mapped files too. The bound for an export is 1.6 times the
component's float32 weights plus 1 GiB. Times are processor seconds: they do not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.whole_process import machine
from platemark.bench.memory import resident

GIB = 1 << 30
FOLDERS = {"unet": "unet", "vae_decoder": "vae", "vae_encoder": "vae", "text_encoder": "text_encoder"}
STEPS = ("export", "reference", "onnxruntime")
UNET: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}  # the rest are diffusers' defaults, which are SD 1.5's
VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 2, "sample_size": 512,
}  # fmt: skip
TEXT: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


def write_checkpoint(root: Path, folder: str) -> None:
    """One network's folder as SD 1.5 has it, with random weights."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        if folder == "unet":
            net: Any = UNet2DConditionModel(**UNET)
        elif folder == "vae":
            net = AutoencoderKL(**VAE)
        else:
            net = CLIPTextModel(CLIPTextConfig(**TEXT))
    place = root / folder
    place.mkdir(parents=True)
    if folder == "text_encoder":
        net.config.to_json_file(place / "config.json")
    else:
        net.save_config(place)
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items() if value.is_floating_point()}
    _write_random(place / ("model.safetensors" if folder == "text_encoder" else "diffusion_pytorch_model.safetensors"), shapes)


def _write_random(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """float16 of ±0.016 to 0.031: random sign and mantissa."""
    rng, at, header = np.random.default_rng(0), 0, dict[str, Any]()
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        for shape in shapes.values():
            bits = rng.integers(0, 1 << 16, int(np.prod(shape)), np.uint16)
            stream.write(((bits & 0x83FF) | 0x2400).tobytes())


def part_and_spec(root: Path, component: str) -> tuple[Any, Any]:
    """The component's folder, and its spec as a whole SD 1.5 checkpoint would have it."""
    from platemark.optimize.parts import Part
    from platemark.optimize.specs import FLOAT, INT, Spec
    from platemark.optimize.weights import read_header
    from platemark.runtime.engine import TensorSpec

    folder = root / FOLDERS[component]
    (weights,) = folder.glob("*.safetensors")
    part = Part(folder.name, folder, json.loads((folder / "config.json").read_text()), (weights,), read_header(weights))
    latent, image = ("batch", 4, "height", "width"), ("batch", 3, "height", "width")
    cells, pixels = {"height": (8, 64), "width": (8, 64)}, {"height": (8, 512), "width": (8, 512)}
    states = TensorSpec("encoder_hidden_states", FLOAT, ("batch", "tokens", 768))
    tokens = {"tokens": (1, 77)}
    ports: dict[str, tuple[Any, ...]] = {
        "unet": (TensorSpec("sample", FLOAT, latent), TensorSpec("timestep", FLOAT, ("batch",)), states),
        "vae_decoder": (TensorSpec("latent_sample", FLOAT, latent),),
        "vae_encoder": (TensorSpec("sample", FLOAT, image),),
        "text_encoder": (TensorSpec("input_ids", INT, ("batch", "tokens")),),
    }
    outputs = {
        "unet": TensorSpec("out_sample", FLOAT, latent),
        "vae_decoder": TensorSpec("sample", FLOAT, ("batch", 3, "8*height", "8*width")),
        "vae_encoder": TensorSpec("latent_mean", FLOAT, ("batch", 4, "height/8", "width/8")),
        "text_encoder": TensorSpec("last_hidden_state", FLOAT, ("batch", "tokens", 768)),
    }
    limits = {"unet": {**cells, **tokens}, "vae_decoder": cells, "vae_encoder": pixels, "text_encoder": tokens}
    graph = f"{FOLDERS[component]}/{component}.onnx"
    return part, Spec(component, part.name, graph, ports[component], outputs[component], limits[component], 49408)


def step(root: Path, component: str, what: str) -> None:
    """One step, in this process."""
    from platemark.optimize.parity import make_cases

    part, spec = part_and_spec(root, component)
    if what == "onnxruntime":
        from platemark.runtime.backends.onnxruntime import compile_graph

        compile_graph(root / spec.graph).run(make_cases(spec)[0])
        return
    from platemark.optimize.components import export_linked, reference
    from platemark.optimize.modules import WRAPPERS, load_part

    module = WRAPPERS[component](load_part(part)).eval()
    if what == "export":
        (root / spec.graph).write_bytes(export_linked(spec, module, part, make_cases(spec)[0]))
    else:
        reference(spec, module).run(make_cases(spec)[0])


def measured(root: Path, component: str, what: str) -> dict[str, float]:
    """Peak bytes and processor seconds of a step in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.export_memory", "--step", what, "--root", str(root), "--components", component]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{component}, {what}: {done.stderr.strip()[-500:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def table(components: list[str], steps: list[str]) -> str:
    """Markdown."""
    lines = [
        "| component | float32 weights | step | peak | of the weights | bound for an export | processor time |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for component in components:
            if not (root / FOLDERS[component]).exists():
                write_checkpoint(root, FOLDERS[component])
            part, _ = part_and_spec(root, component)
            weights = 4 * sum(tensor.size for tensor in part.tensors.values())
            bound = f"{(1.6 * weights + GIB) / GIB:.2f} GiB"
            for what in steps:
                found = measured(root, component, what)
                shown = f"{found['peak'] / GIB:.2f} GiB | {found['peak'] / weights:.2f}"
                line = f"| {component} | {weights / GIB:.2f} GiB | {what} | {shown} | {bound if what == 'export' else ''} |"
                lines.append(f"{line} {found['seconds']:.0f} s |")
                print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--components", nargs="+", choices=FOLDERS, default=["unet", "vae_decoder", "text_encoder"])
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--table", type=Path, help="write the table here, e.g. benchmarks/results/export_memory.md")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        step(args.root, args.components[0], args.step)
        print(json.dumps({"peak": resident(False).peak_rss_bytes, "seconds": time.process_time()}))
        return
    text = table(args.components, args.steps)
    print(text)
    if args.table:
        head = (
            f"# Memory of a build's steps, with Stable Diffusion 1.5's configs\n\n`python -m benchmarks.export_memory`, on {machine()}\n\n"
        )
        args.table.write_text(f"{head}{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
