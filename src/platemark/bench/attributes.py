"""Zero-shot: which value of an attribute a picture shows, by a CLIP's cosines with texts (Radford et al. 2021, section 3.1).

The CLIP's own biases and gaps are in every answer, and what a picture shows is not what anybody is. A CLIP that was trained on a named set
of things knows those names only: a group with any other text is unknown to it and is not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from platemark.bench.bias_data import Attributes
from platemark.safety.clip import ClipModel
from platemark.safety.detectors.clip_files import GENERAL

NONE = "none of these"


@dataclass(frozen=True)
class _Group:
    """`rows`: unit embeddings of `values`' texts, then of every other text; `member[i]`: the value of row i, -1 for none."""

    values: tuple[str, ...]
    rows: NDArray[np.float32]
    member: NDArray[np.int64]

    def shown(self, embedding: NDArray[np.float32]) -> str:
        value = int(self.member[int((self.rows @ embedding).argmax())])
        return self.values[value] if value >= 0 else NONE


class AttributeReader:
    """Reads pictures for every group that the CLIP knows. `unknown`: the others, each with the texts that it does not know."""

    def __init__(self, model: ClipModel, attributes: Attributes, vocabulary: Sequence[str]) -> None:
        """`vocabulary`: the names that the bundle was trained on, may be empty. Raises `SafetyUnavailable`."""
        self._model = model
        self.unknown = _unknown(attributes, vocabulary) if model.preprocess.domain != GENERAL else {}
        others = tuple(dict.fromkeys(vocabulary or attributes.neither))
        bank = model.embed_texts(others) if others else None
        self._names, self._bank = (others, bank) if vocabulary else ((), None)
        known = {name: values for name, values in attributes.groups.items() if name not in self.unknown}
        self._groups = {name: _group(model, values, others, bank) for name, values in known.items()}

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """The groups that are read, with their values and `NONE`."""
        return {name: (*group.values, NONE) for name, group in self._groups.items()}

    def read(self, image: NDArray[np.uint8]) -> tuple[dict[str, str], str | None]:
        """Group → the likeliest value, or `NONE`, for one picture, uint8 RGB (H, W, 3); and the likeliest of the vocabulary's names.

        A value is shown where one of its texts is the likeliest of all: of the group's, and of the vocabulary's or `neither`. The name is
        None where there is no vocabulary. Raises `SafetyUnavailable`.
        """
        embedding = self._model.embed_image(image)
        shown = {name: group.shown(embedding) for name, group in self._groups.items()}
        return shown, None if self._bank is None else self._names[int((self._bank @ embedding).argmax())]


def _group(model: ClipModel, values: dict[str, tuple[str, ...]], others: tuple[str, ...], bank: NDArray[np.float32] | None) -> _Group:
    texts = [text for some in values.values() for text in some]
    member = [place for place, some in enumerate(values.values()) for _ in some]
    own = {text.casefold() for text in texts}
    rest = [place for place, text in enumerate(others) if text.casefold() not in own]
    rows = model.embed_texts(texts)
    if bank is not None and rest:
        rows = np.concatenate([rows, bank[rest]])
    return _Group(tuple(values), rows, np.array(member + [-1] * len(rest), np.int64))


def _unknown(attributes: Attributes, vocabulary: Sequence[str]) -> dict[str, tuple[str, ...]]:
    names = {name.casefold() for name in vocabulary}
    strange = {
        name: tuple(text for some in values.values() for text in some if text.casefold() not in names)
        for name, values in attributes.groups.items()
    }
    return {name: texts for name, texts in strange.items() if texts}
