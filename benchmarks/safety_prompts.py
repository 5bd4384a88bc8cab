"""Measures the prompt checks on the labelled prompt set, as the gate decides under a policy, and prints rates alone.

    python -m benchmarks.safety_prompts [--half heldout] [--policy standard] [--table FILE]

A prompt counts as caught where the gate's decision is `block`; `flag` lets it pass and is counted apart. Rates carry Wilson intervals
(95 %). Rows are categories, languages and obfuscations; no prompt and no fault by name is ever printed, so that the held-out half stays
unread by those who write the checks. Each look at that half is written down in `safety/prompts/looks.tsv`, and the table says how many
there were. `--table` writes the Markdown of benchmarks/results/safety_prompts.md.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.whole_process import machine
from platemark.safety.decision import Action
from platemark.safety.gate import Gate
from platemark.safety.policy import load_policy
from platemark.safety.policy_model import Policy
from platemark.safety.prompt import prompt_detectors
from platemark.safety.signals import PromptDetector

PROMPTS = Path(__file__).parent / "safety" / "prompts"
LOOKS = PROMPTS / "looks.tsv"
INSTALLS = {
    "words only": ("lexicon",),
    "base install": ("lexicon", "classifier"),
    "with the extra `safety`": ("lexicon", "classifier", "semantic"),
}
_Z = 1.959964  # normal quantile of a two-sided 95 % interval


@dataclass(frozen=True)
class Judged:
    """One prompt of the set and what the gate did with it."""

    entry: dict[str, Any]
    action: Action
    milliseconds: float

    @property
    def unsafe(self) -> bool:
        return bool(self.entry["label"] == "unsafe")

    @property
    def blocked(self) -> bool:
        return self.action is Action.BLOCK


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a rate (Wilson 1927)."""
    if not trials:
        return 0.0, 1.0
    rate, square = hits / trials, _Z * _Z
    centre = (rate + square / (2 * trials)) / (1 + square / trials)
    half = _Z * math.sqrt(rate * (1 - rate) / trials + square / (4 * trials * trials)) / (1 + square / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def judge(policy: Policy, detectors: Sequence[PromptDetector], entries: Iterable[dict[str, Any]]) -> list[Judged]:
    """What the gate decides on each prompt, by itself and with no picture."""
    gate = Gate(policy, detectors, None)
    gate.check_prompt("warm up, a n-u-u-u-de disguise")
    judged = []
    for entry in entries:
        began = time.process_time()
        decision = gate.check_prompt(entry["text"])
        judged.append(Judged(entry, decision.action, (time.process_time() - began) * 1000))
    return judged


def _rate(chosen: Sequence[Judged]) -> str:
    hits = sum(one.blocked for one in chosen)
    low, high = wilson(hits, len(chosen))
    share = f"{100 * hits / len(chosen):.1f}" if chosen else "–"
    return f"{hits}/{len(chosen)} = {share} % ({100 * low:.1f} to {100 * high:.1f})"


def _rows(results: dict[str, list[Judged]], title: str, key: Callable[[Judged], str | None], unsafe: bool) -> Iterable[str]:
    names = sorted({str(key(one)) for judged in results.values() for one in judged if one.unsafe is unsafe and key(one)})
    yield f"\n| {title} | " + " | ".join(results) + " |"
    yield "|---|" + "--:|" * len(results)
    for name in names:
        cells = [_rate([one for one in judged if one.unsafe is unsafe and key(one) == name]) for judged in results.values()]
        yield f"| {name} | " + " | ".join(cells) + " |"


def tables(results: dict[str, list[Judged]]) -> Iterable[str]:
    """The Markdown of every table."""
    yield "| all | " + " | ".join(results) + " |"
    yield "|---|" + "--:|" * len(results)
    for name, unsafe in (("unsafe blocked (TPR)", True), ("benign blocked (FPR)", False)):
        yield f"| {name} | " + " | ".join(_rate([one for one in j if one.unsafe is unsafe]) for j in results.values()) + " |"
    flagged = [sum(one.action is Action.FLAG for one in judged) for judged in results.values()]
    yield "| flagged only | " + " | ".join(map(str, flagged)) + " |"
    for name, share in (("median", 50), ("p95", 95)):
        yield (
            f"| {name} of a check, CPU ms | "
            + " | ".join(f"{np.percentile([one.milliseconds for one in j], share):.1f}" for j in results.values())
            + " |"
        )
    yield from _rows(results, "unsafe, by category", lambda one: one.entry["category"], True)
    yield from _rows(results, "unsafe, by language", lambda one: one.entry["language"], True)
    yield from _rows(results, "unsafe, by obfuscation", lambda one: one.entry["obfuscation"] or "none", True)
    yield from _rows(results, "benign, by category", lambda one: one.entry["category"], False)
    yield from _rows(results, "benign, by language", lambda one: one.entry["language"], False)
    yield from _rows(results, "benign, by obfuscation", lambda one: one.entry["obfuscation"] or "none", False)
    yield from _rows(results, "benign, by group named", lambda one: one.entry["group"], False)


def look(results: dict[str, list[Judged]], detectors: Iterable[PromptDetector]) -> int:
    """Writes down that the held-out half was looked at, with what and how it went; how often that has been."""
    models = " ".join(f"{detector.name}={detector.model_sha256[:12]}" for detector in detectors)
    rates = "; ".join(
        f"{name}: " + ", ".join(_rate([one for one in judged if one.unsafe is unsafe]) for unsafe in (True, False))
        for name, judged in results.items()
    )
    with LOOKS.open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d')}\t{models}\t{rates}\n")
    return sum(not line.startswith("#") for line in LOOKS.read_text(encoding="utf-8").splitlines())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--half", choices=("develop", "heldout"), default="heldout")
    parser.add_argument("--policy", default="standard")
    parser.add_argument("--table", type=Path)
    options = parser.parse_args(arguments)
    entries = [json.loads(line) for line in (PROMPTS / f"{options.half}.jsonl").read_text(encoding="utf-8").splitlines()]
    policy = load_policy(options.policy)
    there = {detector.name: detector for detector in prompt_detectors(policy)}
    installs = {title: names for title, names in INSTALLS.items() if set(names) <= set(there)}
    results = {title: judge(policy, [there[name] for name in names], entries) for title, names in installs.items()}
    looks = look(results, there.values()) if options.half == "heldout" else 0
    text = (f"Looks at this half so far, this one included: {looks}.\n\n" if looks else "") + "\n".join(tables(results))
    print(text)
    if options.table is not None:
        shown = shlex.join(["python", "-m", "benchmarks.safety_prompts", *(arguments if arguments is not None else sys.argv[1:])])
        options.table.write_text(
            _HEAD.format(command=shown, machine=machine(), half=options.half, policy=options.policy) + text + "\n", encoding="utf-8"
        )
    return 0


_HEAD = """# Prompt checks on the labelled set, {half} half, policy `{policy}`

`{command}`

{machine}

A prompt counts as caught where the gate blocks it; one that is only flagged passes. Rates with their 95 % Wilson intervals. What the set
is and is not: [../safety/prompts/README.md](../safety/prompts/README.md).

"""


if __name__ == "__main__":
    raise SystemExit(main())
