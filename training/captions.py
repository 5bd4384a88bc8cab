"""Captions of the glyphs (names, aliases, templates, colour words) and the CLIP-style BPE tokenizer trained on them.

Knows nothing about pictures but their main colour, and nothing about models.
"""

from __future__ import annotations

import colorsys
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from training.glyphs import Glyph

MAX_TOKENS = 32
VOCABULARY = 2048
START, END = "<|startoftext|>", "<|endoftext|>"
# CLIP's own splitting rule (Radford et al. 2021): special tokens, contractions, words, single digits, other runs.
SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
TEMPLATES = (
    "a {}", "the {}", "a photo of a {}", "a photo of the {}", "a picture of a {}", "a picture of {}", "an emoji of a {}", "{} emoji",
    "a drawing of a {}", "an icon of a {}", "an illustration of a {}", "a small {}", "a cute {}", "one {}", "{} on a white background",
    "a simple {}", "an image of {}", "please draw a {}", "{} icon",
)  # fmt: skip
COLOUR_TEMPLATES = ("{colour} {}", "a {colour} {}", "a photo of a {colour} {}", "a picture of a {colour} {}", "a small {colour} {}")
EXTRA_WORDS = (
    "cup tea coffee car truck house home building tree flower plant animal bird fish food fruit vegetable drink tool weapon knife sword "
    "gun vehicle boat ship plane train bike street city night day morning evening sky sea ocean lake river forest field garden snow rain "
    "storm wind summer winter spring autumn happy sad angry funny big large little tiny huge old new young bright dark colourful colorful "
    "beautiful nice pretty shiny wooden metal golden silver round square long short hot cold fresh ripe sweet person man woman child "
    "sitting standing running flying swimming eating sleeping playing with without and or in on under over behind near next to of "
    "from for by at his her its my your two three four five many some digital art painting watercolor sketch cartoon style realistic high "
    "quality detailed white background black red orange yellow green blue purple pink brown grey gray"
)


def main_colour(image: NDArray[np.uint8]) -> str:
    """The name of the commonest colour among the picture's own (not white) pixels; image uint8 (S, S, 3)."""
    pixels = image.reshape(-1, 3)
    inked = pixels[(pixels < 245).any(axis=1)][::7]
    return Counter(_colour_word(*(int(v) for v in rgb)) for rgb in inked).most_common(1)[0][0] if len(inked) else "white"


def _colour_word(r: int, g: int, b: int) -> str:
    hue, light, saturation = colorsys.rgb_to_hls(r / 255, g / 255, b / 255)
    degrees = hue * 360
    if light < 0.14:
        return "black"
    if light > 0.92:
        return "white"
    if saturation < 0.16:
        return "gray"
    if 10 <= degrees < 48 and light < 0.45:
        return "brown"
    for limit, word in ((14, "red"), (40, "orange"), (66, "yellow"), (165, "green"), (255, "blue"), (292, "purple"), (342, "pink")):
        if degrees < limit:
            return word
    return "red"


def usable_aliases(glyph: Glyph) -> list[str]:
    """Aliases that read as words, without counters ("rabbit2") and single letters."""
    return [a for a in glyph.aliases if re.fullmatch(r"[a-z' ]{3,}", a)]


def article(text: str) -> str:
    """ "a apple" → "an apple" throughout."""
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def caption(glyph: Glyph, colour: str, rng: np.random.Generator) -> str:
    """One caption: half the time the plain name, else an alias, a template, or a colour in front."""
    draw = rng.random()
    if draw < 0.5:
        return glyph.name
    aliases = usable_aliases(glyph)
    subject = aliases[rng.integers(len(aliases))] if aliases and rng.random() < 0.3 else glyph.name
    if draw < 0.58:
        return subject
    if draw < 0.70 and colour not in subject:
        return article(COLOUR_TEMPLATES[rng.integers(len(COLOUR_TEMPLATES))].format(subject, colour=colour))
    return article(TEMPLATES[rng.integers(len(TEMPLATES))].format(subject))


def corpus(glyphs: list[Glyph]) -> list[str]:
    lines = [glyph.name for glyph in glyphs] * 3 + [a for glyph in glyphs for a in usable_aliases(glyph)]
    return lines + [t.format("", colour="") for t in TEMPLATES + COLOUR_TEMPLATES] * 20 + EXTRA_WORDS.split() * 3


def train_tokenizer(glyphs: list[Glyph], out: Path) -> None:
    """Writes `vocab.json`, `merges.txt` and `tokenizer_config.json` as `transformers.CLIPTokenizer` reads them.

    Ids follow CLIP: 256 bytes, 256 bytes that end a word, merges, start, end; end is also the padding, and the highest id.
    """
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=alphabet, end_of_word_suffix="</w>", min_frequency=2, show_progress=False
    )
    bpe.train_from_iterator(corpus(glyphs), trainer)
    merges = [tuple(m) if not isinstance(m, str) else tuple(m.split(" ")) for m in json.loads(bpe.to_str())["model"]["merges"]]
    base = alphabet + [symbol + "</w>" for symbol in alphabet]
    merges = merges[: VOCABULARY - len(base) - 2]
    tokens = [*base, *("".join(m) for m in merges), START, END]
    out.mkdir(parents=True, exist_ok=True)
    (out / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False), encoding="utf-8")
    (out / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n", encoding="utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer", "bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END,
        "model_max_length": MAX_TOKENS, "do_lower_case": True, "errors": "replace", "add_prefix_space": False,
    }  # fmt: skip
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
