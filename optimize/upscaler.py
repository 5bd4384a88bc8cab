"""Takes any ONNX super-resolution network into a bundle: finds out what it is by running it, compares it, copies it.

Of a network nothing is believed but what it does: factor, sizes, range of values and reach are measured on small pictures. It must enlarge,
too: against Lanczos a picture of gentle shapes may not come out as another one. Knows nothing about checkpoints.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from platemark.errors import CheckpointError, EngineError
from platemark.optimize.given_graph import GivenGraph, Reference, label, read_graph
from platemark.optimize.parity import psnr
from platemark.optimize.staging import stage_for, sync_folder, write_file
from platemark.optimize.weights import file_sha256
from platemark.runtime.backends import onnxruntime
from platemark.runtime.bundle import MANIFEST, open_bundle
from platemark.runtime.engine import Engine
from platemark.runtime.manifest import Component, Manifest, UpscalerCard
from platemark.runtime.parity import Recorded, check
from platemark.runtime.upscale import COMPONENT, lanczos

Float = NDArray[np.float32]
FOLDER, GRAPH = "upscaler", "model.onnx"
_FACTORS = range(2, 9)
_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
_SIDE = 64  # cells of the pictures that it is tried with
_RANGES = (1.0, 255.0)
_LEAST_PSNR = 18.0  # dB against Lanczos; what enlarges such pictures reaches 25 and more, with two colours exchanged about 10
_FELT = 1 / 512  # a change of the result, in parts of the change of the input, that counts as looked at
_MAX_REACH = 64
_ANOTHER = "use a super-resolution network with one RGB picture (NCHW, 3 channels) in and the enlarged one out"


@dataclass(frozen=True)
class Examined:
    """A network that was found to enlarge, and was compared with ONNX's reference evaluator."""

    graph: GivenGraph
    card: UpscalerCard
    component: Component


