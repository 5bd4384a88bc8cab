"""The Stable Diffusion safety checker, as a checkpoint brings it: its CLIP vision tower, and its rule computed here with scores kept.

The rule (diffusers, `StableDiffusionSafetyChecker`): cosines of the image embedding with 3 "special care" and 17 concept vectors, less a
threshold each, rounded to 3 decimals; once a special care score is above 0, all later scores get 0.01 more; a concept above 0 flags the
picture. All of its concepts are sexual (Rando et al. 2022, arXiv:2210.04610): it knows nothing of violence, hate or anything else, and
its vectors have no names. `optimize.safety_checker` writes the files that are read here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from platemark.runtime.bundle import Bundle
from platemark.runtime.engine import Engine
from platemark.safety.closed import fail_closed, require
from platemark.safety.detectors.clip_files import files_sha256, read_json
from platemark.safety.detectors.pictures import Picture, planes, require_picture, resized
from platemark.safety.signals import Observation, Signal

COMPONENT, FILE = "safety_checker", "checker.json"
ADJUSTMENT = 0.01
GOLDEN_COSINE = 0.999
FLAGGED = 0.7  # the score from which the checker flags: `standard` and `strict` keep back what it would
_ABOVE, _BELOW = 0.005, 0.015  # of the score, for a thousandth of the checker's own
_OBLONG = 1.05  # from this ratio of sides on, the middle square leaves out enough to look at the whole picture too
_KERNELS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}

Vector = Annotated[tuple[float, ...], Field(min_length=2)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Triple = tuple[Finite, Finite, Finite]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class CheckerPreprocess(_Strict):
    """The checkpoint's feature extractor: shorter side to `resize`, the middle `image_size` square, (x * `rescale` - mean) / std."""

    image_size: int = Field(ge=8, le=1024)
    resize: int = Field(ge=8, le=2048)
    interpolation: Literal["nearest", "lanczos", "bilinear", "bicubic"]
    rescale: float = Field(gt=0, le=1, allow_inf_nan=False)
    mean: Triple
    std: Triple


class CheckerFile(_Strict):
    """`checker.json`: preprocessing, the rule's vectors and thresholds, and the tower's embedding of the golden noise picture."""

    format_version: Literal[1]
    preprocess: CheckerPreprocess
    special_care: tuple[Vector, ...] = Field(min_length=1)
    special_care_thresholds: tuple[Finite, ...]
    concepts: tuple[Vector, ...] = Field(min_length=1)
    concept_thresholds: tuple[Finite, ...]
    golden_seed: int = Field(ge=0)
    golden_embedding: Vector


@dataclass(frozen=True)
class Judgement:
    """The checker's scores, cosine - threshold + adjustment to 3 decimals, in the checkpoint's order. Above 0 is found."""

    special_care: tuple[float, ...]
    concepts: tuple[float, ...]

    @property
    def flagged(self) -> bool:
        """What diffusers calls `has_nsfw_concept`."""
        return any(score > 0 for score in self.concepts)

    @property
    def worst(self) -> int:
        """The concept with the highest score."""
        return int(np.argmax(self.concepts))

    @property
    def score(self) -> float:
        """The highest concept score on a scale from 0 to 1, where `FLAGGED` and above is flagged."""
        thousandths = round(self.concepts[self.worst] * 1000)
        return float(np.clip(FLAGGED + (thousandths - 1) * (_ABOVE if thousandths >= 1 else _BELOW), 0.0, 1.0))


class Rule:
    """The vectors and thresholds of one checkpoint."""

    def __init__(self, file: CheckerFile) -> None:
        """Raises `SafetyUnavailable` for vectors that were never loaded: they are ones, equal, or constant, and would just score."""
        self._special, self._special_least = _loaded(file.special_care, file.special_care_thresholds, "special care")
        self._concepts, self._concept_least = _loaded(file.concepts, file.concept_thresholds, "concept")
        require(self._special.shape[1] == self._concepts.shape[1], "the safety checker's vectors differ in length")
        self.dimensions = int(self._concepts.shape[1])

    def judge(self, embedding: NDArray[np.float32]) -> Judgement:
        """The scores of one image embedding (D,), of any length but 0."""
        unit = _unit(embedding[None])
        adjustment = 0.0
        special: list[float] = []
        for cosine, least in zip(_cosines(unit, self._special), self._special_least, strict=True):
            score = round(np.float32(cosine) - float(least) + adjustment, 3)  # in float32, as the checker rounds
            special.append(float(score))
            adjustment = ADJUSTMENT if score > 0 else adjustment
        pairs = zip(_cosines(unit, self._concepts), self._concept_least, strict=True)
        return Judgement(tuple(special), tuple(float(round(np.float32(c) - float(least) + adjustment, 3)) for c, least in pairs))


