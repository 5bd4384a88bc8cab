"""The CLIP image check: which of the policy's concepts a picture shows, by cosine with texts. numpy and the runtime's engines only.

A CLIP folder holds `preprocess.json` (image_size, mean, std, context_length, resize_mode, interpolation; logit_scale where it is not
CLIP's usual 100) and `golden.json`, beside the two graphs whose engines are passed in. Both towers must reproduce their golden
embedding when the folder is loaded, so that weights which never loaded cannot score. The filter knows what its CLIP was trained on and
nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from platemark.runtime.engine import Engine
from platemark.safety.closed import fail_closed, require
from platemark.safety.embeddings import cached_embeddings

Tokenize = Callable[[list[str]], NDArray[np.int64]]
GOLDEN_COSINE = 0.999
FILES = ("preprocess.json", "golden.json")  # what the check reads of a CLIP folder besides its tokenizer
_UNIT = 0.01  # how far from 1 the length of an embedding may be; int8 and fp16 towers stay well inside
_BATCH = 64
# A text is embedded in each of these and averaged (Radford et al. 2021, section 3.1.4).
TEMPLATES = ("{}", "a photo of a {}", "a picture of a {}")
PLAIN = ("{}",)  # where a model's vocabulary is known, its texts are names as it learned them
_WHITE = (255, 255, 255)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Triple = tuple[float, float, float]


class Preprocess(_Strict):
    """How a picture becomes the image tower's input. `mean` and `std` are of RGB in [0, 1]."""

    image_size: int = Field(ge=16, le=1024)
    mean: Triple
    std: Triple
    context_length: int = Field(ge=4, le=1024)
    resize_mode: Literal["squash", "longest", "shortest"] = "squash"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    logit_scale: float = Field(default=100.0, gt=0, le=1000, allow_inf_nan=False)


class GoldenImage(_Strict):
    """`embedding` of the noise picture drawn from PCG64(`seed`)."""

    seed: int = Field(ge=0)
    embedding: tuple[float, ...] = Field(min_length=2)


class GoldenText(_Strict):
    prompt: str
    embedding: tuple[float, ...] = Field(min_length=2)


class Golden(_Strict):
    image: GoldenImage
    text: GoldenText


@dataclass(frozen=True)
class ConceptScore:
    """`score`: probability mass on the category's concepts, in [0, 1]; `concept`: the likeliest of them."""

    score: float
    concept: str


class ImageFilter(Protocol):
    """Scores one picture for every category it was built for."""

    @property
    def name(self) -> str: ...

    def score(self, image: NDArray[np.uint8]) -> Mapping[str, ConceptScore]:
        """`image`: uint8 RGB (H, W, 3). May raise anything; the gate turns it into a refusal."""
        ...


class ClipModel:
    """A CLIP whose towers have proven that they are the ones that were exported."""

    def __init__(self, image: Engine, text: Engine, tokenize: Tokenize, preprocess: Preprocess, golden: Golden) -> None:
        self._image, self._text, self._tokenize = image, text, tokenize
        self.preprocess, self.golden = preprocess, golden
        with fail_closed("clip"):
            self._check_golden()

    @classmethod
    def load(cls, folder: Path, image: Engine, text: Engine, tokenize: Tokenize) -> ClipModel:
        """Reads the folder's JSON files and checks both towers against the golden embeddings.

        `tokenize` maps N texts to int64 ids (N, context_length). Raises `SafetyUnavailable`.
        """
        return cls(image, text, tokenize, read_preprocess(folder), _read(folder, "golden.json", Golden))

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

    def _check_golden(self) -> None:
        side = self.preprocess.image_size
        noise = np.random.Generator(np.random.PCG64(self.golden.image.seed)).integers(0, 256, (side, side, 3), dtype=np.uint8)
        towers = (
            ("image", self._run_image(pixel_values(noise, self.preprocess)), self.golden.image.embedding),
            ("text", self._run_text([self.golden.text.prompt])[0], self.golden.text.embedding),
        )
        for tower, got, stored in towers:
            want = np.asarray(stored, np.float64)
            cosine = float(got @ want / np.linalg.norm(want))
            require(cosine >= GOLDEN_COSINE, f"the CLIP {tower} tower does not give its golden embedding: cosine {cosine:.4f}")


class ClipFilter:
    """Scores pictures for the policy's concepts.

    The score of a category is the mass on its concepts of softmax(logit_scale · cosine) over all texts: every concept of every category,
    and the benign `vocabulary` (all names that the model knows, where that is known; else a general list). A text that is both counts as a
    concept. Thresholds are thus probabilities, whatever the scale of the model's cosines.
    """

    name = "clip"

    def __init__(
        self, model: ClipModel, concepts: Mapping[str, Sequence[str]], vocabulary: Sequence[str] = (), cache_folder: Path | None = None
    ) -> None:
        """`concepts`: category → concept texts. `cache_folder` keeps text embeddings between runs. Raises `SafetyUnavailable`."""
        require(bool(concepts) and all(concepts.values()), "the image check was given no concepts")
        own = [text for group in concepts.values() for text in group]
        known = {_key(text) for text in own}
        benign = [text for text in (vocabulary or contrast()) if _key(text) and _key(text) not in known]
        self._texts = tuple({_key(text): text for text in (*own, *benign)}.values())
        place = {_key(text): i for i, text in enumerate(self._texts)}
        self._members = {name: np.array(sorted({place[_key(text)] for text in group})) for name, group in concepts.items()}
        self._model = model
        templates = PLAIN if vocabulary else TEMPLATES
        with fail_closed(self.name):
            identity = model.golden.model_dump_json() + model.preprocess.model_dump_json() + repr(templates)
            self._bank = cached_embeddings(
                lambda texts: model.embed_concepts(texts, templates), self._texts, identity, cache_folder, probes=len(known)
            )

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
        logits = self._model.preprocess.logit_scale * (self._bank.astype(np.float64) @ self._model.embed_image(image))
        weights = np.exp(logits - logits.max())
        mass: NDArray[np.float64] = weights / weights.sum()
        require(bool(np.isfinite(mass).all()), "the CLIP scores are not finite")
        return mass


def read_preprocess(folder: Path) -> Preprocess:
    """The CLIP folder's `preprocess.json`. Raises `SafetyUnavailable`."""
    return _read(folder, "preprocess.json", Preprocess)


def require_picture(image: Any) -> None:
    """Raises `SafetyUnavailable` unless `image` is a uint8 RGB array (H, W, 3): detectors see what they were trained on, never a guess."""
    require(isinstance(image, np.ndarray), f"a picture to check must be an array, not {type(image).__name__}")
    require(image.dtype == np.uint8, f"a picture to check must be uint8, not {image.dtype}")
    require(image.ndim == 3 and image.shape[2] == 3 and image.size > 0, f"a picture to check must be (H, W, 3), not {image.shape}")


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
    scaled = (image.astype(np.float32) / 255 - np.array(preprocess.mean, np.float32)) / np.array(preprocess.std, np.float32)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], np.float32)


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


_M = TypeVar("_M", bound=BaseModel)


def _read(folder: Path, name: str, model: type[_M]) -> _M:
    """The JSON file, checked. Raises `SafetyUnavailable` where it is missing or says anything else than it should."""
    path = folder / name
    require(path.is_file(), f"the CLIP folder lacks {name}")
    with fail_closed(f"clip: {name}"):
        return model.model_validate_json(path.read_bytes())
