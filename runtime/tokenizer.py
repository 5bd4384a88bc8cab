"""CLIP's tokenizer through the `tokenizers` library: prompts to padded token ids, and what did not fit.

Equal to transformers' `CLIPTokenizer` with `padding="max_length", truncation=True`. Knows nothing about text encoders.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from platemark.errors import BundleError

FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")  # all that `load` may open
_SPECIAL = {"unk_token": "<|endoftext|>", "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
# Radford et al. 2021: contractions, runs of letters, single digits, runs of anything else that is not a space.
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_REMEDY = "copy the bundle again, or rebuild it from a checkpoint with a CLIP tokenizer"


@dataclass(frozen=True)
class Tokens:
    """`ids`: int64 (max_tokens,). `cut`: the end of the text that did not fit, as it was written; `cut_tokens`: its number of tokens."""

    ids: NDArray[np.int64]
    cut: str
    cut_tokens: int


class Tokenizer:
    """Safe to share between threads: encoding changes nothing."""

    def __init__(self, tokenizer: Any, start: int, end: int, pad: int, max_tokens: int) -> None:
        self._tokenizer, self._start, self._end, self._pad = tokenizer, start, end, pad
        self.max_tokens = max_tokens

    @classmethod
    def load(cls, folder: Path, max_tokens: int) -> Tokenizer:
        """From `tokenizer.json`, else `vocab.json` and `merges.txt`. Raises `BundleError` where the files are missing or not CLIP's."""
        config = {**_json(folder / "special_tokens_map.json"), **_json(folder / "tokenizer_config.json")}
        special = {name: _token(config, name, default) for name, default in _SPECIAL.items()}
        with _Readable():
            tokenizer = _from_json(folder) if (folder / "tokenizer.json").is_file() else _from_vocabulary(folder, special)
        start, end, pad = (tokenizer.token_to_id(special[name]) for name in ("bos_token", "eos_token", "pad_token"))
        if start is None or end is None or pad is None:
            raise BundleError("the tokenizer lacks its start, end or pad token", _REMEDY)
        return cls(tokenizer, start, end, pad, max_tokens)

    def encode(self, text: str) -> Tokens:
        """Start token, the text's tokens as far as they fit, end token, padding."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        room = self.max_tokens - 2
        cut_tokens = max(0, len(encoding.ids) - room)
        return Tokens(self.frame(encoding.ids[:room]), text[encoding.offsets[room][0] :] if cut_tokens else "", cut_tokens)

    def frame(self, ids: Sequence[int]) -> NDArray[np.int64]:
        """At most `max_tokens - 2` ids between start and end token, padded: int64 (max_tokens,)."""
        framed = np.full(self.max_tokens, self._pad, dtype=np.int64)
        framed[: len(ids) + 2] = [self._start, *ids, self._end]
        return framed

    def pieces(self, text: str) -> tuple[list[int], list[int], list[int | None]]:
        """All tokens of the text, without start and end: their ids, where each begins in the text, and the number of its word."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, [start for start, _ in encoding.offsets], encoding.word_ids

    def encode_batch(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Ids (len(texts), max_tokens), int64: what a text network takes."""
        return np.stack([self.encode(text).ids for text in texts])


class _Readable:
    """Turns what reading a malformed file raises into `BundleError`: the tokenizers library raises plain `Exception` itself."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is Exception or isinstance(error, (OSError, ValueError, TypeError)):
            raise BundleError(f"the tokenizer cannot be read: {' '.join(str(error).split())[:120]}", _REMEDY) from error


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"tokenizer/{path.name} cannot be read", _REMEDY) from error
    return content if isinstance(content, dict) else {}


def _token(config: dict[str, Any], name: str, default: str) -> str:
    """A special token, which the files write as text or as `{"content": text, …}`."""
    value = config.get(name) or default
    return str(value["content"] if isinstance(value, dict) else value)


def _from_json(folder: Path) -> Any:
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.no_padding()
    backend.no_truncation()
    return backend


def _from_vocabulary(folder: Path, special: dict[str, str]) -> Any:
    """CLIP's rules around a vocabulary: NFC, one space for any run of spaces, lower case, words, then byte-level pair encoding."""
    from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import BPE

    vocabulary, merges = BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    rules = {"continuing_subword_prefix": "", "end_of_word_suffix": "</w>", "unk_token": special["unk_token"]}
    backend = Backend(BPE(vocabulary, merges, fuse_unk=False, **rules))
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in dict.fromkeys(special.values())])
    return backend
