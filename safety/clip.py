"""The CLIP image check: which of the policy's concepts a picture shows, by cosine with texts. numpy and the runtime's engines only.

Both towers must reproduce their golden embedding when they are loaded, so that weights which never loaded cannot score. The filter knows
what its CLIP was trained on, its `domain`, and nothing else. Reads no graph and no hash: `detectors.clip_loading` does.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from platemark.runtime.engine import Engine
from platemark.safety.closed import fail_closed, require
from platemark.safety.detectors.clip_files import FILES, GOLDEN_COSINE, Golden, Preprocess, read_golden, read_preprocess
from platemark.safety.detectors.pictures import planes, require_picture
from platemark.safety.embeddings import cached_embeddings
from platemark.safety.signals import Observation, Signal

__all__ = [
    "FILES",
    "ClipFilter",
    "ClipModel",
    "ConceptScore",
    "Tokenize",
    "contrast",
    "pixel_values",
    "read_preprocess",
    "require_picture",
    "square",
]

Tokenize = Callable[[list[str]], NDArray[np.int64]]
_UNIT = 0.01  # how far from 1 the length of an embedding may be; int8 and fp16 towers stay well inside
_BATCH = 64
# A text is embedded in each of these and averaged (Radford et al. 2021, section 3.1.4).
TEMPLATES = ("{}", "a photo of a {}", "a picture of a {}")
PLAIN = ("{}",)  # where a model's vocabulary is known, its texts are names as it learned them
_WHITE = (255, 255, 255)


@dataclass(frozen=True)
class ConceptScore:
    """`score`: probability mass on the category's concepts, in [0, 1]; `concept`: the likeliest of them."""

    score: float
    concept: str


