"""Where the registry is: an explicit URL, else `$PLATEMARK_REGISTRY`, else `registry.toml` of the state folder, else SQLite in that folder.

A URL may hold a password, so nothing here shows one: messages name the server, the database and the user. Opens nothing.
"""

from __future__ import annotations

import json
import os
import stat
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from platemark.errors import InputError, MissingExtra
from platemark.provenance.home import read_state, write_secret

if TYPE_CHECKING:
    from sqlalchemy import URL

FILE = "registry.sqlite"
CONFIGURATION = "registry.toml"
VARIABLE = "PLATEMARK_REGISTRY"
_USAGE = "use postgresql://USER@HOST/DATABASE, or the path of an SQLite file"
_POSTGRES = ("postgresql", "postgres", "postgresql+psycopg")
_SECRET_OPTIONS = ("password", "sslpassword")


@dataclass(frozen=True)
class Location:
    """One database. `path` is the SQLite file, None for PostgreSQL; `shown` names it without any secret."""

    url: URL = field(repr=False)
    shown: str
    path: Path | None

    def scrub(self, text: str) -> str:
        """`text` without the URL's secrets, on one line of at most 300 characters."""
        for secret in _secrets(self.url):
            text = text.replace(secret, "***")
        return " ".join(text.split())[:300]


def configured(home: Path, url: str | None = None) -> str | None:
    """The URL or path that names the registry, as given; None where nothing does and the default file counts.

    Raises `InputError`: `registry.toml` cannot be used.
    """
    return url or os.environ.get(VARIABLE) or _from_file(home / CONFIGURATION)


def locate(home: Path, url: str | None = None) -> Location:
    """The registry of a state folder. Raises `InputError` (nothing that can be used) or `MissingExtra` (no PostgreSQL driver)."""
    named = configured(home, url)
    if named is None:
        return _sqlite(home / FILE)
    if "://" not in named:
        return _sqlite(Path(named).expanduser())
    return _parse(named)


def configure(home: Path, url: str | None) -> None:
    """Writes `registry.toml` (mode 0600), so that this state folder uses that database from now on; None removes it.

    Raises `InputError` where the URL cannot be used, `ProvenanceUnavailable` where the folder cannot be written.
    """
    if url is None:
        (home / CONFIGURATION).unlink(missing_ok=True)
        return
    located = locate(home, url)
    text = str(located.path.absolute()) if located.path else url
    write_secret(home / CONFIGURATION, f"url = {json.dumps(text)}\n".encode())


def _from_file(path: Path) -> str | None:
    data = read_state(path)
    if data is None:
        return None
    try:
        found = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{str(path)!r} is not a TOML file", 'write it as: url = "postgresql://USER@HOST/DATABASE"') from error
    if set(found) != {"url"} or not isinstance(found["url"], str) or not found["url"]:
        raise InputError(f"{str(path)!r} must have the one key 'url'", 'write it as: url = "postgresql://USER@HOST/DATABASE"')
    if os.name == "posix" and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO) and "@" in found["url"]:
        raise InputError(f"{str(path)!r} may hold a password and is open to other users", f"run `chmod 600 {path}`")
    return found["url"]


def _sqlite(path: Path) -> Location:
    from sqlalchemy import URL

    return Location(URL.create("sqlite", database=str(path)), str(path), path)


def _parse(named: str) -> Location:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    scheme = named.partition("://")[0]
    if scheme not in (*_POSTGRES, "sqlite"):
        raise InputError(f"the registry cannot be a {scheme[:20]!r} database", _USAGE)
    try:
        url = make_url(named)
    except (ArgumentError, ValueError):
        raise InputError("the registry's URL cannot be read", _USAGE) from None  # the cause's text holds the URL
    if scheme == "sqlite":
        if not url.database or url.database == ":memory:" or url.query:
            raise InputError("the registry needs a file", "use sqlite:///PATH, without options")
        return _sqlite(Path(url.database).expanduser())
    _require_driver()
    where = f"{url.host or 'local socket'}{f':{url.port}' if url.port else ''}"
    shown = f"postgresql://{f'{url.username}@' if url.username else ''}{where}/{url.database or ''}"
    return Location(url.set(drivername="postgresql+psycopg"), shown, None)


def _require_driver() -> None:
    try:
        import psycopg  # noqa: F401 - SQLAlchemy imports it by name
    except ImportError as error:
        raise MissingExtra("a registry in PostgreSQL", "postgres") from error


def _secrets(url: URL) -> list[str]:
    found = [str(url.password)] if url.password else []
    for name in _SECRET_OPTIONS:
        value = url.query.get(name, ())
        found += [value] if isinstance(value, str) else list(value)
    return [secret for secret in found if secret]
