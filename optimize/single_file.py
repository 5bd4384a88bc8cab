"""A checkpoint in one `.safetensors` file, as web UIs ship it, taken apart into the folder that diffusers would have saved.

SD 1.x, SD 2.x and SDXL in the tensor names of CompVis' latent-diffusion code. What the networks are is read from shapes
(`single_file_config`), what is called what from tables (`single_file_keys`); nothing is fetched, and no torch is needed. A file does not
say which tokenizer it was trained with: it is CLIP's, which open_clip carries. Knows nothing about graphs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platemark.errors import CheckpointError, InputError
from platemark.optimize import single_file_config as configs
from platemark.optimize import single_file_keys as keys
from platemark.optimize.clip_vocabulary import write_vocabulary
from platemark.optimize.single_file_family import (
    CLIP,
    OPEN_CLIP,
    PREDICTIONS,
    TRAINED,
    UNET,
    VAE,
    ZERO_SNR_MARK,
    Family,
    Tensors,
    family_of,
    index_of,
    pixels_of,
    prediction_of,
    scheduler_of,
)
from platemark.optimize.source_files import PICKLES
from platemark.optimize.staging import write_file
from platemark.optimize.tensor_writer import Piece, write_pieces
from platemark.optimize.weights import file_sha256, read_header, read_metadata
from platemark.runtime.manifest import Origin

SUFFIX = ".safetensors"
_EMA = "model_ema."

# Within the networks, but of no use to them: buffers, and what only training reads.
_SURPLUS = re.compile(r"\.(position_ids|logit_scale|attn_mask|text_projection(\.weight)?)$|^first_stage_model\.(loss|model_ema)\.")
# Beside the networks in nearly every file: the noise schedule, which the family says too, and what training counted.
_USUAL = re.compile(
    r"^((sqrt_|log_)?(one_minus_|recip_|recipm1_)?alphas_cumprod(_prev)?|betas|posterior_\w+|log(var|_one_minus_alphas_cumprod)|lvlb_weights"
    r"|sqrt_\w+|scale_factor|denoiser\.sigmas|global_step|model_ema\..*|v_pred|ztsnr)$"
)


@dataclass(frozen=True)
class Reading:
    """What a file leaves open. `prediction_type`: one of `PREDICTIONS`; None: what the file says, else epsilon, but for SD 2.x, whose two
    kinds have the same shapes. `ema`: take the averaged copy of the UNet's weights, where the file holds one. `origin`: where a folder
    came from, which says all of that itself.
    """

    prediction_type: str | None = None
    ema: bool = False
    origin: Origin | None = None


@dataclass(frozen=True)
class PartPlan:
    """One folder of the checkpoint to be: its config, and the tensors of its weights file."""

    config: dict[str, Any]
    pieces: tuple[Piece, ...]
    weights: str  # the file's name


@dataclass(frozen=True)
class SingleFile:
    """A file that was read and is whole. `ignored`: its tensors that belong to no network, by name."""

    path: Path
    family: Family
    index: dict[str, Any]  # model_index.json
    scheduler: dict[str, Any]
    parts: dict[str, PartPlan]
    tokenizers: dict[str, str]  # folder → pad token
    ignored: tuple[str, ...] = ()

    def origin(self) -> Origin:
        """What a bundle's manifest says of it: the whole file is read for its hash."""
        return Origin(kind="file", name=self.path.name, sha256=file_sha256(self.path), left_out=list(self.ignored))


def is_single_file(path: Path) -> bool:
    """Whether the path names one file and not a folder, by what is there or else by its suffix."""
    return path.is_file() or (not path.exists() and path.suffix.lower() in (SUFFIX, *PICKLES))


