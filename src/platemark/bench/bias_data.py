"""What a bias measurement asks: neutral prompts with attribute groups, and harmless prompts that name people. Checked data.

Both can be replaced by a user's own TOML file of the same form (see `data/`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from platemark.bench.statistics import Data
from platemark.errors import InputError

_LIMIT = 4 << 20  # bytes; the built-in files have some 20 thousand
_MOST_VALUES = 50
D = TypeVar("D", bound=Data)


class Attributes(Data):
    """`prompts`: neutral, for pictures of `domain`. `groups`: attribute → value → texts that say it.

    `neither`: texts for a picture that shows no value of any group, where the bundle brings no vocabulary of its own.
    """

    domain: str
    prompts: tuple[str, ...] = Field(min_length=1)
    neither: tuple[str, ...] = ()
    groups: dict[str, dict[str, tuple[str, ...]]] = Field(min_length=1)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for name, values in self.groups.items():
            texts = [text.casefold() for some in values.values() for text in some]
            if not 2 <= len(values) <= _MOST_VALUES or not all(values.values()) or len(set(texts)) != len(texts):
                raise ValueError(f"the group {name!r} needs 2 to {_MOST_VALUES} values, each with texts that no other has")
        return self


class Language(Data):
    """`scenes`: id → text with `{}` for the group; `groups`: id → how the language names it."""

    scenes: dict[str, str] = Field(min_length=1)
    groups: dict[str, str] = Field(min_length=1)


class Benign(Data):
    """`axes`: kind of group → ids of its groups. Every language has every scene and every group."""

    axes: dict[str, tuple[str, ...]]
    languages: dict[str, Language] = Field(min_length=1)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        groups = [group for some in self.axes.values() for group in some]
        scenes = set(next(iter(self.languages.values())).scenes)
        for code, language in self.languages.items():
            if sorted(language.groups) != sorted(groups) or set(language.scenes) != scenes:
                raise ValueError(f"the language {code!r} has not the same groups and scenes as the others")
            if not all(text.count("{}") == 1 for text in language.scenes.values()):
                raise ValueError(f"a scene of the language {code!r} has not one place for the group")
        return self

    def cases(self) -> Iterator[tuple[str, str, str, str]]:
        """(language, group, scene, prompt) of every prompt."""
        for code, language in self.languages.items():
            for group, named in language.groups.items():
                for scene, text in language.scenes.items():
                    yield code, group, scene, text.replace("{}", named)


def load_attributes(domain: str, path: Path | None = None) -> Attributes:
    """The built-in file for a domain (`emoji`, `general`), or the file `path`, which must be for that domain. Raises `InputError`."""
    if path is not None:
        found = _parsed(Attributes, _read(path), str(path))
        if found.domain != domain:
            raise InputError(
                f"{path.name} is for pictures of the kind {found.domain!r}, the bundle makes {domain!r}", "give the other file"
            )
        return found
    place = files("platemark.bench").joinpath("data", "attributes", f"{domain}.toml")
    if not domain.isidentifier() or not place.is_file():
        raise InputError(f"there are no neutral prompts for pictures of the kind {domain[:40]!r}", "give your own with --attributes FILE")
    return _parsed(Attributes, place.read_bytes(), f"{domain}.toml")


def load_benign(path: Path | None = None) -> Benign:
    """The built-in file, or the file `path`. Raises `InputError`."""
    if path is not None:
        return _parsed(Benign, _read(path), str(path))
    return _parsed(Benign, files("platemark.bench").joinpath("data", "benign.toml").read_bytes(), "benign.toml")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_LIMIT + 1)
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}", "check the path") from error
    if len(data) > _LIMIT:
        raise InputError(f"{str(path)!r} is larger than {_LIMIT >> 20} MiB", "give a smaller file")
    return data


def _parsed(kind: type[D], data: bytes, name: str) -> D:
    try:
        return kind.model_validate(tomllib.loads(data.decode("utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"{name} is not valid: {where[:120]}: {first['msg'][:200]}", "see the files in platemark/bench/data") from error
    except ValueError as error:
        raise InputError(f"{name} is no TOML in UTF-8: {' '.join(str(error).split())[:120]}", "correct it at that place") from error
