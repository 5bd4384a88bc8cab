"""Writes the `--help` texts into README.md between markers, or checks that they are there (`--check`).

A marker pair looks like `<!-- help: generate -->` … `<!-- /help -->`; `<!-- help: -->` is the program itself.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from click.testing import CliRunner

from platemark.cli import main as program

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"(<!-- help: ?(?P<command>[a-z ]*)-->\n).*?(<!-- /help -->)", re.DOTALL)


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
    after = render(before)
    if "--check" in sys.argv[1:]:
        if before != after:
            sys.stderr.write("README.md: the help texts are stale; run `make readme`\n")
            return 1
        return 0
    README.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
