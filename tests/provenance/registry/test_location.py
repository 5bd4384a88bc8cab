"""Where the registry is, and that no password gets out."""

from __future__ import annotations

import logging
import stat
import traceback
from pathlib import Path
from typing import Any

import pytest

from platemark.errors import InputError, MissingExtra, ProvenanceUnavailable
from platemark.provenance.registry import FILE, Registry
from platemark.provenance.registry.location import CONFIGURATION, VARIABLE, configure, configured, locate

SECRET = "hunter2-péché"
URL = "postgresql://marker:hunter2-p%C3%A9ch%C3%A9@db.example:6543/marks?sslmode=require&sslpassword=keypass"


def test_the_order_of_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert configured(tmp_path) is None
    assert locate(tmp_path).path == tmp_path / FILE
    configure(tmp_path, str(tmp_path / "configured.sqlite"))
    assert locate(tmp_path).path == tmp_path / "configured.sqlite"
    monkeypatch.setenv(VARIABLE, f"sqlite:///{tmp_path}/environment.sqlite")
    assert locate(tmp_path).path == tmp_path / "environment.sqlite"
    assert locate(tmp_path, str(tmp_path / "explicit.sqlite")).path == tmp_path / "explicit.sqlite"
    monkeypatch.delenv(VARIABLE)
    configure(tmp_path, None)
    assert locate(tmp_path).path == tmp_path / FILE


def test_a_registry_elsewhere_is_made_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    assert not Registry.exists(home)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "else where" / "marks.db"))
    assert not Registry.exists(home)
    with Registry.open(home) as registry:
        first = registry.lease(5)
        assert registry.where.endswith("marks.db")
    with Registry.open(home) as registry:
        assert registry.lease(5) == first + 64
    assert not (home / FILE).exists()
    assert Registry.exists(home)
    monkeypatch.setenv(VARIABLE, URL)
    assert Registry.exists(home)  # or so it seems: nobody asked the server


def test_the_configuration_file_is_private(tmp_path: Path) -> None:
    configure(tmp_path, URL)
    file = tmp_path / CONFIGURATION
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert configured(tmp_path) == URL
    file.chmod(0o644)
    with pytest.raises(InputError, match="open to other users") as caught:
        locate(tmp_path)
    assert "chmod 600" in caught.value.remedy


@pytest.mark.parametrize("text", ["url =", "url = 3", 'url = ""', 'other = "x"', "", '\xff"'])
def test_a_configuration_that_cannot_be_used_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / CONFIGURATION).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"registry\.toml"):
        locate(tmp_path)


@pytest.mark.parametrize(
    "url",
    ["mysql://u:hunter2@h/d", "postgresql://u:hunter2@h:port/d", "sqlite://", "sqlite:///:memory:", "sqlite:///x?mode=ro", "://hunter2"],
)
def test_urls_that_cannot_be_used_are_refused_and_not_shown(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError) as caught:
        locate(tmp_path, url)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value)).replace(f"url = {url!r}", "")
    assert "postgresql://" in caught.value.remedy or "sqlite" in caught.value.remedy


def test_a_location_shows_no_secret(tmp_path: Path) -> None:
    location = locate(tmp_path, URL)
    assert location.shown == "postgresql://marker@db.example:6543/marks"
    assert SECRET not in repr(location)
    assert "keypass" not in repr(location)
    assert location.scrub(f"no\n{SECRET} keypass") == "no *** ***"
    assert locate(tmp_path, "postgres:///marks?host=/run/pg").shown == "postgresql://local socket/marks"


def test_without_a_driver_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(MissingExtra, match="'postgres'"):
        locate(tmp_path, URL)


@pytest.mark.service
@pytest.mark.parametrize("wrong", ["password", "database", "port"])
def test_failures_to_connect_show_no_password(postgres: Any, tmp_path: Path, wrong: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    url = postgres.create_database()
    if wrong == "password":
        url = url.replace(postgres.password, "not-the-password")
    url = url.replace(f":{postgres.port}/", ":1/") if wrong == "port" else f"{url}x" if wrong == "database" else url
    with pytest.raises(ProvenanceUnavailable) as caught:
        Registry.open(tmp_path, url)
    text = "".join(traceback.format_exception(caught.value, chain=True)) + caplog.text
    assert postgres.password not in text
    assert "not-the-password" not in text
    assert "\n" not in str(caught.value)
    assert f"127.0.0.1:{1 if wrong == 'port' else postgres.port}" in caught.value.message
    assert "start the server" in caught.value.remedy