def examine(path: Path) -> Examined:
    """The network at `path`. Writes nothing.

    Raises `CheckpointError` where it is no such network, `EngineError` where it cannot be run, `ParityError`.
    """
    graph = read_graph(path)
    tile = _check_ports(graph)
    engine = onnxruntime.compile_graph(path)
    multiple, smallest = (1, 1) if tile is not None else _sizes(engine)
    side = tile or -(-max(_SIDE, smallest) // multiple) * multiple
    factor = _factor(engine, side)
    high = _range(engine, side, factor, path.name)
    reach = _reach(engine, side, factor, high)
    card = UpscalerCard(name=path.stem[:80], factor=factor, tile=tile, multiple=multiple, smallest=smallest, value_range=high, reach=reach)
    return Examined(graph, card, _compared(graph, card, engine))


def add_upscaler(bundle: Path, examined: Examined) -> Manifest:
    """Adds the network to the bundle in the folder `bundle`, in place of one that it has, and returns the new manifest.

    The bundle is whole at any time: files come first, then the manifest that lists them. Raises `BundleError` for a bundle that cannot
    be opened, `InputError` where it cannot be written.
    """
    manifest = open_bundle(bundle).manifest
    graph, card, component = examined.graph, examined.card, examined.component
    root = bundle.resolve()
    with stage_for(root, in_place=True, replace=True) as stage:
        place = f"{FOLDER}/{file_sha256(graph.path)[:16]}"  # another one's stays until the manifest that names it goes
        digests = graph.copy_to(stage / place, GRAPH)
        files = {name: sha for name, sha in manifest.files.items() if not name.startswith(f"{FOLDER}/")}
        files |= {f"{place}/{name}": sha for name, sha in digests.items()}
        weights = [f"{place}/{name}" for name in graph.beside] or [f"{place}/{GRAPH}"]
        components = manifest.components | {COMPONENT: component.model_copy(update={"graph": f"{place}/{GRAPH}", "weights": weights})}
        changed = manifest.model_copy(update={"files": dict(sorted(files.items())), "components": components, "upscaler": card})
        write_file(stage / MANIFEST, (changed.model_dump_json(indent=1) + "\n").encode())
        _publish(stage, root, [*(f"{place}/{name}" for name in digests), MANIFEST])
        for old in (root / FOLDER).iterdir():
            if old.is_dir() and old.name != place.rpartition("/")[2]:
                shutil.rmtree(old)
    return changed


def _publish(stage: Path, root: Path, names: list[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / name).replace(root / name)
        sync_folder((root / name).parent)


def _check_ports(graph: GivenGraph) -> int | None:
    """The side of the one tile that the graph takes, None for any. Raises `CheckpointError`."""
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        found = f"{len(graph.inputs)} inputs and {len(graph.outputs)} outputs"
        raise CheckpointError(f"{graph.path.name} has {found}, not one of each", _ANOTHER)
    port, made = graph.inputs[0], graph.outputs[0]
    pictures = len(port.shape) == len(made.shape) == 4 and port.shape[1] == 3 and (made.shape[1] == 3 or isinstance(made.shape[1], str))
    if not pictures:
        raise CheckpointError(f"{graph.path.name} makes {list(made.shape)} of {list(port.shape)}", _ANOTHER)
    if port.dtype not in (np.dtype(np.float32), np.dtype(np.float16)):
        raise CheckpointError(f"{graph.path.name} takes {port.name} of type {port.dtype}", "export it with a float32 or float16 input")
    if isinstance(port.shape[0], int) and port.shape[0] != 1:
        raise CheckpointError(f"{graph.path.name} takes {port.shape[0]} pictures at once", "export it for one picture, or any number")
    height, width = port.shape[2:]
    if isinstance(height, int) != isinstance(width, int) or (isinstance(height, int) and height != width):
        raise CheckpointError(f"{graph.path.name} takes pictures of {height} x {width}", "export it for any size, or for a square tile")
    return height if isinstance(height, int) else None


def _run(engine: Engine, sample: Float) -> Float:
    port = engine.inputs[0]
    return engine.run({port.name: sample.astype(port.dtype)})[engine.outputs[0].name].astype(np.float32)


def _sizes(engine: Engine) -> tuple[int, int]:
    """(what its sides must be multiples of, the smallest side), found by trying odd multiples of powers of two."""
    for multiple in _MULTIPLES:
        high, wide = (multiple * (_SIDE // multiple // 2 | 1), multiple * ((3 * _SIDE // 4 // multiple) | 1))
        if _enlarges(engine, high, wide):
            smallest = next(
                side for side in (multiple * k for k in (1, 3, 5, 9, 17, 33, 65)) if _enlarges(engine, side, side) or side >= high
            )
            return multiple, smallest
    raise EngineError("the upscaler runs at none of the sizes that were tried", "export it for any size, or for one square tile")


def _enlarges(engine: Engine, height: int, width: int) -> bool:
    """Whether it takes this size, and gives a whole multiple of it."""
    try:
        made = _run(engine, np.full((1, 3, height, width), 0.5, np.float32))
    except EngineError:
        return False
    factor = made.shape[2] // height if made.ndim == 4 else 0
    return factor in _FACTORS and made.shape == (1, 3, factor * height, factor * width)


def _factor(engine: Engine, side: int) -> int:
    made = _run(engine, np.full((1, 3, side, side), 0.5, np.float32))
    factor = made.shape[2] // side if made.ndim == 4 else 0
    if factor not in _FACTORS or made.shape != (1, 3, factor * side, factor * side):
        raise CheckpointError(f"it makes {list(made.shape)} of [1, 3, {side}, {side}]: no whole factor of 2 to 8", _ANOTHER)
    return factor


def shapes(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A picture (height, width, 3) of gentle shapes in every colour: sums of a few slow waves."""
    rng = np.random.Generator(np.random.PCG64(seed))
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    planes = []
    for _ in range(3):
        waves = [np.sin(2 * np.pi * (a * x + b * y + c)) for a, b, c in rng.uniform(-2.5, 2.5, (4, 3))]
        planes.append(0.5 + 0.48 * np.tanh(np.sum(waves, axis=0)))
    return np.round(255 * np.stack(planes, axis=-1)).astype(np.uint8)


def _sample(picture: NDArray[np.uint8], high: float) -> Float:
    return np.ascontiguousarray(picture.transpose(2, 0, 1)[np.newaxis], np.float32) / np.float32(255) * np.float32(high)


def _range(engine: Engine, side: int, factor: int, name: str) -> float:
    """The value of white, by which of two ranges a picture comes out most like Lanczos enlarges it. Raises `CheckpointError`."""
    picture, edge = shapes(side, side), factor * (side // 4)  # beside its edges a network sees what it fills them up with
    wanted = lanczos(picture, factor * side, factor * side).astype(np.float32) / 255
    found = {}
    for high in _RANGES:
        made = np.clip(_run(engine, _sample(picture, high))[0].transpose(1, 2, 0) / high, 0, 1)
        found[high] = psnr(made[edge:-edge, edge:-edge], wanted[edge:-edge, edge:-edge])
    best = max(found, key=lambda high: found[high])
    if not found[best] >= _LEAST_PSNR:
        said = f"{name} does not enlarge a picture: {found[best]:.1f} dB against Lanczos (at least {_LEAST_PSNR:.0f} dB)"
        raise CheckpointError(said, f"{_ANOTHER}; values of 0 to 1 or 0 to 255, colours in the order red, green, blue")
    return 1.0 if found[1.0] >= found[best] - 0.1 else best


def _reach(engine: Engine, side: int, factor: int, high: float) -> int:
    """How many cells around a pixel it looks at: how far the change of the middle one is felt, in three pictures."""
    reach, middle = 0, side // 2
    for seed in range(3):
        sample = _sample(shapes(side, side, seed), high)
        before = _run(engine, sample)
        sample[:, :, middle, middle] = high * (np.asarray([1, 0, 1], np.float32) if seed % 2 else 0)
        change = np.abs(_run(engine, sample) - before).max(axis=(0, 1)) / high
        rows, columns = np.nonzero(change > _FELT)
        if len(rows):
            reach = max(reach, int(max(np.abs(rows // factor - middle).max(), np.abs(columns // factor - middle).max())))
    return min(reach + 1, _MAX_REACH)


def _compared(graph: GivenGraph, card: UpscalerCard, engine: Engine) -> Component:
    """The component, compared with the reference evaluator at two sizes (or with two pictures of the only one)."""
    reference = Reference(graph)
    step = card.multiple
    small = -(-max(24, card.smallest) // step) * step
    sizes = [(card.tile, card.tile)] * 2 if card.tile is not None else [(small, small + step), (small + 2 * step, small)]
    recorded = []
    for seed, (height, width) in enumerate(sizes):
        port = graph.inputs[0]
        inputs: Mapping[str, Any] = {port.name: _sample(shapes(height, width, seed), card.value_range).astype(port.dtype)}
        output = graph.outputs[0].name
        recorded.append(Recorded(dict(inputs), {output: reference.run(inputs)[output]}))
    half = graph.inputs[0].dtype == np.dtype(np.float16)
    parity = check(COMPONENT, recorded, engine, (label(), onnxruntime.label()), "fp16" if half else "fp32")
    parity = parity.model_copy(update={"one_shape": card.tile is not None})
    return Component(
        graph=f"{FOLDER}/{GRAPH}", weights=[f"{FOLDER}/{GRAPH}"], precision="fp16" if half else "fp32", opset=graph.opset, parity=parity
    )
