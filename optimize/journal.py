"""What a build has finished, kept in its stage, so that a killed build goes on where it was. Knows nothing about networks.

`.journal.json` in the stage; each entry names the files that it stands for with their SHA-256, and the key of everything that decided what
they are. An entry counts only where its key is asked for again and every file still has its hash; anything else is made anew.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from platemark.optimize.staging import replace_file
from platemark.optimize.weights import file_sha256

NAME = ".journal.json"
SCRATCH = ".work"  # recordings: in the stage, and never published


class Entry(BaseModel):
    """One finished piece. `files`: POSIX path in the stage → SHA-256, `scratch` those that are not published; `facts`: JSON types."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    files: dict[str, str]
    scratch: dict[str, str] = {}
    facts: dict[str, Any] = {}


class Journal:
    """The entries of one stage, by name. Read once; every `add` is on disk when it returns."""

    def __init__(self, stage: Path) -> None:
        self._stage = stage
        self._entries = _read(stage / NAME)

    def find(self, name: str, key: str) -> Entry | None:
        """The entry, where it was made from the same and its files are whole."""
        entry = self._entries.get(name)
        if entry is None or entry.key != key:
            return None
        return entry if all(self._is_whole(*file) for file in (entry.files | entry.scratch).items()) else None

    def add(self, name: str, key: str, files: list[str], scratch: list[str] | None = None, facts: dict[str, Any] | None = None) -> Entry:
        """Records a piece whose files lie in the stage."""
        entry = Entry(key=key, files=self._hashes(files), scratch=self._hashes(scratch or []), facts=facts or {})
        self._entries[name] = entry
        data = {name: entry.model_dump(mode="json") for name, entry in self._entries.items()}
        replace_file(self._stage / NAME, json.dumps(data).encode())
        return entry

    def _hashes(self, names: list[str]) -> dict[str, str]:
        return {name: file_sha256(self._stage / name) for name in names}

    def _is_whole(self, name: str, sha256: str) -> bool:
        path = self._stage / name
        return path.is_file() and file_sha256(path) == sha256


def key_of(*parts: Any) -> str:
    """One hash of JSON types, and of what has a `repr` that says everything."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()


def _read(path: Path) -> dict[str, Entry]:
    """Empty for a file that is missing or damaged: then everything is made anew."""
    try:
        found = json.loads(path.read_bytes())
        return {str(name): Entry.model_validate(entry) for name, entry in found.items()}
    except (OSError, ValueError, AttributeError, ValidationError):
        return {}
