"""The NSFW network in ONNX says what the original said, and the converter makes the vendored file, and only from the package's own."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from platemark.safety.detectors.nsfw import CLASSES, SHA256, NsfwDetector, pixel_values
from training import convert_nsfwjs
from training.nsfwjs_reference import SIDE, drawn, fingerprint, photographs

REFERENCE = json.loads((Path(__file__).parent / "nsfwjs_reference.json").read_text(encoding="utf-8"))["pictures"]
TOLERANCE = 1e-4


def pictures() -> dict[str, np.ndarray]:
    try:
        return drawn() | photographs()
    except ImportError:
        return drawn()  # scikit-image is not here: the drawn ones alone


def test_the_network_equals_the_original() -> None:
    seen = pictures()
    assert set(drawn()) <= set(seen) <= set(REFERENCE)
    detector = NsfwDetector(1)
    for name, picture in seen.items():
        assert fingerprint(picture) == REFERENCE[name]["sha256"], f"{name} is another picture than was recorded"
        assert picture.shape == (SIDE, SIDE, 3)
        got = detector._weights.run({"pixel_values": pixel_values(picture)})["probabilities"][0]
        np.testing.assert_allclose(got, REFERENCE[name]["probabilities"], atol=TOLERANCE, rtol=0, err_msg=name)


def test_the_record_tells_the_classes_apart() -> None:
    """Every class but `sexy` is somewhere the likeliest but one or better, so that a swapped column would show."""
    rows = np.array([entry["probabilities"] for entry in REFERENCE.values()])
    assert convert_nsfwjs.CLASSES == CLASSES
    assert len({tuple(np.argsort(row)) for row in rows}) >= 4
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-4)


def package() -> Path:
    """`nsfwjs-4.4.0.tgz` in the folder that PLATEMARK_NSFWJS names; skips without."""
    folder = os.environ.get("PLATEMARK_NSFWJS", "")
    file = Path(folder, "nsfwjs-4.4.0.tgz")
    if not folder or not file.is_file():
        pytest.skip("PLATEMARK_NSFWJS names no folder with nsfwjs-4.4.0.tgz (npm pack nsfwjs@4.4.0)")
    return file


def test_the_converter_makes_the_vendored_file(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    out = tmp_path / "again.onnx"
    convert_nsfwjs.main([str(package()), "--out", str(out)])
    assert hashlib.sha256(out.read_bytes()).hexdigest() == SHA256


@pytest.mark.parametrize("content", [None, b"", b"other weights"])
def test_another_package_is_refused(tmp_path: Path, content: bytes | None) -> None:
    pytest.importorskip("onnx")
    file, out = tmp_path / "nsfwjs-4.4.0.tgz", tmp_path / "out.onnx"
    with tarfile.open(file, "w:gz") as archive:
        for name in convert_nsfwjs.SOURCES if content is not None else ():
            entry = tarfile.TarInfo(convert_nsfwjs.FOLDER + name)
            entry.size = len(content or b"")
            archive.addfile(entry, io.BytesIO(content or b""))
    with pytest.raises(SystemExit, match="cannot be converted"):
        convert_nsfwjs.main([str(file), "--out", str(out)])
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("script", "value"),
    [
        ("({1:[function(e,o){o.exports={a:!0,b:[1,-2.5,.5,3.]}}})", {"a": True, "b": [1, -2.5, 0.5, 3.0]}),
        ('({1:[function(e,o){o.exports={"x y":null,z:!1}}})', {"x y": None, "z": False}),
        ('({1:[function(e,o){o.exports="AAEC"}})', "AAEC"),
    ],
)
def test_literals_are_read_without_running_them(script: str, value: object) -> None:
    assert convert_nsfwjs.parse_literal(script) == value


@pytest.mark.parametrize("script", ["({1:[function(e,o){o.exports=run()}})", "({1:[function(e,o){o.exports={a:1", "nothing"])
def test_what_is_no_literal_is_refused(script: str) -> None:
    with pytest.raises(ValueError, match=r"no literal|not found"):
        convert_nsfwjs.parse_literal(script)
