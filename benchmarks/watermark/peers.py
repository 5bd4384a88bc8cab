"""The watermarks that PyPI installs today, under the same attacks on the same pictures.

    build/peers/bin/python -m benchmarks.watermark.peers --out build/peers512.jsonl --ours build/wm512.jsonl --table build/peers.md

Runs in an environment of its own (`environments/peers.txt`), without Platemark; `--ours` joins the results of the harness. Each peer marks
at its own default strength. Their readers always give bits, so each is told how many, and counts as right when all are: none can say "no
watermark". rivaGan carries 32 bits, the others are given 64. Resumable: trials are appended to `--out` as they are done.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.watermark import attacks, images, table
from benchmarks.watermark.images import Pixels
from benchmarks.watermark.table import Record
from benchmarks.whole_process import machine

Bits = NDArray[np.uint8]
# What the peers' own code and OpenCV raise on pictures that they cannot read: a lost mark.
_LOST = (RuntimeError, ValueError, IndexError, AssertionError, TypeError, ZeroDivisionError)


@dataclass(frozen=True)
class Peer:
    """`embed` and `extract` take and give RGB pixels and bits."""

    bits: int
    embed: Callable[[Pixels, Bits], Pixels]
    extract: Callable[[Pixels], Bits]


def _bgr(picture: Pixels) -> Pixels:
    return np.ascontiguousarray(picture[..., ::-1])


def invisible(method: str, bits: int) -> Peer:
    """One method of `invisible-watermark` (ShieldMnt, MIT)."""
    from imwatermark import WatermarkDecoder, WatermarkEncoder

    if method == "rivaGan":
        WatermarkEncoder.loadModel()
        WatermarkDecoder.loadModel()

    def embed(picture: Pixels, payload: Bits) -> Pixels:
        encoder = WatermarkEncoder()
        encoder.set_by_bits(payload.tolist())
        return _bgr(encoder.encode(_bgr(picture), method))

    def extract(picture: Pixels) -> Bits:
        return np.asarray(WatermarkDecoder("bits", bits).decode(_bgr(picture), method)).astype(np.uint8)

    return Peer(bits, embed, extract)


def blind(bits: int) -> Peer:
    """`blind-watermark` (guofei9987, MIT). It is not told the original size: a picture out of the wild has none with it."""
    import blind_watermark

    blind_watermark.bw_notes.close()

    def embed(picture: Pixels, payload: Bits) -> Pixels:
        marker = blind_watermark.WaterMark(password_img=1, password_wm=1)
        marker.read_img(img=_bgr(picture))
        marker.read_wm(payload.astype(bool), mode="bit")
        return _bgr(np.clip(np.rint(marker.embed()), 0, 255).astype(np.uint8))

    def extract(picture: Pixels) -> Bits:
        marker = blind_watermark.WaterMark(password_img=1, password_wm=1)
        return (np.asarray(marker.extract(embed_img=_bgr(picture), wm_shape=bits, mode="bit")) >= 0.5).astype(np.uint8)

    return Peer(bits, embed, extract)


ROWS = (
    "none", "jpeg-90", "jpeg-70", "jpeg-50", "jpeg-30", "webp-50", "brightness-1.3", "contrast-0.7", "gray", "flip", "rotate-90",
    "rotate-1", "resize-50",
    "resize-75", "resize-50-and-back", "crop-90", "crop-50", "occlusion-10", "blur-2", "median-3", "noise-10", "noise-25",
    "screenshot", "social",
)  # fmt: skip
PEERS: dict[str, Callable[[], Peer]] = {
    "dwtDct": lambda: invisible("dwtDct", 64),
    "dwtDctSvd": lambda: invisible("dwtDctSvd", 64),
    "rivaGan": lambda: invisible("rivaGan", 32),
    "blind-watermark": lambda: blind(64),
}


def trial(name: str, peer: Peer, number: int, spec: images.Spec, rows: list[str]) -> list[Record]:
    """The records of one picture under one peer."""
    picture = images.load(spec)
    payload = np.random.default_rng([number, zlib.crc32(name.encode())]).integers(0, 2, peer.bits).astype(np.uint8)
    began = time.process_time()
    marked = peer.embed(picture, payload)
    spent = 1000 * (time.process_time() - began)
    records: list[Record] = [{"peer": name, "pair": number, "picture": spec.name, "embed_ms": round(spent, 1), **_quality(picture, marked)}]
    for row in rows:
        changed = attacks.ATTACKS[row](marked, spec.seed + number)
        began = time.process_time()
        exact = bool(np.array_equal(_read(peer, changed), payload))
        spent = 1000 * (time.process_time() - began)
        records.append({"peer": name, "pair": number, "row": row, "exact": exact, "stage": "fast", "fast_ms": round(spent, 1)})
    return records


def _read(peer: Peer, picture: Pixels) -> Bits | None:
    import cv2

    try:
        return peer.extract(picture)
    except (cv2.error, *_LOST):
        return None


def _quality(picture: Pixels, marked: Pixels) -> dict[str, Any]:
    from skimage.metrics import structural_similarity

    mean = float(((picture.astype(np.float32) - marked) ** 2).mean())
    ssim = float(structural_similarity(picture, marked, channel_axis=2))
    return {"psnr": round(10 * np.log10(255**2 / max(mean, 1e-6)), 2), "flat_psnr": None, "ssim": round(ssim, 4)}


def written(records: list[Record], ours: list[Record], size: int, command: str) -> str:
    """The table: a line an attack, a column a watermark."""
    columns: dict[str, list[Record]] = {"Platemark": ours} if ours else {}
    columns |= {name: [r for r in records if r.get("peer") == name] for name in PEERS}
    rows = {name: table.by_row(found) for name, found in columns.items()}
    lines = [f"{size}×{size}, photographs and mosaics of the half 'report'. `{command}`, on {machine()}.", ""]
    lines += ["| watermark | bits | PSNR dB | SSIM | embed ms | detect ms (fast) | pictures |", "|---|---|---|---|---|---|---|"]
    for name, found in columns.items():
        marked = [r for r in found if "psnr" in r]
        spent = [r["fast_ms"] for r in found if "fast_ms" in r]
        means = [float(np.mean([r[field] for r in marked])) for field in ("psnr", "ssim", "embed_ms")] if marked else [0.0] * 3
        bits = 64 if name != "rivaGan" else 32
        pictures = len({r["pair"] for r in marked})
        lines.append(f"| {name} | {bits} | {means[0]:.1f} | {means[1]:.4f} | {means[2]:.0f} | {np.median(spent or [0]):.0f} | {pictures} |")
    lines += ["", "Exact payload, % (trials):", "", "| attack | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in ROWS:
        cells = [_cell(rows[name].get(row, [])) for name in columns]
        if any(rows.get(name, {}).get(row) for name in PEERS):
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(trials: list[Record]) -> str:
    return f"{100 * sum(t['exact'] for t in trials) / len(trials):.0f} ({len(trials)})" if trials else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=60, help="pictures for each peer; rivaGan takes about 3 s of CPU a reading")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ours", type=Path, nargs="*", default=[])
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    records = _lines(given.out)
    done = {(r["peer"], r["pair"], r["row"]) for r in records if "row" in r}
    specs, end = images.ordered("report", given.size, ("photo", "mosaic")), time.monotonic() + given.seconds
    peers = {name: PEERS[name]() for name in given.peers.split(",")}
    with given.out.open("a", encoding="utf-8") as handle:
        for number in range(given.pairs):
            for name, peer in peers.items():
                rows = [row for row in ROWS if (name, number, row) not in done]
                if rows and time.monotonic() >= end:
                    sys.exit(75)
                if rows:
                    made = trial(name, peer, number, specs[number % len(specs)], rows)
                    handle.write("".join(json.dumps(record) + "\n" for record in made))
                    handle.flush()
    command = "python -m benchmarks.watermark.peers " + " ".join(sys.argv[1:])
    text = written(_lines(given.out), [r for path in given.ours for r in _lines(path)], given.size, command)
    print(text)
    if given.table:
        given.table.parent.mkdir(parents=True, exist_ok=True)
        given.table.write_text(text, encoding="utf-8")


def _lines(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")] if path.is_file() else []


if __name__ == "__main__":
    main()
