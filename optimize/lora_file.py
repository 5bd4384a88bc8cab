"""LoRA files (safetensors) as changes to weights, whatever program wrote them. Knows nothing about checkpoints.

Hu et al. 2021, equation 3: W + s · (α / r) · B A, r the rank, α the file's own scale (r where it names none). Read are the names of kohya's
trainer (`lora_unet_….lora_down.weight`, `.alpha`), of PEFT (`….lora_A.weight`, `base_layer`, α in the metadata), and of older diffusers
(`…processor.to_q_lora.down.weight`, `….lora_linear_layer.up.weight`), with LoCon's convolutions and their middle tensor.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from platemark.errors import CheckpointError
from platemark.optimize.weights import StoredTensor, read_float32, read_header, read_metadata

_ROLES = {"A": "down", "B": "up", "down": "down", "up": "up", "mid": "mid"}
_NAME = re.compile(
    r"\A(?P<module>.+?)(?:\.lora_(?P<kohya>down|up|mid)(?:\.\w+)?\.weight|\.lora_(?P<peft>[AB])(?:\.\w+)?\.weight"
    r"|[._]lora(?:_linear_layer)?\.(?P<old>down|up)\.weight|\.(?P<alpha>alpha))\Z"
)
_PREFIXES = ("base_model.model.", "base_model.")
_PARTS = {
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
}
_METADATA = "lora_adapter_metadata"  # where diffusers keeps PEFT's config
_MAX_RANK = 4096


@dataclass(frozen=True)
class Change:
    """What a file adds to one module: `module` is its dotted or underscored name within `part`, which is None where the file names none."""

    part: str | None
    module: str
    down: StoredTensor
    up: StoredTensor
    mid: StoredTensor | None
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def delta(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """(α / r) · B A in the weight's shape. Raises `CheckpointError` where it does not have that many elements."""
        down, up = read_float32(self.down), read_float32(self.up)
        outer = up.reshape(up.shape[0], -1)
        if self.mid is None:
            product = outer @ down.reshape(self.rank, -1)
        else:  # Tucker form: (r_up, r_down, kh, kw) between the two
            product = np.einsum("or,rskl,si->oikl", outer, read_float32(self.mid), down.reshape(self.rank, -1), optimize=True)
        if product.size != int(np.prod(shape)) or product.shape[0] != shape[0]:
            raise CheckpointError(
                f"the LoRA changes {self.module} as {list(product.shape)}, and the weight is {list(shape)}",
                "use a LoRA made for this family of checkpoints",
            )
        return np.asarray(product.reshape(shape) * np.float32(self.alpha / self.rank), np.float32)


def read_lora(path: Path) -> tuple[list[Change], list[str]]:
    """The file's changes, and the names of the tensors that are none. Raises `CheckpointError` (no safetensors, damaged, incomplete)."""
    if path.suffix.lower() != ".safetensors":
        raise CheckpointError(
            f"{path.name} is not a safetensors file", "convert it to safetensors: pickles can run code and are never opened"
        )
    modules: dict[str, dict[str, StoredTensor]] = {}
    other = []
    for name, tensor in read_header(path).items():
        found = _NAME.match(name)
        if found is None or not tensor.is_float:
            other.append(name)
        else:
            role = found["alpha"] or _ROLES[found["kohya"] or found["peft"] or found["old"]]
            modules.setdefault(found["module"], {})[role] = tensor
    alphas = _Alphas(read_metadata(path))
    return [_change(module, tensors, alphas) for module, tensors in modules.items()], other


def _change(name: str, tensors: dict[str, StoredTensor], alphas: _Alphas) -> Change:
    down, up = tensors.get("down"), tensors.get("up")
    if down is None or up is None:
        raise CheckpointError(
            f"the LoRA has {', '.join(sorted(tensors))} of {name[:80]!r} alone", "download the file again: it is not whole"
        )
    rank = down.shape[0] if down.shape else 0
    inner = tensors["mid"].shape[0] if "mid" in tensors else rank
    if not 1 <= rank <= _MAX_RANK or len(up.shape) < 2 or len(down.shape) < 2 or int(np.prod(up.shape[1:])) != inner:
        raise CheckpointError(f"the two halves of {name[:80]!r} in the LoRA do not fit together", "download the file again")
    alpha = float(read_float32(tensors["alpha"]).ravel()[0]) if "alpha" in tensors else alphas.of(name, rank)
    if not np.isfinite(alpha):
        raise CheckpointError(f"the LoRA's alpha of {name[:80]!r} is not a number", "download the file again")
    part, module = _place(name)
    return Change(part, module, down, up, tensors.get("mid"), alpha)


def _place(name: str) -> tuple[str | None, str]:
    """The part that a module belongs to, and its name there."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    part = None
    for prefix, named in _PARTS.items():
        if name.startswith(prefix):
            part, name = named, name.removeprefix(prefix)
            break
    return part, name.replace(".base_layer", "").replace(".processor.", ".").removesuffix(".base_layer")


class _Alphas:
    """PEFT's config as diffusers keeps it in the metadata: `unet.lora_alpha`, `unet.r`, `unet.alpha_pattern`, with or without the part."""

    def __init__(self, metadata: dict[str, str]) -> None:
        try:
            found = json.loads(metadata.get(_METADATA, "{}"))
        except ValueError:
            found = {}
        self._config: dict[str, Any] = found if isinstance(found, dict) else {}

    def of(self, name: str, rank: int) -> float:
        """α of a module that has no tensor for it: the config's, else the rank, which makes the scale 1."""
        part, module = _place(name)
        for prefix in (f"{part}.", "") if part else ("",):
            patterns = self._config.get(f"{prefix}alpha_pattern") or {}
            chosen = next((patterns[key] for key in patterns if module == key or module.endswith(f".{key}")), None)
            chosen = self._config.get(f"{prefix}lora_alpha") if chosen is None else chosen
            if isinstance(chosen, (int, float)) and not isinstance(chosen, bool):
                return float(chosen)
        return float(rank)