class SafetyChecker:
    """Category `sexual`: 0.5 and above is what the checker flags. An `ImageDetector`; safe to share between threads."""

    name = "sd_safety_checker"
    categories = ("sexual",)

    def __init__(self, engine: Engine, file: CheckerFile, sha256: str) -> None:
        """Raises `SafetyUnavailable` where vectors or tower were never loaded."""
        self._engine, self._file, self.model_sha256 = engine, file, sha256
        with fail_closed(self.name):
            self._rule = Rule(file)
            self._check_golden()

    def observe(self, image: NDArray[np.uint8]) -> Observation:
        """One signal, whatever its score; its evidence is the number of the concept. Raises `SafetyUnavailable`."""
        began = time.perf_counter()
        judgement = self.judge(image)
        signal = Signal("sexual", "sd_safety_checker", judgement.score, f"concept {judgement.worst}")
        return Observation(self.name, self.model_sha256, (signal,), (time.perf_counter() - began) * 1000)

    def judge(self, image: NDArray[np.uint8]) -> Judgement:
        """The scores of one uint8 RGB picture (H, W, 3): of its middle square, as the checker looks at it.

        An oblong picture is looked at whole as well, padded with black, and the graver look counts. Raises `SafetyUnavailable`.
        """
        with fail_closed(self.name):
            require_picture(image)
            pixels = np.concatenate([pixel_values(view, self._file.preprocess) for view in _views(image)])
            return max((self._rule.judge(row) for row in self._embeddings(pixels)), key=lambda found: found.score)

    def _embeddings(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        rows = self._engine.run({"pixel_values": pixels})["image_embeds"]
        require(rows.shape == (len(pixels), self._rule.dimensions), f"the safety checker's tower gave {rows.shape}")
        require(rows.dtype == np.float32 and bool(np.isfinite(rows).all()), "the safety checker's tower gave values that are not finite")
        require(bool((np.linalg.norm(rows, axis=1) > 0).all()), "the safety checker's tower gave zeros")
        return rows

    def _check_golden(self) -> None:
        side = self._file.preprocess.image_size
        noise = np.random.Generator(np.random.PCG64(self._file.golden_seed)).integers(0, 256, (side, side, 3), dtype=np.uint8)
        got = self._embeddings(_normalised(noise, self._file.preprocess))[0].astype(np.float64)
        want = np.asarray(self._file.golden_embedding, np.float64)
        cosine = float(got @ want / (np.linalg.norm(got) * np.linalg.norm(want)))
        require(cosine >= GOLDEN_COSINE, f"the safety checker's tower does not give its golden embedding: cosine {cosine:.4f}")


def checker_for_bundle(bundle: Bundle, threads: int | None = None) -> SafetyChecker:
    """The checker that the bundle's checkpoint brought. Raises `SafetyUnavailable` (none, or one that fails) and `BundleError`."""
    from platemark.runtime.backends.onnxruntime import compile_graph

    require(COMPONENT in bundle.manifest.components, "the bundle has no safety checker: its checkpoint brought none")
    component, folder = bundle.component(COMPONENT), bundle.folder(COMPONENT, (FILE,))
    names = (component.graph, *component.weights, f"{COMPONENT}/{FILE}")
    file = read_json(folder, FILE, CheckerFile)
    with fail_closed(SafetyChecker.name):
        engine = compile_graph(bundle.file(component.graph), threads=threads)
    return SafetyChecker(engine, file, files_sha256({name: bundle.manifest.files[name] for name in names}))


def pixel_values(image: Picture, preprocess: CheckerPreprocess) -> NDArray[np.float32]:
    """One picture as the tower's input, float32 (1, 3, S, S): resized by its shorter side, the middle cut out, normalised."""
    height, width = image.shape[:2]
    short = min(height, width)
    size = [preprocess.resize if side == short else int(preprocess.resize * side / short) for side in (height, width)]
    seen = resized(image, size[0], size[1], Image.Resampling(_KERNELS[preprocess.interpolation]))
    top, left = ((side - preprocess.image_size) // 2 for side in size)
    require(top >= 0 and left >= 0, "the safety checker cuts out more than it resizes to")
    return _normalised(seen[top : top + preprocess.image_size, left : left + preprocess.image_size], preprocess)


def _normalised(image: Picture, preprocess: CheckerPreprocess) -> NDArray[np.float32]:
    mean, std = np.array(preprocess.mean, np.float32), np.array(preprocess.std, np.float32)
    return planes((image.astype(np.float32) * np.float32(preprocess.rescale) - mean) / std)


def _views(image: Picture) -> list[Picture]:
    height, width = image.shape[:2]
    longer = max(height, width)
    if longer <= _OBLONG * min(height, width):
        return [image]
    canvas = np.zeros((longer, longer, 3), np.uint8)
    top, left = (longer - height) // 2, (longer - width) // 2
    canvas[top : top + height, left : left + width] = image
    return [image, canvas]


def _loaded(rows: tuple[Vector, ...], thresholds: tuple[float, ...], what: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(unit vectors, thresholds). Raises `SafetyUnavailable` unless they look like ones that a checkpoint stored."""
    require(
        len({len(row) for row in rows}) == 1 and len(rows) == len(thresholds), f"the safety checker's {what} vectors do not fit together"
    )
    table, least = np.array(rows, np.float32), np.array(thresholds, np.float32)
    require(bool(np.isfinite(table).all() and np.isfinite(least).all()), f"the safety checker's {what} vectors are not finite")
    require(bool((table.std(axis=1) > 0).all()), f"the safety checker's {what} vectors were never loaded: one is constant")
    require(len(np.unique(table, axis=0)) == len(table), f"the safety checker's {what} vectors were never loaded: two are equal")
    require(bool((np.abs(least) < 1).all()), f"the safety checker's {what} thresholds were never loaded: one can never be passed")
    return _unit(table), least


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """As torch normalises: by the length, at least 1e-12."""
    lengths = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
    return np.asarray(rows / lengths, np.float32)


def _cosines(unit: NDArray[np.float32], table: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray((unit @ table.T)[0], np.float32)
