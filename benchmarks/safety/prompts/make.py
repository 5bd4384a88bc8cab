"""Builds the labelled prompt set: plain prompts from ``source/*.tsv``, eight obfuscations, two halves, checks, counts.

Deterministic: every choice comes from sha256 of an entry's id, or from the fixed seed of the split. The script knows
nothing about how prompts are checked; it imports only the standard library.

Usage: ``python benchmarks/safety/prompts/make.py`` writes develop.jsonl, heldout.jsonl, SHA256SUMS and the counts in
README.md; ``--check`` writes nothing and fails when a file on disk differs from what would be written.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import random
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from obfuscate import LATIN_ONLY, OBFUSCATIONS, digest, obfuscate

HERE = Path(__file__).resolve().parent
UNSAFE = ("sexual", "violence", "hate", "self_harm", "minors", "deception", "weapon", "undress_intent", "face_swap_intent")
ORDINARY = ("landscape", "animals", "food", "portrait", "architecture", "fantasy", "object", "short")
HARD = ("medicine", "art_history", "news_history", "wordplay", "tools_toys", "childhood", "products", "editing", "fiction", "people")
HALVES = ("develop", "heldout")
UNSAFE_PER_OBFUSCATION = 13  # in each half
BENIGN_PER_OBFUSCATION = 4  # in each half; none for base64, whose plain refusal is policy
ENGLISH_OF_EVERY = 2  # every second obfuscated entry is English
SEED = 20261124
README_MARK = "<!-- counts: written by make.py -->"


@dataclass(frozen=True)
class Entry:
    """One labelled prompt, with the field names of the JSON lines."""

    id: str
    text: str
    language: str
    label: str
    category: str
    kind: str
    obfuscation: str | None = None
    source_id: str | None = None
    group: str | None = None


def read_source(path: Path) -> list[tuple[str, Entry]]:
    """Reads one language's TSV into (theme, entry) pairs; the running number inside a category makes the id."""
    numbers: Counter[str] = Counter()
    rows: list[tuple[str, Entry]] = []
    with path.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE):
            category = row["category"]
            if category not in UNSAFE + ORDINARY + HARD:
                raise SystemExit(f"{path.name}: unknown category {category!r}")
            numbers[category] += 1
            label = "unsafe" if category in UNSAFE else "benign"
            kind = "hard_benign" if category in HARD else "plain"
            name = f"{path.stem}-{category}-{numbers[category]:03d}"
            rows.append((row["theme"], Entry(name, row["text"], path.stem, label, category, kind, group=row["group"] or None)))
    return rows


def keys_of(entry: Entry) -> list[str]:
    """The counters that the split balances."""
    keys = ["all", entry.label, entry.category, f"{entry.language} {entry.label}", f"{entry.label} {entry.kind}"]
    if entry.label == "unsafe":
        keys.append(f"{entry.language} {entry.category}")
    if entry.group:
        keys.append(f"group {entry.group}")
    return keys


def imbalance(sides: dict[str, int], weights: dict[str, Counter[str]]) -> int:
    """Sum over all counters of the squared difference between the two halves."""
    total: Counter[str] = Counter()
    for theme, side in sides.items():
        for key, count in weights[theme].items():
            total[key] += count if side else -count
    return sum(value * value for value in total.values())


def split(rows: list[tuple[str, Entry]]) -> dict[str, str]:
    """Gives each theme one half: seeded start, then single flips for as long as one improves the balance."""
    weights: dict[str, Counter[str]] = defaultdict(Counter)
    for theme, entry in rows:
        weights[theme].update(keys_of(entry))
    source = random.Random(SEED)
    sides = {theme: source.randrange(2) for theme in sorted(weights)}
    cost = imbalance(sides, weights)
    improved = True
    while improved:
        improved = False
        for theme in sorted(weights):
            sides[theme] ^= 1
            changed = imbalance(sides, weights)
            if changed < cost:
                cost, improved = changed, True
            else:
                sides[theme] ^= 1
    return {theme: HALVES[side] for theme, side in sides.items()}


def pick(pool: list[Entry], kind: str, count: int, used: Counter[str]) -> list[Entry]:
    """Chooses sources for one obfuscation: least used first, categories and languages in turn."""
    usable = [e for e in pool if not (kind in LATIN_ONLY and e.language in ("zh", "ja"))]
    chosen: list[Entry] = []
    seen: Counter[str] = Counter()
    for turn in range(count):
        english = turn % ENGLISH_OF_EVERY == 0
        rest = [e for e in usable if e not in chosen and (e.language == "en") == english]

        def rank(entry: Entry) -> tuple[int, int, int, int, int]:
            repeat = seen[entry.category] + seen[entry.language] * (entry.language != "en")
            return used[entry.id], repeat, used[entry.category], used[entry.language], digest(entry.id + kind)

        best = min(rest, key=rank)
        chosen.append(best)
        for key in (best.category, best.language):
            seen[key] += 1
        for key in (best.id, best.category, best.language):
            used[key] += 1
    return chosen


def obfuscated(half: list[Entry]) -> list[Entry]:
    """The obfuscated entries of one half, made from that half's own plain prompts."""
    result: list[Entry] = []
    used: Counter[str] = Counter()
    for label, count in (("unsafe", UNSAFE_PER_OBFUSCATION), ("benign", BENIGN_PER_OBFUSCATION)):
        pool = [e for e in half if e.label == label]
        for kind in OBFUSCATIONS:
            if label == "benign" and kind == "base64":
                continue
            for source in pick(pool, kind, count, used):
                name = f"{source.id}-{kind}"
                text = obfuscate(kind, source.text, name)
                result.append(replace(source, id=name, text=text, kind="obfuscated", obfuscation=kind, source_id=source.id))
    return result


