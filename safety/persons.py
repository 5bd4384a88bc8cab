"""The names of real people that a prompt may hold: the built-in list and the policy's own. Names, not faces: knows no pictures."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.resources import files

from platemark.safety.lexicon import Entry, words_of
from platemark.safety.normalize import plain
from platemark.safety.policy_model import NamedPersons, Person

LABEL = "named_person"
_LANGUAGE = "names"


@cache
def base_persons() -> tuple[Person, ...]:
    """The people of `data/persons.txt`; read once, at first use."""
    text = files("platemark.safety").joinpath("data", "persons.txt").read_text(encoding="utf-8")
    rows = [line.partition(":") for line in text.splitlines() if line and line[0] != "#"]
    return tuple(Person(name=name, aliases=tuple(alias.strip() for alias in rest.split(",") if alias.strip())) for name, _, rest in rows)


@cache
def _base_entries() -> tuple[Entry, ...]:
    return tuple(_entries(base_persons()))


def person_entries(wanted: NamedPersons) -> list[Entry]:
    """The names and other spellings to look for; a hit's phrase is the person's name as the list has it."""
    return [*(_base_entries() if wanted.base_list else ()), *_entries(wanted.list)]


def _entries(persons: Iterable[Person]) -> Iterable[Entry]:
    for person in persons:
        for spelling in (person.name, *person.aliases):
            words = tuple(words_of(plain(spelling)))
            if words:
                yield Entry(words, LABEL, _LANGUAGE, person.name)
