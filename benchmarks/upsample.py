"""Times nearest-2× upsampling with the 3×3 convolution behind it, as it is and as four 2×2 convolutions, in each engine library.

    python -m benchmarks.upsample [--rounds 5] > benchmarks/results/upsample.md

Layers have the sizes of SD 1.5's UNet and VAE decoder at 512 pixels, then the embedded model's networks. One thread. Both run in turns,
so that other work on the machine slows both, and the fastest run of each counts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.whole_process import machine
from platemark.models import embedded
from platemark.optimize.passes.upsample import split_upsampled
from platemark.runtime.backends import onnxruntime, openvino
from platemark.runtime.engine import Engine
from platemark.runtime.parity import probes

# (what, channels in and out, side of the small grid)
LAYERS = [
    ("SD 1.5 UNet, 8 → 16", 1280, 8),
    ("SD 1.5 UNet, 16 → 32", 1280, 16),
    ("SD 1.5 UNet, 32 → 64", 640, 32),
    ("SD VAE decoder, 64 → 128", 512, 64),
    ("SD VAE decoder, 128 → 256", 512, 128),
    ("SD VAE decoder, 256 → 512", 256, 256),
]
NETWORKS = [
    ("embedded UNet, batch 2", "unet/model.onnx", {"batch": 2, "height": 16, "width": 16, "tokens": 32}),
    ("embedded VAE decoder", "vae/decoder.onnx", {"batch": 1, "height": 16, "width": 16}),
]
Inputs = dict[str, NDArray[np.generic]]


def pair(channels: int) -> onnx.ModelProto:
    """x → Resize → Conv → y with random weights."""
    rng = np.random.default_rng(0)
    kernel = (rng.standard_normal((channels, channels, 3, 3), np.float32) / np.sqrt(9 * channels)).astype(np.float32)
    held = [numpy_helper.from_array(kernel, "w"), numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")]
    grid = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    nodes = [
        helper.make_node("Resize", ["x", "", "scales"], ["up"], **grid),
        helper.make_node("Conv", ["up", "w"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", channels, *axes]) for name, axes in (("x", "hw"), ("y", "HW"))
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def both(model: onnx.ModelProto, folder: Path) -> tuple[Path, Path]:
    """The graph as it is and rewritten, as files of the folder."""
    paths = folder / ".as-it-is.onnx", folder / ".four.onnx"
    paths[0].write_bytes(model.SerializeToString())
    split_upsampled(model)
    paths[1].write_bytes(model.SerializeToString())
    return paths


def fastest(engines: tuple[Engine, Engine], inputs: Inputs, rounds: int) -> tuple[float, float]:
    """Milliseconds of each engine's fastest run."""
    best = [float("inf"), float("inf")]
    for turn in range(rounds + 1):  # the first warms up
        for index, engine in enumerate(engines):
            began = time.perf_counter()
            engine.run(inputs)
            if turn:
                best[index] = min(best[index], (time.perf_counter() - began) * 1000)
    return best[0], best[1]


def rows(rounds: int, compile_graph: Callable[..., Engine]) -> Iterator[tuple[str, float, float, float]]:
    """(what, ms as it is, ms as four, relative L2 difference)."""
    with tempfile.TemporaryDirectory() as name:
        for what, channels, side in LAYERS:
            x = np.random.default_rng(1).standard_normal((1, channels, side, side), np.float32)
            yield what, *_measured(both(pair(channels), Path(name)), {"x": x}, rounds, compile_graph)
    for what, graph, dims in NETWORKS:
        with tempfile.TemporaryDirectory() as name:
            source, folder = embedded() / graph, Path(name)
            for file in source.parent.glob("*.safetensors"):
                (folder / file.name).write_bytes(file.read_bytes())
            trial = folder / source.name
            trial.write_bytes(undone(source))
            inputs = probes(onnxruntime.compile_graph(trial), dims)[0]
            yield what, *_measured(both(onnx.load(trial, load_external_data=False), folder), inputs, rounds, compile_graph)


def undone(graph: Path) -> bytes:
    """The embedded graph with the pass undone: what the exporter wrote."""
    model = onnx.load(graph, load_external_data=False)
    made = {output: node for node in model.graph.node for output in node.output}
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    model.graph.initializer.append(scales)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "DepthToSpace":
            nodes.append(node)
            continue
        quarter = made[made[node.input[0]].input[0]]
        flat = made[made[made[quarter.input[1]].input[0]].input[0]]
        grid = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
        nodes.append(helper.make_node("Resize", [quarter.input[0], "", "scales"], [f"{node.output[0]}/up"], **grid))
        reads = [f"{node.output[0]}/up", flat.input[0], *quarter.input[2:]]
        nodes.append(helper.make_node("Conv", reads, [node.output[0]], kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    data: bytes = model.SerializeToString()
    return data


def _measured(paths: tuple[Path, Path], inputs: Inputs, rounds: int, compile_graph: Callable[..., Engine]) -> tuple[float, float, float]:
    engines = compile_graph(paths[0], threads=1), compile_graph(paths[1], threads=1)
    first, second = (next(iter(engine.run(inputs).values())) for engine in engines)
    error = float(np.linalg.norm(first - second) / np.linalg.norm(first))
    return *fastest(engines, inputs, rounds), error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(f"# Upsampling as four convolutions\n\n{machine()}; one thread, float32, fastest of {rounds} runs in turns\n")
    print("| layer | library | 3×3 on the large grid, ms | four 2×2, ms | faster | difference |\n|---|---|---|---|---|---|")
    for library in (onnxruntime, openvino):
        for what, before, after, error in rows(rounds, library.compile_graph):
            print(f"| {what} | {library.label()} | {before:.1f} | {after:.1f} | {before / after:.2f}× | {error:.1e} |", flush=True)


if __name__ == "__main__":
    main()
