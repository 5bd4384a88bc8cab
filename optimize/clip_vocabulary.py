"""CLIP's byte pair vocabulary (Radford et al. 2021), which open_clip carries, as the files that tokenizers read. Never uses the network."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from platemark.errors import CheckpointError
from platemark.optimize.staging import write_file

WORDS = 49408  # size of the vocabulary
START, END = "<|startoftext|>", "<|endoftext|>"
_BYTES = 256


def write_vocabulary(folder: Path, words: int = WORDS, *, pad: str | None = None, max_tokens: int = 77) -> None:
    """Writes `vocab.json` and `merges.txt`, and `tokenizer_config.json` where `pad`, the token that fills a prompt up, is given.

    `words` and `max_tokens` are what the text encoder has. Raises `CheckpointError` where it has another vocabulary than CLIP's.
    """
    if words != WORDS:
        raise CheckpointError(f"the text encoder knows {words} words, and CLIP's vocabulary has {WORDS}", "add the tokenizer's own files")
    merges, tokens = _read()
    write_file(folder / "vocab.json", json.dumps({token: place for place, token in enumerate(tokens)}, ensure_ascii=False).encode())
    write_file(folder / "merges.txt", ("#version: 0.2\n" + "\n".join(merges) + "\n").encode())
    if pad is not None:
        special = {"bos_token": START, "eos_token": END, "pad_token": pad, "unk_token": END}
        config = {"tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "model_max_length": max_tokens, **special}
        write_file(folder / "tokenizer_config.json", (json.dumps(config, indent=2) + "\n").encode())


def _read() -> tuple[list[str], list[str]]:
    """The merges, best first, and the tokens in their order."""
    from open_clip.tokenizer import bytes_to_unicode, default_bpe  # type: ignore[import-untyped]

    with gzip.open(default_bpe(), "rt", encoding="utf-8") as stream:
        merges = stream.read().split("\n")[1 : WORDS - 2 * _BYTES - 2 + 1]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge.split()) for merge in merges), START, END]
    return merges, tokens
