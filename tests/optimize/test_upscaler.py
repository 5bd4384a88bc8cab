"""Networks that a user brings to enlarge pictures: found out by running them, compared, and refused where they are something else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytestmark = pytest.mark.torch

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from platemark.errors import BundleError, CheckpointError, ParityError, PlatemarkError  # noqa: E402
from platemark.models import embedded  # noqa: E402
from platemark.optimize.upscaler import add_upscaler, examine, shapes  # noqa: E402
from platemark.runtime.backends.onnxruntime import compile_graph  # noqa: E402
from platemark.runtime.bundle import open_bundle  # noqa: E402
from platemark.runtime.pipeline import Pipeline  # noqa: E402
from platemark.runtime.request import GenerationRequest  # noqa: E402
from platemark.runtime.upscale import Network, tiling_for  # noqa: E402


def kernel(channels: int, size: int, factor: int, seed: int = 0) -> Any:
    """Convolutions to factor² · 3 channels that blur a little: depth to space makes them a picture."""
    rng = np.random.default_rng(seed)
    weights = np.zeros((factor**2 * 3, channels, size, size), np.float32)
    for place in range(factor**2):
        for colour in range(3):
            taps = 1 + 0.2 * rng.random((size, size))
            weights[place * 3 + colour, colour] = taps / taps.sum()
    return weights


def write(path: Path, *, factor: int = 2, size: int = 5, dims: tuple[Any, Any] = ("h", "w"), **changes: Any) -> Path:
    """Conv, DepthToSpace, and whatever `changes` say is wrong with it."""
    channels, kind = changes.get("channels", 3), changes.get("kind", TensorProto.FLOAT)
    weights = kernel(channels, size, factor) if channels == 3 else np.ones((factor**2 * 3, channels, size, size), np.float32)
    weights *= changes.get("gain", 1.0)
    nodes = [
        helper.make_node("Conv", ["lr", "weight"], ["deep"], pads=[size // 2] * 4, name="conv"),
        helper.make_node("DepthToSpace", ["deep"], ["sr"], blocksize=factor, mode="CRD" if changes.get("crd") else "DCR"),
    ]
    if "domain" in changes:
        nodes[0].domain = changes["domain"]
    types = {TensorProto.FLOAT16: np.float16, TensorProto.DOUBLE: np.float64}
    weight = numpy_helper.from_array(weights.astype(types.get(kind, np.float32)), "weight")
    lr = helper.make_tensor_value_info("lr", kind, [changes.get("batch", "n"), channels, *dims])
    sr = helper.make_tensor_value_info("sr", kind, [changes.get("batch", "n"), 3, "H", "W"])
    more = [helper.make_tensor_value_info("strength", kind, [1])] if changes.get("second") else []
    graph = helper.make_graph(nodes, "sr", [lr, *more], [sr], [weight])
    imports = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(changes["domain"], 1)] if "domain" in changes else [])
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    if changes.get("beside"):
        onnx.save_model(model, path, save_as_external_data=True, location="weights.data", size_threshold=0)
    else:
        path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_what_a_network_is_is_found_by_running_it(tmp_path: Path, factor: int) -> None:
    found = examine(write(tmp_path / "net.onnx", factor=factor, size=7))
    card = found.card
    assert (card.name, card.factor, card.tile, card.multiple, card.value_range) == ("net", factor, None, 1, 1.0)
    assert 3 <= card.reach <= 5
    first, second = found.component.parity.comparisons
    assert first.shapes != second.shapes
    assert max(first.rel_l2_error, second.rel_l2_error) <= 1e-4
    assert found.component.parity.reference.startswith("onnx.reference")


def test_a_fixed_tile_and_half_precision(tmp_path: Path) -> None:
    card = examine(write(tmp_path / "net.onnx", dims=(48, 48), batch=1)).card
    assert (card.tile, card.factor) == (48, 2)
    assert examine(write(tmp_path / "tile.onnx", dims=(48, 48))).component.parity.one_shape
    half = examine(write(tmp_path / "half.onnx", kind=TensorProto.FLOAT16))
    assert half.component.precision == "fp16"


def test_sides_that_must_be_multiples(tmp_path: Path) -> None:
    """A network that looks at blocks of 8, as windowed attention does."""
    path = write(tmp_path / "net.onnx", size=3)
    model = onnx.load(path)
    fold = helper.make_node("SpaceToDepth", ["lr"], ["folded"], blocksize=8)
    unfold = helper.make_node("DepthToSpace", ["folded"], ["again"], blocksize=8)
    model.graph.node[0].input[0] = "again"
    nodes = [fold, unfold, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    path.write_bytes(model.SerializeToString())
    card = examine(path).card
    assert (card.multiple, card.smallest) == (8, 8)
    network = Network(compile_graph(path), card)
    assert network(shapes(77, 301)).shape == (154, 602, 3)


def test_tiled_equals_whole_through_a_real_engine(tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", size=9)
    card, engine = examine(path).card, compile_graph(path)
    given = shapes(400, 300) ^ np.random.default_rng(0).integers(0, 64, (400, 300, 3), dtype=np.uint8)
    sample = given.transpose(2, 0, 1)[np.newaxis].astype(np.float32) / np.float32(255)
    whole = np.round(np.clip(engine.run({"lr": sample})["sr"][0], 0, 1).transpose(1, 2, 0) * 255).astype(np.uint8)
    assert tiling_for(card).tile < 300
    found = Network(engine, card)(given)
    assert np.abs(found.astype(int) - whole).max() <= 1
    assert (found != whole).mean() < 1e-3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"channels": 1}, "makes"),
        ({"second": True}, "2 inputs"),
        ({"dims": (48, 64)}, "48 x 64"),
        ({"batch": 4}, "4 pictures"),
        ({"kind": TensorProto.DOUBLE}, "float64"),
        ({"domain": "com.acme"}, "com.acme"),
        ({"gain": -1.0}, "does not enlarge"),
        ({"crd": True}, "does not enlarge"),
    ],
)
def test_what_enlarges_nothing_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = write(tmp_path / "net.onnx", **{"dims": ("h", "w"), **changes})
    with pytest.raises(CheckpointError, match=said) as caught:
        examine(path)
    assert caught.value.remedy


def test_files_that_are_no_graphs_are_refused(tmp_path: Path) -> None:
    good = write(tmp_path / "good.onnx", beside=True)
    (tmp_path / "cut.onnx").write_bytes(good.read_bytes()[:-7])
    (tmp_path / "text.onnx").write_text("no graph")
    (tmp_path / "net.pth").write_bytes(b"\x80\x02.")
    for name in ("cut.onnx", "text.onnx", "net.pth", "gone.onnx"):
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            examine(tmp_path / name)
    examine(good)
    (tmp_path / "weights.data").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"weights\.data"):
        examine(good)


def test_an_engine_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "net.onnx")
    other = write(tmp_path / "other.onnx", gain=1.01)
    monkeypatch.setattr("platemark.optimize.upscaler.onnxruntime.compile_graph", lambda _: compile_graph(other))
    with pytest.raises(ParityError, match="upscaler differs"):
        examine(path)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(embedded(), tmp_path / "bundle"))


def test_a_bundle_takes_a_network_and_another_after_it(bundle: Path, tmp_path: Path) -> None:
    add_upscaler(bundle, examine(write(tmp_path / "first.onnx")))
    opened = open_bundle(bundle)
    assert opened.manifest.upscaler is not None
    assert opened.manifest.upscaler.name == "first"
    request = GenerationRequest.make(opened.manifest, prompt="a red apple", seed=1, num_inference_steps=2, height=128, width=128, upscale=2)
    pipeline = Pipeline.load(opened)
    large = pipeline.generate(request).images[0]
    plain = pipeline.generate(GenerationRequest.make(opened.manifest, **{**PLAIN})).images[0]
    card = opened.manifest.upscaler
    np.testing.assert_array_equal(large, Network(pipeline.engine("upscaler"), card)(plain))
    add_upscaler(bundle, examine(write(tmp_path / "second.onnx", factor=4, beside=True)))
    again = open_bundle(bundle)
    assert again.manifest.upscaler is not None
    assert (again.manifest.upscaler.name, again.manifest.upscaler.factor) == ("second", 4)
    assert len(list((bundle / "upscaler").iterdir())) == 1
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("bundle")) == ["bundle"]


PLAIN = {"prompt": "a red apple", "seed": 1, "num_inference_steps": 2, "height": 128, "width": 128}


def test_a_changed_network_does_not_open(bundle: Path, tmp_path: Path) -> None:
    add_upscaler(bundle, examine(write(tmp_path / "net.onnx", beside=True)))
    (weights,) = (bundle / "upscaler").rglob("weights.data")
    data = bytearray(weights.read_bytes())
    data[5] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(BundleError, match="damaged"):
        open_bundle(bundle)


@pytest.mark.skipif(os.name == "nt", reason="folders without write permission")
def test_a_bundle_stays_whole_where_it_cannot_be_written(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examined = examine(write(tmp_path / "net.onnx"))

    def full(stage: Path, root: Path, names: list[str]) -> None:
        raise OSError(28, "No space left on device", str(root))

    monkeypatch.setattr("platemark.optimize.upscaler._publish", full)
    with pytest.raises(PlatemarkError, match="No space left"):
        add_upscaler(bundle, examined)
    assert open_bundle(bundle).manifest.upscaler is None
