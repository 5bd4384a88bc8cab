"""Prompts to what the UNet attends to: weights, chunks for long texts, and a bounded cache. Knows nothing about guidance or requests.

A text longer than the encoder's window is encoded in chunks of that window, each between its own start and end token, and the UNet
attends to all of them, as Stable Diffusion web UIs do it. A weight w moves a token's vector to z∅ + w (z − z∅), where z∅ is the vector at
that place of the empty text, so that 1 changes nothing and 0 takes the word's meaning away.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from platemark.runtime.prompt_grammar import Segment, parse
from platemark.runtime.tokenizer import Tokenizer

MAX_CHUNKS = 32
CACHE_BYTES = 64 << 20
_LOOK_BACK = 20  # tokens that a chunk may leave empty so as not to part a word

Hidden = NDArray[np.float32]
Encode = Callable[[NDArray[np.int64]], tuple[Hidden, Hidden | None]]


@dataclass(frozen=True)
class EncodedPrompt:
    """`hidden`: float32 (tokens, dim), read-only, whole chunks long. `pooled`: the first chunk as one vector (dim,), where the encoder
    makes one. `cut`: the end of the text that found no room, of `cut_tokens`."""

    hidden: Hidden
    pooled: Hidden | None
    cut: str
    cut_tokens: int


@dataclass(frozen=True)
class _Token:
    id: int
    weight: float
    starts_word: bool
    rest: Callable[[], str]  # the text from here on


class PromptEncoder:
    """One bundle's text encoder. Safe to share between threads. Each text is encoded by itself, so its vectors never depend on others."""

    def __init__(self, tokenizer: Tokenizer, encode: Encode, *, cache_bytes: int = CACHE_BYTES) -> None:
        """`encode`: ids (chunks, max_tokens) to hidden states (chunks, max_tokens, dim), and one vector a chunk (chunks, dim) or None."""
        self._tokenizer = tokenizer
        self._encode = encode
        self._cache = _Cache(cache_bytes)

    def encode(self, text: str, max_chunks: int = MAX_CHUNKS) -> EncodedPrompt:
        """The text as `parse` reads it, in as many chunks as it needs, up to `max_chunks`. Raises `InputError` as `parse` does."""
        key = f"{max_chunks} {text}"
        found = self._cache.get(key)
        return found if found is not None else self._cache.put(key, self._encoded(text, max_chunks))

    def filled(self, hidden: Hidden, tokens: int) -> Hidden:
        """Hidden states as long as `tokens`, filled up with chunks that say nothing."""
        if len(hidden) == tokens:
            return hidden
        empty = self.encode("").hidden
        return np.concatenate([hidden] + [empty] * ((tokens - len(hidden)) // len(empty)))

    def _encoded(self, text: str, max_chunks: int) -> EncodedPrompt:
        chunks = _chunks(list(self._tokens(parse(text))), self._tokenizer.max_tokens - 2)
        kept, cut = chunks[:max_chunks], chunks[max_chunks:]
        ids = np.stack([self._tokenizer.frame([token.id for token in chunk]) for chunk in kept])
        hidden, pooled = self._encode(ids)
        hidden = hidden.astype(np.float32)
        weights = np.ones(hidden.shape[:2], np.float32)
        for row, chunk in zip(weights, kept, strict=True):
            row[1 : len(chunk) + 1] = [token.weight for token in chunk]
        if (weights != 1.0).any():
            empty = self.encode("").hidden
            hidden = empty + weights[..., np.newaxis] * (hidden - empty)
        flat = np.ascontiguousarray(hidden.reshape(-1, hidden.shape[-1]))
        flat.setflags(write=False)
        whole = None if pooled is None else pooled[0].astype(np.float32)
        return EncodedPrompt(flat, whole, cut[0][0].rest() if cut else "", sum(map(len, cut)))

    def _tokens(self, segments: tuple[Segment, ...]) -> Iterator[_Token]:
        for place, segment in enumerate(segments):
            ids, starts, words = self._tokenizer.pieces(segment.text)
            for i, id_ in enumerate(ids):
                yield _Token(id_, segment.weight, i == 0 or words[i] != words[i - 1], _rest(segments, place, starts[i]))


class _Cache:
    """Least recently used texts go when the bytes held are more than allowed."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[str, EncodedPrompt] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, key: str) -> EncodedPrompt | None:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def put(self, key: str, value: EncodedPrompt) -> EncodedPrompt:
        """What is held under the key from now on: of two threads that encoded one text, both get the first one's."""
        with self._lock:
            kept = self._held.setdefault(key, value)
            if kept is value:
                self._bytes += _size(key, value)
            while self._bytes > self._max_bytes:
                self._bytes -= _size(*self._held.popitem(last=False))
            return kept


def _size(key: str, value: EncodedPrompt) -> int:
    return value.hidden.nbytes + (0 if value.pooled is None else value.pooled.nbytes) + 4 * (len(key) + len(value.cut))


def _rest(segments: tuple[Segment, ...], place: int, start: int) -> Callable[[], str]:
    return lambda: segments[place].text[start:] + "".join(segment.text for segment in segments[place + 1 :])


def _chunks(tokens: list[_Token], room: int) -> list[list[_Token]]:
    """The tokens in chunks of at most `room`, parted before a word where one starts near the end; at least one chunk."""
    chunks: list[list[_Token]] = []
    first = 0
    while len(tokens) - first > room:
        last = first + room
        near = range(last, max(first, last - _LOOK_BACK), -1)
        end = next((place for place in near if tokens[place].starts_word), last)
        chunks.append(tokens[first:end])
        first = end
    return [*chunks, tokens[first:]]
