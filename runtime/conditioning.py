"""What a request's UNet is told besides the latents and the time: the texts, and what its family adds to them, as rows by input name.

Row 0 is the negative prompt where there is classifier-free guidance, the last row the prompt. Knows nothing about samplers or pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from platemark.runtime.bundle import Bundle
from platemark.runtime.engine import Engine
from platemark.runtime.family import TextPart, load_family
from platemark.runtime.manifest import Manifest
from platemark.runtime.prompts import MAX_CHUNKS, Encode, EncodedPrompt, Hidden, PromptEncoder
from platemark.runtime.request import GenerationRequest
from platemark.runtime.sizes import RenderSize
from platemark.runtime.tokenizer import FILES as TOKENIZER_FILES
from platemark.runtime.tokenizer import Tokenizer

Float = NDArray[np.float32]
Rows = dict[str, Float]


@dataclass(frozen=True)
class Truncation:
    """The end of a text that the text encoder cannot take: as it was written, and its number of tokens."""

    field: str  # "prompt" or "negative_prompt"
    text: str
    tokens: int


def guided(manifest: Manifest, request: GenerationRequest) -> bool:
    """Whether the request renders with classifier-free guidance, without which a negative prompt has no place."""
    return request.guidance_scale > 1.0 and not manifest.conditioning.guidance_embedding


class Conditioner:
    """One bundle's text encoders, and the rest of what its UNet reads. Safe to share between threads."""

    def __init__(self, bundle: Bundle, engine: Callable[[str], Engine]) -> None:
        """`engine(component)` gives the engine of a text encoder."""
        self._manifest, self._family = bundle.manifest, load_family(bundle.manifest.family)
        self._encoders = [_encoder(bundle, part, engine) for part in self._family.texts]

    @property
    def components(self) -> tuple[str, ...]:
        """The text encoders."""
        return tuple(part.component for part in self._family.texts)

    def rows(self, request: GenerationRequest, size: RenderSize, max_chunks: int = MAX_CHUNKS) -> tuple[Rows, tuple[Truncation, ...]]:
        """The UNet's inputs by name, one row or two, and what of the texts did not fit."""
        texts = {"negative_prompt": request.negative_prompt} if guided(self._manifest, request) else {}
        texts["prompt"] = request.prompt
        rows, encoded = self._texts(list(texts.values()), max_chunks)
        if len(texts) == 2 and self._manifest.conditioning.empty_negative_is_zero and not request.negative_prompt.strip():
            for values in rows.values():
                values[0] = 0
        cut = tuple(Truncation(field, one.cut, one.cut_tokens) for field, one in zip(texts, encoded, strict=True) if one.cut_tokens)
        return rows | self._added(len(texts), request.guidance_scale, size), cut

    def blank(self, size: RenderSize) -> Rows:
        """As `rows`, one row of the empty text."""
        return self._texts([""], MAX_CHUNKS)[0] | self._added(1, 1.0, size)

    def _texts(self, texts: list[str], max_chunks: int) -> tuple[Rows, list[EncodedPrompt]]:
        """The texts' rows, all as long as the longest, and each text by itself as the first encoder read it."""
        each = [[encoder.encode(text, max_chunks) for text in texts] for encoder in self._encoders]
        tokens = max(len(one.hidden) for encoded in each for one in encoded)
        filled = [
            np.stack([encoder.filled(one.hidden, tokens) for one in encoded]) for encoder, encoded in zip(self._encoders, each, strict=True)
        ]
        rows = {"encoder_hidden_states": np.concatenate(filled, axis=-1)}
        pooled = [one.pooled for one in each[-1] if one.pooled is not None]
        return (rows | {"text_embeds": np.stack(pooled)} if pooled else rows), each[0]

    def _added(self, count: int, guidance_scale: float, size: RenderSize) -> Rows:
        added: Rows = {}
        if self._family.reads_sizes:  # original size, corner of the cut, target size: Podell et al. 2023, section 2.2
            sides = (size.height, size.width)
            added["time_ids"] = np.tile(np.array([*sides, 0, 0, *sides], np.float32), (count, 1))
        if width := self._manifest.conditioning.guidance_embedding:
            added["timestep_cond"] = np.tile(guidance_embedding(guidance_scale - 1.0, width), (count, 1))
        return added


def guidance_embedding(scale: float, width: int) -> Float:
    """The scale w as a vector (width,): sines, then cosines, of 1000 w at frequencies from 1 down to 1/10000 (Luo et al. 2023, "Latent
    Consistency Models", appendix; the sinusoids of Vaswani et al. 2017)."""
    half = width // 2
    frequencies = np.exp(np.arange(half, dtype=np.float32) * np.float32(-math.log(10000.0) / (half - 1)))
    angles = np.float32(scale) * np.float32(1000.0) * frequencies
    values = np.zeros(width, np.float32)
    values[:half], values[half : 2 * half] = np.sin(angles), np.cos(angles)
    return values


def _encoder(bundle: Bundle, part: TextPart, engine: Callable[[str], Engine]) -> PromptEncoder:
    def encode(ids: NDArray[np.int64]) -> tuple[Hidden, Hidden | None]:
        outputs: Mapping[str, Float] = engine(part.component).run({"input_ids": ids})
        return outputs["last_hidden_state"], outputs["text_embeds"] if part.pooled else None

    checked: Encode = encode
    tokenizer = Tokenizer.load(bundle.folder(part.tokenizer, TOKENIZER_FILES), bundle.manifest.max_tokens)
    return PromptEncoder(tokenizer, checked)
