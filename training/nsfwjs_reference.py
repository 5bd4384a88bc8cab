"""Records what the original classifier says of test pictures: nsfwjs on TensorFlow.js, run once, kept as a small JSON file.

    npm install nsfwjs@4.4.0 @tensorflow/tfjs@4.22.0       (in any folder)
    python -m training.nsfwjs_reference THAT_FOLDER [--out tests/training/nsfwjs_reference.json]

The pictures are drawn by numpy, and parts of photographs that lie inside scikit-image, all at the network's own size, so that only the
network is compared. Tests draw them again and compare the ONNX graph with the record. Needs Node.js, and knows nothing of ONNX.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
SIDE = 224
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")  # names in skimage.data; all lie inside its wheel
_BLOBS = 12


def drawn() -> dict[str, Picture]:
    """Pictures that need nothing but numpy: noise, ramps, discs of colour."""
    rng = np.random.Generator(np.random.PCG64(11))
    found = {"noise": rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8), "ramps": _ramps()}
    return found | {f"discs-{number}": _discs(rng) for number in range(3)}


def photographs() -> dict[str, Picture]:
    """Of photographs inside scikit-image the middle, and every second pixel around it. Raises `ImportError` without it."""
    from skimage import data  # type: ignore[import-untyped]

    found = {}
    for name in PHOTOGRAPHS:
        picture = np.asarray(getattr(data, name)(), np.uint8)[..., :3]
        half = picture[::2, ::2]
        found[f"{name}-middle"] = _middle(picture)
        if min(half.shape[:2]) >= SIDE:
            found[f"{name}-half"] = _middle(half)
    return found


def _middle(picture: Picture) -> Picture:
    top, left = (picture.shape[0] - SIDE) // 2, (picture.shape[1] - SIDE) // 2
    return picture[top : top + SIDE, left : left + SIDE]


def fingerprint(picture: Picture) -> str:
    """sha256 of the shape and the values, to tell a picture that changed from a classifier that did."""
    return hashlib.sha256(repr(picture.shape).encode() + np.ascontiguousarray(picture).tobytes()).hexdigest()


def _ramps() -> Picture:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.stack([rows * 255 // SIDE, columns * 255 // SIDE, (rows + columns) * 255 // (2 * SIDE)], axis=-1).astype(np.uint8)


def _discs(rng: np.random.Generator) -> Picture:
    picture = np.empty((SIDE, SIDE, 3), np.uint8)
    picture[:] = rng.integers(0, 256, 3)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for _ in range(_BLOBS):
        row, column, radius = rng.integers(0, SIDE), rng.integers(0, SIDE), rng.integers(SIDE // 12, SIDE // 3)
        picture[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = rng.integers(0, 256, 3)
    return picture


def record(packages: Path) -> dict[str, object]:
    """Runs Node.js over all pictures; `packages` holds the folder `node_modules`."""
    pictures = drawn() | photographs()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        entries = [{"file": key, "height": p.shape[0], "width": p.shape[1]} for key, p in pictures.items()]
        (folder / "index.json").write_text(json.dumps(entries), encoding="utf-8")
        for key, picture in pictures.items():
            (folder / key).write_bytes(np.ascontiguousarray(picture).tobytes())
        script = Path(__file__).with_suffix(".cjs")
        subprocess.run(["node", str(script), str(folder)], check=True, cwd=packages)
        result = json.loads((folder / "outputs.json").read_text(encoding="utf-8"))
    outputs = {
        key: {"sha256": fingerprint(picture), "probabilities": [round(v, 8) for v in result["outputs"][key]]}
        for key, picture in pictures.items()
    }
    return {"made_by": "python -m training.nsfwjs_reference", "versions": result["versions"], "pictures": outputs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, help="the folder that npm installed into")
    parser.add_argument("--out", type=Path, default=Path("tests/training/nsfwjs_reference.json"))
    args = parser.parse_args()
    args.out.write_text(json.dumps(record(args.packages.resolve()), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
