"""The files of a CLIP folder that picture checks read, as strict data. Opens no network and knows no policy.

`preprocess.json` and `golden.json` lie beside the two graphs, in a bundle's `clip/` and in a folder that `optimize.clip.export_clip` made;
the latter also has `clip.json`, which lists every file with its sha256 and says how far the towers are off their reference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from platemark.safety.closed import fail_closed, require

FILES = ("preprocess.json", "golden.json")  # what the check reads of a CLIP folder besides its tokenizer
MANIFEST = "clip.json"
GENERAL = "general"  # the domain of a CLIP that was trained on pictures of all kinds
# How near a tower must come to its golden embedding. Towers that never loaded lie near 0; 8 bits cost a real one under 0.005.
GOLDEN_COSINE = {"fp32": 0.999, "int8": 0.99}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Triple = tuple[float, float, float]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Cosine = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]


class Preprocess(_Strict):
    """How a picture becomes the image tower's input. `mean` and `std` are of RGB in [0, 1]. `domain`: what pictures the CLIP knows."""

    image_size: int = Field(ge=16, le=1024)
    mean: Triple
    std: Triple
    context_length: int = Field(ge=4, le=1024)
    resize_mode: Literal["squash", "longest", "shortest"] = "squash"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    logit_scale: float = Field(default=100.0, gt=0, le=1000, allow_inf_nan=False)
    domain: str = Field(default=GENERAL, pattern=r"^[a-z][a-z0-9_-]{0,31}$")


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


class TowerParity(_Strict):
    """Cosines of a tower's embeddings with those of its reference, one an input, and the least that was allowed."""

    reference: str
    backend: str
    precision: Literal["fp32", "int8"]
    bound_cosine: float = Field(ge=0.98, le=1, allow_inf_nan=False)
    cosines: tuple[Cosine, ...] = Field(min_length=2)


class ClipManifest(_Strict):
    """`clip.json`. `source_sha256`: of the weights file that was exported; `files`: every other file of the folder with its sha256."""

    format_version: Literal[1]
    name: str = Field(min_length=1, max_length=200)
    created_with: str
    source_sha256: Sha256
    files: dict[str, Sha256] = Field(min_length=4)
    image: TowerParity
    text: TowerParity


def read_preprocess(folder: Path) -> Preprocess:
    """The CLIP folder's `preprocess.json`. Raises `SafetyUnavailable`."""
    return read_json(folder, "preprocess.json", Preprocess)


def read_golden(folder: Path) -> Golden:
    """The CLIP folder's `golden.json`. Raises `SafetyUnavailable`."""
    return read_json(folder, "golden.json", Golden)


def read_manifest(folder: Path) -> ClipManifest:
    """The `clip.json` of an exported folder, with its parity kept and every file there, listed, and of its sha256.

    Raises `SafetyUnavailable`: weights that nobody hashed, or that are not within their bound, do not score.
    """
    manifest = read_json(folder, MANIFEST, ClipManifest)
    for tower, parity in (("image", manifest.image), ("text", manifest.text)):
        worst = min(parity.cosines)
        require(worst >= parity.bound_cosine, f"the CLIP {tower} tower is off its reference: cosine {worst:.4f} < {parity.bound_cosine}")
    there = {path.name for path in folder.iterdir() if path.name != MANIFEST}
    strangers = sorted(there - set(manifest.files))
    require(not strangers, f"{MANIFEST} lists no {strangers[0] if strangers else ''}: a file without a hash is not used")
    for name, sha256 in manifest.files.items():
        path = folder / name
        require("/" not in name and "\\" not in name and path.is_file(), f"the CLIP folder lacks {name[:80]}")
        with fail_closed(f"clip: {name}"), path.open("rb") as stream:
            require(hashlib.file_digest(stream, "sha256").hexdigest() == sha256, f"{name} is not the file that {MANIFEST} lists")
    return manifest


def files_sha256(files: Mapping[str, str]) -> str:
    """One hash of several files: sha256 over the lines `<sha256>  <name>`, sorted by name."""
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in sorted(files.items())).encode()).hexdigest()


_M = TypeVar("_M", bound=BaseModel)


def read_json(folder: Path, name: str, model: type[_M]) -> _M:
    """The JSON file, checked. Raises `SafetyUnavailable` where it is missing or says anything else than it should."""
    path = folder / name
    require(path.is_file(), f"the folder {folder.name} lacks {name}")
    with fail_closed(f"{folder.name}: {name}"):
        return model.model_validate_json(path.read_bytes())
