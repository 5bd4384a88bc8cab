"""Prompts to hidden states: chunks, weights, the cache and its bound."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from platemark.runtime.bundle import open_bundle
from platemark.runtime.prompts import PromptEncoder
from platemark.runtime.tokenizer import FILES, Tokenizer


class Counting:
    """A text encoder that tells every id apart by its place, pools to the first three ids, and counts its calls."""

    def __init__(self) -> None:
        self.seen: list[NDArray[np.int64]] = []

    def __call__(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        self.seen.append(ids)
        hidden = np.stack([ids, np.broadcast_to(np.arange(ids.shape[1]), ids.shape)], axis=-1)
        return hidden.astype(np.float32), ids[:, :3].astype(np.float32)


@pytest.fixture(scope="module")
def tokenizer(miniature: Path) -> Tokenizer:
    bundle = open_bundle(miniature)
    return Tokenizer.load(bundle.folder("tokenizer", FILES), bundle.manifest.max_tokens)


def test_a_text_that_fits_is_what_the_tokenizer_says(tokenizer: Tokenizer) -> None:
    encoded = PromptEncoder(tokenizer, Counting()).encode("the red cat")
    assert np.array_equal(encoded.hidden[:, 0], tokenizer.encode("the red cat").ids)
    assert (encoded.cut, encoded.cut_tokens) == ("", 0)


def test_chunks_hold_every_token_once_and_do_not_part_words(tokenizer: Tokenizer) -> None:
    text = "the red cat and a dog zebra " * 4
    network = Counting()
    PromptEncoder(tokenizer, network).encode(text)
    ids, _, words = tokenizer.pieces(text)
    start, end = tokenizer.frame([])[:2]
    rows = [row[1 : 1 + int(np.argmax(row[1:] == end))] for row in network.seen[0]]
    assert all(row[0] == start for row in network.seen[0])
    assert [token for row in rows for token in row] == ids
    ends = np.cumsum([len(row) for row in rows])[:-1]
    assert len(rows) > 2
    assert all(words[place] != words[place - 1] for place in ends)


def test_a_word_longer_than_the_window_is_parted(tokenizer: Tokenizer) -> None:
    network = Counting()
    word = "z" * 3 * tokenizer.max_tokens
    PromptEncoder(tokenizer, network).encode(word)
    assert len(network.seen[0]) >= 2


def test_what_finds_no_room_is_told(tokenizer: Tokenizer) -> None:
    encoded = PromptEncoder(tokenizer, Counting()).encode("cat " * 40 + "(dog:1.2)", 2)
    assert len(encoded.hidden) == 2 * tokenizer.max_tokens
    assert encoded.cut.endswith("dog")
    assert encoded.cut_tokens == 41 - 2 * (tokenizer.max_tokens - 2)


def test_weights_move_between_the_empty_text_and_beyond(tokenizer: Tokenizer) -> None:
    encoder = PromptEncoder(tokenizer, Counting())
    empty, plain = encoder.encode("").hidden, encoder.encode("cat").hidden
    assert np.array_equal(encoder.encode("(cat:0)").hidden, empty)
    assert np.allclose(encoder.encode("(cat:2)").hidden, empty + 2 * (plain - empty) * (np.arange(len(plain)) == 1)[:, None] + (
        plain - empty) * (np.arange(len(plain)) != 1)[:, None])  # fmt: skip
    assert np.array_equal(encoder.encode("(cat:1)").hidden, plain)


def test_shorter_texts_are_filled_up_with_chunks_that_say_nothing(tokenizer: Tokenizer) -> None:
    encoder = PromptEncoder(tokenizer, Counting())
    window, dog = tokenizer.max_tokens, encoder.encode("dog").hidden
    filled = encoder.filled(dog, 3 * window)
    assert np.array_equal(filled[:window], dog)
    assert np.array_equal(filled[window:], np.concatenate([encoder.encode("").hidden] * 2))
    assert encoder.filled(dog, window) is dog


def test_the_first_chunk_is_what_is_pooled(tokenizer: Tokenizer) -> None:
    text = "cat " * 25 + "(dog:1.4)"
    encoded = PromptEncoder(tokenizer, Counting()).encode(text)
    assert encoded.pooled is not None
    assert np.array_equal(encoded.pooled, tokenizer.encode(text).ids[:3])


def test_a_text_is_encoded_once_and_its_vectors_cannot_be_changed(tokenizer: Tokenizer) -> None:
    network = Counting()
    encoder = PromptEncoder(tokenizer, network)
    first = encoder.encode("cat")
    assert encoder.encode("cat") is first
    assert len(network.seen) == 1
    with pytest.raises(ValueError, match="read-only"):
        first.hidden[0, 0] = 1


def test_the_cache_forgets_the_least_recently_used(tokenizer: Tokenizer) -> None:
    network = Counting()
    one = PromptEncoder(tokenizer, network).encode("cat").hidden.nbytes
    encoder = PromptEncoder(tokenizer, network, cache_bytes=2 * one + 100)
    for text in ("cat", "dog", "cat", "red", "cat"):
        encoder.encode(text)
    made = len(network.seen)
    encoder.encode("cat")
    assert len(network.seen) == made
    encoder.encode("dog")
    assert len(network.seen) == made + 1


def test_no_cache_is_a_bound_of_nothing(tokenizer: Tokenizer) -> None:
    network = Counting()
    encoder = PromptEncoder(tokenizer, network, cache_bytes=0)
    assert np.array_equal(encoder.encode("cat").hidden, encoder.encode("cat").hidden)
    assert len(network.seen) == 2


def test_threads_share_it(tokenizer: Tokenizer) -> None:
    encoder = PromptEncoder(tokenizer, Counting(), cache_bytes=2000)
    texts = [f"{word} {other}" for word in ("cat", "dog", "red") for other in ("cat", "a", "the")]
    alone = [PromptEncoder(tokenizer, Counting()).encode(text).hidden for text in texts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(encoder.encode, texts * 10))
    assert all(np.array_equal(found.hidden, alone[k % len(texts)]) for k, found in enumerate(together))