def read_single_file(path: Path, reading: Reading) -> SingleFile:
    """Reads the header, and says what is in the file. Writes nothing.

    Raises `CheckpointError` for a pickle, a damaged file, and one whose networks are missing, incomplete or of another family; the tensors
    are named. Raises `InputError` for what `reading` asks.
    """
    if path.suffix.lower() in PICKLES:
        raise CheckpointError(f"{path.name} is a pickle", "get it as .safetensors: pickles can run code and are never opened")
    if path.suffix.lower() != SUFFIX:
        raise CheckpointError(f"{path.name} is not a .safetensors file", "name a .safetensors file or a diffusers folder")
    if reading.prediction_type is not None and reading.prediction_type not in PREDICTIONS:
        raise InputError(f"there is no prediction type {reading.prediction_type[:30]!r}", f"choose one of {', '.join(PREDICTIONS)}")
    try:
        return plan(path, read_header(path), read_metadata(path), reading)
    except CheckpointError as error:
        said = error.message if error.message.startswith(path.name) else f"{path.name}: {error.message}"
        raise CheckpointError(said, error.remedy) from error


def plan(path: Path, tensors: Tensors, metadata: Mapping[str, str], reading: Reading) -> SingleFile:
    """`read_single_file` of tensors that are known already."""
    family = family_of(tensors)
    used: set[str] = set()
    unet, vae = _below(tensors, UNET), _below(tensors, VAE)
    prediction = reading.prediction_type or prediction_of(family, tensors, metadata)
    pixels = pixels_of(family, prediction, metadata)
    parts = {"unet": _unet(unet, pixels // 2 ** (len(configs.vae_layout(vae).channels) - 1), used)}
    if reading.ema:
        parts["unet"] = _averaged(parts["unet"], tensors, used)
    parts["vae"] = _vae(vae, family, pixels, used)
    parts |= _texts(family, tensors, used)
    _check_surplus(tensors, used)
    return SingleFile(
        path=path,
        family=family,
        index=index_of(family, parts["unet"].config),
        scheduler=scheduler_of(family, prediction, zero_snr=ZERO_SNR_MARK in tensors),
        parts=parts,
        tokenizers={"tokenizer": "!" if family == "sd2" else "<|endoftext|>", **({"tokenizer_2": "!"} if family == "sdxl" else {})},
        ignored=tuple(sorted(name for name in tensors if name not in used and not _SURPLUS.search(name) and not _USUAL.match(name))),
    )


def write_folder(single: SingleFile, folder: Path) -> None:
    """Writes the diffusers folder, every tensor at its stored precision. Raises `OSError`."""
    write_file(folder / "model_index.json", _json(single.index))
    write_file(folder / "scheduler" / "scheduler_config.json", _json(single.scheduler))
    for name, part in single.parts.items():
        write_file(folder / name / "config.json", _json(part.config))
        write_pieces(folder / name / part.weights, part.pieces)
    for name, pad in single.tokenizers.items():
        words = int(single.parts["text_encoder"].config["vocab_size"])
        write_vocabulary(folder / name, words, pad=pad, max_tokens=single.parts["text_encoder"].config["max_position_embeddings"])


def _below(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors of one network, by their names within it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _unet(tensors: Tensors, sample_size: int, used: set[str]) -> PartPlan:
    layout = configs.unet_layout(tensors)
    pieces = _pieces(keys.unet_names(layout), tensors, used)
    return PartPlan(configs.unet_config(tensors, layout, sample_size), pieces, "diffusion_pytorch_model.safetensors")


def _averaged(part: PartPlan, tensors: Tensors, used: set[str]) -> PartPlan:
    """The same network with the weights that training averaged, whose names have lost their dots."""
    found: list[Piece] = []
    for piece in part.pieces:
        name = _EMA + piece.source.name.removeprefix("model.").replace(".", "")
        if name not in tensors:
            raise CheckpointError(f"the averaged weight {name} is missing", "use the file that has its EMA weights, or leave --ema out")
        if tensors[name].shape != piece.source.shape:
            raise CheckpointError(f"the averaged weight {name} has shape {list(tensors[name].shape)}", "leave --ema out")
        found.append(Piece(piece.name, piece.shape, tensors[name]))
    return PartPlan(part.config, tuple(found), part.weights)


def _vae(tensors: Tensors, family: Family, pixels: int, used: set[str]) -> PartPlan:
    layout = configs.vae_layout(tensors)
    pieces = _pieces(keys.vae_names(layout), tensors, used)
    flat = tuple(_flattened(piece) if ".attentions." in piece.name else piece for piece in pieces)
    config = configs.vae_config(tensors, layout, TRAINED[family][1], pixels)
    if family == "sdxl":
        config["force_upcast"] = True
    return PartPlan(config, flat, "diffusion_pytorch_model.safetensors")


def _flattened(piece: Piece) -> Piece:
    """A 1×1 convolution as a matrix."""
    shape = piece.shape[:2] if piece.shape[2:] == (1, 1) else piece.shape
    return Piece(piece.name, shape, piece.source)


def _texts(family: Family, tensors: Tensors, used: set[str]) -> dict[str, PartPlan]:
    """`text_encoder`, and SDXL's `text_encoder_2`."""
    if family == "sd1":
        return {"text_encoder": _clip(tensors, CLIP[0], used)}
    if family == "sd2":
        return {"text_encoder": _open_clip(tensors, OPEN_CLIP[0], used, projection=False)}
    first, second = _clip(tensors, CLIP[1], used), _open_clip(tensors, OPEN_CLIP[1], used, projection=True)
    return {"text_encoder": first, "text_encoder_2": second}


def _clip(tensors: Tensors, prefix: str, used: set[str]) -> PartPlan:
    found = _below(tensors, prefix)
    if "text_model.final_layer_norm.weight" not in found and "final_layer_norm.weight" in found:
        found = {f"text_model.{name}": tensor for name, tensor in found.items()}  # as newer transformers save it
    config, layers = configs.clip_config(found)
    return PartPlan(config, _pieces(keys.clip_names(layers), found, used), "model.safetensors")


def _open_clip(tensors: Tensors, prefix: str, used: set[str], *, projection: bool) -> PartPlan:
    found = _below(tensors, prefix)
    config, layers = configs.open_clip_config(found, projection=projection)
    pieces = _pieces(keys.open_clip_names(layers, projection=projection), found, used)
    used |= {found[name].name for name in keys.open_clip_layer(layers) if name in found}  # SD 2.x reads the last layer but one
    return PartPlan(config, tuple(map(_taken_apart, pieces)), "model.safetensors")


def _taken_apart(piece: Piece) -> Piece:
    """One of the joined projections; the last projection as the transpose that a linear layer has."""
    shape = piece.shape
    for part, name in enumerate(keys.JOINED):
        if f".{name}." in piece.name:
            if shape[0] % len(keys.JOINED):
                raise CheckpointError(f"the tensor {piece.source.name} has shape {list(shape)}", "use the file as it was published")
            return Piece(piece.name, (shape[0] // len(keys.JOINED), *shape[1:]), piece.source, part, len(keys.JOINED))
    if piece.name == "text_projection.weight":
        return Piece(piece.name, shape[::-1], piece.source, transposed=True)
    return piece


def _pieces(names: keys.Names, tensors: Tensors, used: set[str]) -> tuple[Piece, ...]:
    """Whole tensors under diffusers' names. Raises `CheckpointError` naming those that are missing."""
    missing = sorted({theirs for theirs in names.values() if theirs not in tensors})
    if missing:
        raise CheckpointError(f"{_listed(missing)} {_are(missing)} missing", "use the file as it was published")
    used |= {tensors[theirs].name for theirs in names.values()}
    return tuple(Piece(ours, tensors[theirs].shape, tensors[theirs]) for ours, theirs in names.items())


def _check_surplus(tensors: Tensors, used: set[str]) -> None:
    """A tensor within a network that has no place in it means that the network is another one than was understood."""
    networks = (UNET, VAE, *CLIP, *OPEN_CLIP)
    surplus = sorted(name for name in tensors if name.startswith(networks) and name not in used and not _SURPLUS.search(name))
    if surplus:
        raise CheckpointError(
            f"{_listed(surplus)} {_are(surplus)} of no network that Platemark knows", "use an SD 1.x, SD 2.x or SDXL checkpoint"
        )


def _listed(names: Sequence[str], most: int = 3) -> str:
    word = "the tensor" if len(names) == 1 else f"{len(names)} tensors:"
    return f"{word} {', '.join(names[:most])}{', …' if len(names) > most else ''}"


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(dict(sorted(value.items())), indent=2) + "\n").encode()