def build() -> dict[str, list[Entry]]:
    """Both halves, sorted by id."""
    rows = [row for path in sorted((HERE / "source").glob("*.tsv")) for row in read_source(path)]
    side = split(rows)
    halves: dict[str, list[Entry]] = {}
    for name in HALVES:
        plain = [entry for theme, entry in rows if side[theme] == name]
        halves[name] = sorted(plain + obfuscated(plain), key=lambda entry: entry.id)
    return halves


def folded(text: str) -> str:
    """NFKC, case folded, letters and digits only: the key for duplicates among plain prompts."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


def trigrams(text: str) -> set[str]:
    """Character trigrams of the folded text (bigrams would make short CJK prompts collide)."""
    key = folded(text)
    return {key[i : i + 3] for i in range(max(1, len(key) - 2))}


def check_duplicates(halves: dict[str, list[Entry]]) -> None:
    """No duplicate id, exact text or folded plain text anywhere; no near-paraphrase across the halves.

    Faults are named by id, never by text: who reads them may be writing a check.
    """
    entries = [e for half in halves.values() for e in half]
    plain = {name: [e for e in half if e.obfuscation is None] for name, half in halves.items()}
    values: tuple[tuple[str, list[tuple[str, str]]], ...] = (
        ("id", [(e.id, e.id) for e in entries]),
        ("text", [(e.text, e.id) for e in entries]),  # an obfuscated text may fold to its source, by construction
        ("plain text", [(folded(e.text), e.id) for half in plain.values() for e in half]),
    )
    for what, keys in values:
        counts = Counter(key for key, _ in keys)
        twice = [name for key, name in keys if counts[key] > 1]
        if twice:
            raise SystemExit(f"duplicate {what}: {', '.join(twice[:5])}")
    right = [(e, trigrams(e.text)) for e in plain["heldout"]]
    for entry in plain["develop"]:
        mine = trigrams(entry.text)
        for other, grams in right:
            if len(mine & grams) > 0.5 * len(mine | grams):
                raise SystemExit(f"near-paraphrase across halves: {entry.id} / {other.id}")


def check_coverage(halves: dict[str, list[Entry]]) -> None:
    """Size, categories, languages, obfuscations and sources of each half."""
    languages = {e.language for half in halves.values() for e in half}
    for name, half in halves.items():
        ids = {e.id for e in half}
        kinds = Counter(e.obfuscation for e in half)
        faults = [f"only {len(half)} entries"] if len(half) < 400 else []
        faults += [f"no {c}" for c in UNSAFE + ORDINARY + HARD if c not in {e.category for e in half}]
        faults += [f"no {label} in {x}" for x in languages for label in ("unsafe", "benign") if (x, label) not in pairs(half)]
        faults += [f"{kinds[kind]} of {kind}" for kind in OBFUSCATIONS if kinds[kind] < 12]
        faults += [f"{e.id}: source elsewhere" for e in half if e.source_id and e.source_id not in ids]
        if faults:
            raise SystemExit(f"{name}: {'; '.join(faults)}")


def pairs(half: Iterable[Entry]) -> set[tuple[str, str]]:
    """(language, label) pairs present."""
    return {(e.language, e.label) for e in half}


def table(title: str, halves: dict[str, list[Entry]], key: Callable[[Entry], str | None]) -> str:
    """One Markdown table: a row for each value, columns unsafe/benign of each half."""
    counts = Counter((key(e), name, e.label) for name, half in halves.items() for e in half)
    values = sorted({value for value, _, _ in counts if value is not None})
    lines = [f"| {title} | develop unsafe | develop benign | heldout unsafe | heldout benign | all |", "|---|--:|--:|--:|--:|--:|"]
    for value in values:
        cells = [counts[value, name, label] for name in HALVES for label in ("unsafe", "benign")]
        lines.append(f"| {value} | {' | '.join(map(str, cells))} | {sum(cells)} |")
    return "\n".join(lines)


def counts_text(halves: dict[str, list[Entry]]) -> str:
    """The counts section of README.md."""
    tables: list[tuple[str, Callable[[Entry], str | None]]] = [
        ("all", lambda e: "entries"),
        ("kind", lambda e: e.kind),
        ("language", lambda e: e.language),
        ("category", lambda e: e.category),
        ("obfuscation", lambda e: e.obfuscation),
        ("group named", lambda e: e.group),
    ]
    return "\n\n".join(table(title, halves, key) for title, key in tables) + "\n"


def outputs() -> dict[Path, str]:
    """Every file this script writes, with its text; raises SystemExit when a check fails."""
    halves = build()
    check_duplicates(halves)
    check_coverage(halves)
    files: dict[Path, str] = {}
    sums = ""
    for name, half in halves.items():
        text = "".join(json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in half)
        files[HERE / f"{name}.jsonl"] = text
        sums += f"{hashlib.sha256(text.encode('utf-8')).hexdigest()}  {name}.jsonl\n"
    files[HERE / "SHA256SUMS"] = sums
    readme = HERE / "README.md"
    head = readme.read_text(encoding="utf-8").split(README_MARK)[0]
    files[readme] = f"{head}{README_MARK}\n\n{counts_text(halves)}"
    return files


def main() -> int:
    """Writes the files, or compares them with ``--check``."""
    parser = argparse.ArgumentParser(description="Build the labelled prompt set.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file on disk differs")
    check: bool = parser.parse_args().check
    files = outputs()
    stale = [p.name for p, text in files.items() if not p.exists() or p.read_bytes() != text.encode("utf-8")]
    if check:
        print(f"differs: {', '.join(stale)}" if stale else "up to date")
        return 1 if stale else 0
    for path, text in files.items():
        path.write_bytes(text.encode("utf-8"))
    print(files[HERE / "SHA256SUMS"], end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
