"""`make bundle` on the embedded weights gives the bundle that is shipped."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from platemark.models import embedded
from platemark.runtime.backends.onnxruntime import compile_graph
from platemark.runtime.bundle import Bundle, open_bundle
from platemark.runtime.engine import TensorSpec

pytestmark = pytest.mark.torch
FREE = {"batch": 2, "tokens": 32, "height": 16, "width": 16}


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    from platemark.optimize.build import build

    checkpoint = tmp_path_factory.mktemp("rebuild") / "emoji"
    shutil.copytree(embedded(), checkpoint, ignore=shutil.ignore_patterns("*.onnx", "bundle.json", "golden.json", "preprocess.json"))
    build(checkpoint, checkpoint.with_name("bundle"))
    return open_bundle(checkpoint.with_name("bundle"))


def values(spec: TensorSpec, component: str, rng: np.random.Generator) -> np.ndarray:
    pixels = {"vae_encoder": 128, "clip_image": 64}.get(component)
    shape = tuple(dim if isinstance(dim, int) else 2 if i == 0 else (pixels or 16) if i >= 2 else 32 for i, dim in enumerate(spec.shape))
    if spec.dtype == np.int64:
        return rng.integers(0, 2048, shape)
    return np.full(shape, 500, spec.dtype) if spec.name == "timestep" else rng.standard_normal(shape).astype(spec.dtype)


def test_every_component_computes_what_the_shipped_one_does(rebuilt: Bundle) -> None:
    shipped = open_bundle(embedded())
    assert set(rebuilt.manifest.components) == set(shipped.manifest.components)
    for name in shipped.manifest.components:
        ours, theirs = (compile_graph(b.root / b.manifest.components[name].graph) for b in (shipped, rebuilt))
        rng = np.random.default_rng(7)
        inputs = {spec.name: values(spec, name, rng) for spec in ours.inputs}
        for key, expected in ours.run(inputs).items():
            np.testing.assert_allclose(theirs.run(inputs)[key], expected, rtol=1e-4, atol=1e-5, err_msg=name)


def test_weights_and_graphs_are_the_same_bytes(rebuilt: Bundle) -> None:
    shipped = open_bundle(embedded())
    graphs = {part.graph for part in shipped.manifest.components.values()}
    for name, digest in shipped.manifest.files.items():
        if name.endswith(".safetensors") or name in graphs:
            assert rebuilt.manifest.files[name] == digest, name


def test_graphs_hold_no_weights() -> None:
    root = embedded()
    graphs = list(root.rglob("*.onnx"))
    assert len(graphs) >= 6
    assert sum(path.stat().st_size for path in graphs) < 3 * 2**20
    assert sum(path.stat().st_size for path in root.rglob("*.safetensors")) < 45e6


def test_the_copy_is_openable_read_only_and_through_a_link(tmp_path: Path) -> None:
    copy = tmp_path / "moved" / "bundle"
    shutil.copytree(embedded(), copy)
    for path in [copy, *copy.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    (tmp_path / "link").symlink_to(copy)
    bundle = open_bundle(tmp_path / "link")
    assert compile_graph(bundle.root / bundle.manifest.components["text_encoder"].graph).inputs
    for path in [copy, *copy.rglob("*")]:
        path.chmod(0o755)
