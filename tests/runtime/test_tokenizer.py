"""The tokenizer against transformers' on a vocabulary made here, and what it says about text that does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from platemark.errors import BundleError
from platemark.runtime.tokenizer import Tokenizer

TEXTS = [
    "a red apple",
    "A  Red\n\tAPPLE!",
    "it's the cat's; they've 1234 dogs, don't they?",
    "naïve café Ünïcode ÅNGSTRÖM e\u0301",
    "日本語 テキスト",
    "😀 smile 👍🏽 (weights:1.3) [x]",
    "",
    " ",
    "a <|endoftext|> b",
    "<|startoftext|>cat",
    "what!? no...",
    "\u200bzero\u00a0width",
    "a red apple " * 20,
    "İstanbul ẞ ﬁ",
]


@pytest.fixture(params=["<|endoftext|>", "!"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, clip_vocabulary: Any) -> Path:
    clip_vocabulary(tmp_path, pad_token=request.param)
    return tmp_path


@pytest.mark.torch
@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_transformers(folder: Path, text: str) -> None:
    from transformers import CLIPTokenizer

    theirs = CLIPTokenizer.from_pretrained(folder)(text, padding="max_length", max_length=16, truncation=True).input_ids
    assert Tokenizer.load(folder, 16).encode(text).ids.tolist() == theirs


@pytest.mark.torch
@pytest.mark.parametrize("text", TEXTS)
def test_ids_from_tokenizer_json_equal_transformers(folder: Path, tmp_path: Path, text: str) -> None:
    from transformers import CLIPTokenizer

    reference = CLIPTokenizer.from_pretrained(folder)
    reference.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.json").is_file()
    theirs = reference(text, padding="max_length", max_length=16, truncation=True).input_ids
    assert Tokenizer.load(tmp_path / "saved", 16).encode(text).ids.tolist() == theirs


def test_what_does_not_fit_is_reported(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder, 6)
    fits = tokenizer.encode("a red apple")
    assert (fits.cut, fits.cut_tokens) == ("", 0)
    cut = tokenizer.encode("A red apple and the Red Dog")
    assert cut.cut.endswith("the Red Dog")
    assert cut.cut_tokens > 0
    assert cut.ids.shape == (6,)
    assert cut.ids.dtype == np.int64
    assert cut.ids[-1] == fits.ids[4]  # both end with the end token


def test_padding_fills_with_the_pad_token(folder: Path) -> None:
    pad = json.loads((folder / "tokenizer_config.json").read_text())["pad_token"]
    ids = Tokenizer.load(folder, 12).encode("cat").ids
    assert ids[-1] == json.loads((folder / "vocab.json").read_text())[pad]


def test_batches_are_the_single_texts(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder, 10)
    batch = tokenizer.encode_batch(["a cat", "a red dog"])
    assert batch.shape == (2, 10)
    assert np.array_equal(batch[1], tokenizer.encode("a red dog").ids)


@pytest.mark.parametrize("damage", ["missing", "vocab", "merges", "json", "no-special"])
def test_damaged_files_are_bundle_errors(tmp_path: Path, clip_vocabulary: Any, damage: str) -> None:
    clip_vocabulary(tmp_path)
    if damage == "missing":
        (tmp_path / "vocab.json").unlink()
    elif damage == "vocab":
        (tmp_path / "vocab.json").write_text("[1, 2")
    elif damage == "merges":
        (tmp_path / "merges.txt").write_text("#version: 0.2\nnothere neither\n")
    elif damage == "json":
        (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Magic"}}')
    else:
        (tmp_path / "tokenizer_config.json").write_text('{"pad_token": 5')
    with pytest.raises(BundleError) as caught:
        Tokenizer.load(tmp_path, 8)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=200))
def test_any_text_gives_ids_of_the_vocabulary(shared_vocabulary: Path, text: str) -> None:
    encoded = Tokenizer.load(shared_vocabulary, 12).encode(text.encode("utf-8", "ignore").decode())
    assert encoded.ids.shape == (12,)
    assert encoded.ids.min() >= 0
    assert (encoded.cut_tokens > 0) == bool(encoded.cut)
