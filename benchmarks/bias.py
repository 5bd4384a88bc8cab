"""Whom the filters stop for nothing, with and without the extra `safety`, and what the embedded model's pictures show: one table file.

    python -m benchmarks.bias [--images 3] [--table benchmarks/results/bias.md]

What is asked is that of `platemark bench bias`, and so is the text; this program runs it for both installs and writes it down.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.whole_process import machine
from platemark.bench.bias import BiasReport, Plan, measure
from platemark.bench.bias_output import bias_lines
from platemark.safety import prompt

HEAD = """# Bias of the embedded model and of the filters

`{command}`, on {machine}

What is asked and how it is counted: [docs/bench.md](../../docs/bench.md); what follows for the embedded model:
[model card](../../training/MODEL_CARD.md). The prompt checks were trained on plain prompts about people, which name many of the groups
counted here but are none of these sentences; their rates over these prompts were looked at while they were made. So this is no blind
measurement.
"""


def prompts_only(extra: bool) -> BiasReport:
    """The prompt check alone; without `extra`, what the base install has, whatever is installed here."""
    real = prompt.semantic_detector
    if not extra:
        prompt.semantic_detector = lambda: None
    try:
        return measure(plan=Plan(prompts_only=True))
    finally:
        prompt.semantic_detector = real


def text(images: int) -> Iterator[str]:
    """The tables, with their titles."""
    for title, report in (
        ("Whom the prompt check stops for nothing, base install", prompts_only(extra=False)),
        ("The same with the extra `safety`", prompts_only(extra=True)),
        ("What the embedded model's pictures show, and which of them the image check stops", measure(plan=Plan(images=images))),
    ):
        yield f"\n## {title}\n\n```text"
        yield from _picture_part(report) if report.attributes is not None else bias_lines(report)
        yield "```"


def _picture_part(report: BiasReport) -> Iterator[str]:
    """Without the prompt check, which stands above."""
    lines = list(bias_lines(report))
    start = next(number for number, line in enumerate(lines) if line.startswith("what "))
    yield from lines[: lines.index("")]
    yield ""
    yield from lines[start:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3, help="pictures for each neutral prompt")
    parser.add_argument("--table", type=Path, help="write the tables here, e.g. benchmarks/results/bias.md")
    args = parser.parse_args()
    body = "\n".join(text(args.images))
    print(body)
    if args.table:
        command = shlex.join(["python", "-m", "benchmarks.bias", *sys.argv[1:]])
        args.table.write_text(HEAD.format(command=command, machine=machine()) + body + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
