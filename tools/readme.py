"""Writes the `--help` texts into README.md between markers, or checks that they are there (`--check`).

A marker pair looks like `<!-- help: generate -->` … `<!-- /help -->`; `<!-- help: -->` is the program itself, and a command of a group
has both names (`<!-- help: keys init -->`). Both ways a command without a pair is an error.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from click.testing import CliRunner

from platemark.cli import main as program

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"(<!-- help: ?(?P<command>[a-z -]*)-->\n).*?(<!-- /help -->)", re.DOTALL)


def commands(command: click.Command = program, words: tuple[str, ...] = ()) -> Iterator[str]:
    """The words that call each command, from the program itself ("") to the commands of its groups ("keys init")."""
    yield " ".join(words)
    if isinstance(command, click.Group):
        with click.Context(command) as context:
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                if found is not None and not found.hidden:
                    yield from commands(found, (*words, name))


def missing(text: str) -> list[str]:
    """The commands that have no block in `text`."""
    shown = {match["command"].strip() for match in BLOCK.finditer(text)}
    return [command for command in commands() if command not in shown]


def help_text(command: str) -> str:
    words = command.split()
    result = CliRunner().invoke(program, [*words, "--help"], prog_name="platemark", terminal_width=100)
    if result.exit_code != 0:
        raise SystemExit(f"platemark {command} --help failed: {result.output}")
    return result.output.rstrip()


def render(text: str) -> str:
    return BLOCK.sub(lambda m: f"{m.group(1)}```text\n{help_text(m.group('command').strip())}\n```\n{m.group(3)}", text)


def main() -> int:
    before = README.read_text(encoding="utf-8")
    absent = missing(before)
    for command in absent:
        sys.stderr.write(f"README.md: no block for `platemark {command}`: add `<!-- help: {command} -->` and `<!-- /help -->`\n")
    after = render(before)
    if "--check" in sys.argv[1:]:
        if before != after:
            sys.stderr.write("README.md: the help texts are stale; run `make readme`\n")
        return int(before != after or bool(absent))
    README.write_text(after, encoding="utf-8")
    return int(bool(absent))


if __name__ == "__main__":
    sys.exit(main())