class ClipModel:
    """A CLIP whose towers have proven that they are the ones that were exported."""

    def __init__(
        self,
        image: Engine,
        text: Engine,
        tokenize: Tokenize,
        preprocess: Preprocess,
        golden: Golden,
        *,
        sha256: str | None = None,
        golden_cosine: float = GOLDEN_COSINE["fp32"],
    ) -> None:
        """`sha256`: of the model's files; None: of what proves it, its golden embeddings. Raises `SafetyUnavailable`."""
        self._image, self._text, self._tokenize = image, text, tokenize
        self.preprocess, self.golden = preprocess, golden
        self.sha256 = sha256 or hashlib.sha256((golden.model_dump_json() + preprocess.model_dump_json()).encode()).hexdigest()
        with fail_closed("clip"):
            self._check_golden(golden_cosine)

    @classmethod
    def load(cls, folder: Path, image: Engine, text: Engine, tokenize: Tokenize, **rest: Any) -> ClipModel:
        """Reads the folder's JSON files and checks both towers against the golden embeddings.

        `tokenize` maps N texts to int64 ids (N, context_length); `rest`: see the constructor. Raises `SafetyUnavailable`.
        """
        return cls(image, text, tokenize, read_preprocess(folder), read_golden(folder), **rest)

    def embed_image(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Unit embedding (D,) of one uint8 RGB picture (H, W, 3). Raises `SafetyUnavailable` for any other array."""
        require_picture(image)
        return self._run_image(pixel_values(square(image, self.preprocess), self.preprocess))

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit embeddings (N, D) of texts as they are, without templates."""
        rows = [self._run_text(list(texts[i : i + _BATCH])) for i in range(0, len(texts), _BATCH)]
        return np.concatenate(rows)

    def embed_concepts(self, texts: Sequence[str], templates: Sequence[str] = TEMPLATES) -> NDArray[np.float32]:
        """Unit embeddings (N, D) of texts: the mean over `templates`, normalised anew."""
        mean = np.mean([self.embed_texts([template.replace("{}", text) for text in texts]) for template in templates], axis=0)
        return np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True), np.float32)

    def _run_image(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        rows = _unit(self._image.run({"pixel_values": values})["image_embeds"], 1, len(self.golden.image.embedding))
        return rows.reshape(-1)

    def _run_text(self, texts: list[str]) -> NDArray[np.float32]:
        ids = self._tokenize(texts)
        expected = (len(texts), self.preprocess.context_length)
        require(ids.dtype == np.int64 and ids.shape == expected, f"the CLIP tokenizer gave {ids.dtype} {ids.shape}, not int64 {expected}")
        return _unit(self._text.run({"input_ids": ids})["text_embeds"], len(texts), len(self.golden.text.embedding))

    def _check_golden(self, least: float) -> None:
        side = self.preprocess.image_size
        noise = np.random.Generator(np.random.PCG64(self.golden.image.seed)).integers(0, 256, (side, side, 3), dtype=np.uint8)
        towers = (
            ("image", self._run_image(pixel_values(noise, self.preprocess)), self.golden.image.embedding),
            ("text", self._run_text([self.golden.text.prompt])[0], self.golden.text.embedding),
        )
        for tower, got, stored in towers:
            want = np.asarray(stored, np.float64)
            cosine = float(got @ want / np.linalg.norm(want))
            require(cosine >= least, f"the CLIP {tower} tower does not give its golden embedding: cosine {cosine:.4f}")


class ClipFilter:
    """Scores pictures for the policy's concepts. An `ImageDetector`; safe to share between threads.

    The score of a category is the mass on its concepts of softmax(logit_scale · (cosine + offset)) over all texts: every concept of every
    category, and the benign `vocabulary` (all names that the model knows, where that is known; else a general list). A text that is both
    counts as a concept. Thresholds are thus probabilities, whatever the scale of the model's cosines.
    """

    name = "clip"

    def __init__(
        self,
        model: ClipModel,
        concepts: Mapping[str, Sequence[str]],
        vocabulary: Sequence[str] = (),
        cache_folder: Path | None = None,
        calibration: Mapping[str, float] | None = None,
    ) -> None:
        """`concepts`: category → concept texts. `calibration`: concept → offset, added to its cosine (0 where it has none).

        `cache_folder` keeps text embeddings between runs: those of the vocabulary under any policy, those of a policy's concepts until one
        of them changes. Raises `SafetyUnavailable`.
        """
        require(bool(concepts) and all(concepts.values()), "the image check was given no concepts")
        own = tuple({_key(text): text for group in concepts.values() for text in group}.values())
        place = {_key(text): i for i, text in enumerate(own)}
        benign = tuple({_key(text): text for text in (vocabulary or contrast()) if _key(text)}.values())
        kept = [i for i, text in enumerate(benign) if _key(text) not in place]
        self._texts = (*own, *(benign[i] for i in kept))
        self._members = {name: np.array(sorted({place[_key(text)] for text in group})) for name, group in concepts.items()}
        self._offsets = _offsets(calibration or {}, place, len(self._texts))
        self._model, self.model_sha256 = model, model.sha256
        with fail_closed(self.name):
            rows = self._embedded(own, PLAIN if vocabulary else TEMPLATES, cache_folder, len(own))
            others = self._embedded(benign, PLAIN if vocabulary else TEMPLATES, cache_folder, 0) if kept else rows[:0]
            self._bank = np.concatenate([rows, others[kept]]) if kept else rows

    def _embedded(self, texts: Sequence[str], templates: Sequence[str], folder: Path | None, probes: int) -> NDArray[np.float32]:
        model = self._model
        identity = model.golden.model_dump_json() + model.preprocess.model_dump_json() + repr(templates)
        return cached_embeddings(lambda some: model.embed_concepts(some, templates), texts, identity, folder, probes)

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(self._members)

    @property
    def domain(self) -> str:
        """What pictures the CLIP knows: `general`, or the name of a narrow set such as `emoji`."""
        return self._model.preprocess.domain

    def observe(self, image: NDArray[np.uint8]) -> Observation:
        """One signal a category, whatever its score; its evidence is the likeliest concept. Raises `SafetyUnavailable`."""
        began = time.perf_counter()
        signals = tuple(Signal(name, "clip_concept", found.score, found.concept) for name, found in self.score(image).items())
        return Observation(self.name, self.model_sha256, signals, (time.perf_counter() - began) * 1000)

    def score(self, image: NDArray[np.uint8]) -> dict[str, ConceptScore]:
        """The score of every category, and its likeliest concept. Raises `SafetyUnavailable`."""
        with fail_closed(self.name):
            mass = self.probabilities(image)
        return {
            name: ConceptScore(float(min(1.0, mass[rows].sum())), self._texts[rows[int(mass[rows].argmax())]])
            for name, rows in self._members.items()
        }

    def probabilities(self, image: NDArray[np.uint8]) -> NDArray[np.float64]:
        """The softmax over all texts (N,)."""
        cosines = self._bank.astype(np.float64) @ self._model.embed_image(image)
        logits = self._model.preprocess.logit_scale * (cosines + self._offsets)
        weights = np.exp(logits - logits.max())
        mass: NDArray[np.float64] = weights / weights.sum()
        require(bool(np.isfinite(mass).all()), "the CLIP scores are not finite")
        return mass


def _offsets(calibration: Mapping[str, float], place: Mapping[str, int], count: int) -> NDArray[np.float64]:
    """The offset of each text. Raises `SafetyUnavailable` for one that is no concept's, or no number."""
    offsets = np.zeros(count)
    for text, offset in calibration.items():
        require(_key(text) in place, "the calibration names a text that is no concept")
        offsets[place[_key(text)]] = offset
    require(bool(np.isfinite(offsets).all()), "the calibration holds an offset that is no number")
    return offsets


def square(image: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.uint8]:
    """`image` (H, W, 3) as (S, S, 3), antialiased, and with nothing cropped away: what is not looked at is not checked.

    `squash` scales each side by itself, as the model was trained; the other modes keep the shape and pad with white, also where the model
    was trained on centre crops (`shortest`).
    """
    height, width = image.shape[:2]
    picture = Image.fromarray(np.ascontiguousarray(image))
    if height != width and preprocess.resize_mode != "squash":
        longer = max(height, width)
        canvas = Image.new("RGB", (longer, longer), _WHITE)
        canvas.paste(picture, ((longer - width) // 2, (longer - height) // 2))
        picture = canvas
    kernel = Image.Resampling.BICUBIC if preprocess.interpolation == "bicubic" else Image.Resampling.BILINEAR
    return np.asarray(picture.resize((preprocess.image_size, preprocess.image_size), kernel))


def pixel_values(image: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.float32]:
    """A uint8 picture (S, S, 3) as the image tower's input: float32 (1, 3, S, S), (x / 255 - mean) / std."""
    mean, std = np.array(preprocess.mean, np.float32), np.array(preprocess.std, np.float32)
    return planes((image.astype(np.float32) / np.float32(255) - mean) / std)


@cache
def contrast() -> tuple[str, ...]:
    """Benign texts to tell concepts from, for a model whose vocabulary is not known."""
    return tuple(files("platemark.safety").joinpath("data", "contrast.txt").read_text(encoding="utf-8").split("\n")[:-1])


def _unit(rows: NDArray[Any], count: int, dimensions: int) -> NDArray[np.float32]:
    """`rows` as float32 (`count`, `dimensions`), finite and of unit length. Raises `SafetyUnavailable`."""
    require(rows.shape == (count, dimensions), f"the CLIP engine gave {rows.shape}, not {(count, dimensions)}")
    require(rows.dtype.kind == "f" and bool(np.isfinite(rows).all()), "the CLIP engine gave an embedding that is not finite")
    lengths = np.linalg.norm(rows.astype(np.float32), axis=1, keepdims=True)
    require(bool((np.abs(lengths - 1) <= _UNIT).all()), "the CLIP engine gave an embedding that is not of unit length")
    return np.asarray(rows / lengths, np.float32)


def _key(text: str) -> str:
    return " ".join(text.casefold().split())
