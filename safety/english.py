"""Whether words are English, the one language that the sentence model was trained on. Cheap, and no language identification.

English words stand in the model's vocabulary whole; those of other languages are put together from pieces, or are the small words by which
a sentence shows its language. Knows no model: it is given the vocabulary. A single word that several languages have counts as English.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

LEAST = 0.55  # of 100 plain prompts of the development half 97 are above where they are English, and 1 where they are not
_FRENCH = "aux avec dans de des du elle est et la le les par pour qui sans sur un une"  # accents are gone in the plain form
_SPANISH = "al con del el las los para por su una uno y"
_GERMAN = "auf aus bei das dem den der des ein eine einem einen einer im ist mit ohne und von zu zum zur"
_PORTUGUESE = "com da das dos em na nas nos os um uma"
_ITALIAN = "che della di gli il lo nel nella"
_FOREIGN = frozenset(" ".join((_FRENCH, _SPANISH, _GERMAN, _PORTUGUESE, _ITALIAN)).split())


def english_share(words: Sequence[str], vocabulary: Container[str]) -> float:
    """In [-0.5, 1]: the share of the letters that stand in whole words of `vocabulary`, less half the share of words that are foreign.

    `words`: of a plain form; numbers do not count. 0 where there is no word.
    """
    spoken = [word for word in words if word.isalpha()]
    foreign = sum(word in _FOREIGN for word in spoken)
    known = sum(len(word) for word in spoken if word.isascii() and word in vocabulary and word not in _FOREIGN)
    return known / sum(map(len, spoken)) - foreign / (2 * len(spoken)) if spoken else 0.0
