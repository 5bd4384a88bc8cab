"""Near perceptual hashes: an index over the sixteen 16-bit words of a 256-bit hash.

Two hashes that differ in at most 31 bits differ in at most one bit in one of their words (31 < 2·16), so the candidates are the records
that share, at some place, a word within one bit (multi-index hashing: Norouzi, Punjani, Fleet, "Fast Search in Hamming Space with
Multi-Index Hashing", CVPR 2012). Distances are then counted exactly. Beyond 47 bits every record is compared. Knows nothing of pictures.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from platemark.errors import InputError

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection, Select

WORDS, WORD_BITS = 16, 16
_AT_ONCE = 50_000  # candidates held in memory
_DIGITS = WORDS * WORD_BITS // 4
_MAX_RADIUS = 2  # bits of one word: three would ask for more words than comparing everything costs


def slots(perceptual_hash: str) -> list[int]:
    """The sixteen places of a hash in the index: the word's number, then its bits."""
    return [(place << WORD_BITS) | word for place, word in enumerate(_words(perceptual_hash))]


def index_rows(issuer: int, content_id: int, perceptual_hash: str) -> list[dict[str, Any]]:
    """The rows by which a record is found."""
    whole = bytes.fromhex(perceptual_hash)
    return [{"slot": slot, "issuer": issuer, "content_id": content_id, "hash": whole} for slot in slots(perceptual_hash)]


def nearest(
    connection: Connection, perceptual_hash: str, max_distance: int, where: Sequence[ColumnElement[bool]] = ()
) -> list[tuple[int, int, int]]:
    """(distance, issuer, content id) of the records within `max_distance` bits for which the conditions hold, nearest first."""
    radius = max_distance // WORDS
    chosen = _candidates(perceptual_hash, radius, where) if radius <= _MAX_RADIUS else _everything(where)
    found = []
    for rows in connection.execution_options(stream_results=True).execute(chosen).partitions(_AT_ONCE):
        distances = _distances([row.hash for row in rows], perceptual_hash)
        found += [(int(distances[i]), rows[i].issuer, rows[i].content_id) for i in np.flatnonzero(distances <= max_distance).tolist()]
    return sorted(found)


def check_hash(perceptual_hash: str) -> str:
    """The hash in lower case. Raises `InputError` unless it is 64 hex digits."""
    text = perceptual_hash.strip().lower()
    if len(text) != _DIGITS or not all(char in "0123456789abcdef" for char in text):
        raise InputError("a perceptual hash has 64 hex digits", "give the PDQ hash, or the picture itself")
    return text


def _candidates(perceptual_hash: str, radius: int, where: Sequence[ColumnElement[bool]]) -> Select[Any]:
    """Records that share a word of the hash but for `radius` bits."""
    from platemark.provenance.tables import HASH_WORDS

    wanted = [slot ^ change for slot in slots(perceptual_hash) for change in _changes(radius)]
    return _index(where).where(HASH_WORDS.c.slot.in_(wanted)).distinct()


def _everything(where: Sequence[ColumnElement[bool]]) -> Select[Any]:
    """All records: each is in the index once for its first word."""
    from platemark.provenance.tables import HASH_WORDS

    return _index(where).where(HASH_WORDS.c.slot < 1 << WORD_BITS)


def _index(where: Sequence[ColumnElement[bool]]) -> Select[Any]:
    """Rows of the index, of records for which the conditions hold."""
    import sqlalchemy as sa

    from platemark.provenance.tables import HASH_WORDS, RECORDS

    query = sa.select(HASH_WORDS.c.issuer, HASH_WORDS.c.content_id, HASH_WORDS.c.hash)
    if not where:
        return query
    same = sa.and_(RECORDS.c.issuer == HASH_WORDS.c.issuer, RECORDS.c.content_id == HASH_WORDS.c.content_id)
    return query.join(RECORDS, same).where(*where)


def _changes(radius: int) -> list[int]:
    """Every word with at most `radius` bits set."""
    bits = [1 << bit for bit in range(WORD_BITS)]
    return [sum(chosen) for count in range(radius + 1) for chosen in itertools.combinations(bits, count)]


def _words(perceptual_hash: str) -> list[int]:
    return [int(perceptual_hash[i : i + WORD_BITS // 4], 16) for i in range(0, _DIGITS, WORD_BITS // 4)]


def _distances(hashes: Sequence[bytes], query: str) -> NDArray[np.int64]:
    """Bits by which each hash (32 bytes) differs from `query` (n,)."""
    stored = np.frombuffer(b"".join(hashes), dtype=np.uint64).reshape(-1, 4)
    asked = np.frombuffer(bytes.fromhex(query), dtype=np.uint64)
    counts: NDArray[np.int64] = np.bitwise_count(stored ^ asked).sum(axis=1, dtype=np.int64)
    return counts
