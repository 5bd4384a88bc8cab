"""How commands speak: JSON on stdout where asked, else short text; errors in one line; progress on stderr, silent off a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON only on stdout.")


def spelled(backend: str | None) -> str | None:
    """A backend's name as its module has it: `tensorrt-rtx` → `tensorrt_rtx`."""
    return None if backend is None else backend.replace("-", "_")


def emit(value: Any) -> None:
    """One JSON value a line."""
    text = json.dumps(value, ensure_ascii=False, separators=(", ", ": "))
    # A file name that is no UTF-8 comes as lone surrogates, which no stream takes: JSON escapes them.
    click.echo(text if _encodable(text) else json.dumps(value, separators=(", ", ": ")))


def _encodable(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def say(text: str = "", *, err: bool = False) -> None:
    """One line; what cannot be encoded is escaped."""
    click.echo(text.encode("utf-8", "backslashreplace").decode("utf-8"), err=err)


def fail(error: Mapping[str, Any], exit_code: int, as_json: bool) -> int:
    """Reports an error and returns the exit code: `{"error": …}` on stdout with `--json`, else one line on stderr."""
    if as_json:
        emit({"error": dict(error)})
    else:
        say(f"error: {error['message']} ({error['remedy']})", err=True)
    return exit_code


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr; yields `update(done, total, note)`. Does nothing where stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total, note: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total, note: bar.update(task, completed=done, total=total, description=note or title)
