"""`platemark generate`: prompts in, stamped files out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from platemark.cli.output import emit, fail, json_option, progress, say
from platemark.errors import InputError, PlatemarkError, PolicyBlocked


@click.command("generate")
@click.argument("prompts", metavar="PROMPT...", nargs=-1, required=True)
@click.option(
    "-o", "--output", default=".", metavar="FILE|DIR", help="A file (.png, .jpg, .webp) for one picture, a folder for several. [default: .]"
)
@click.option("--bundle", type=click.Path(path_type=Path), help="A bundle folder. [default: the embedded emoji model]")
@click.option("-n", "n", type=int, default=1, show_default=True, help="Pictures for each prompt.")
@click.option(
    "--seed", type=int, default=-1, help="Seed of the first picture, 0 to 2^64-1; picture k uses seed + k. -1 draws one. [default: -1]"
)
@click.option("--steps", type=int, help="Denoising steps. [default: the bundle's]")
@click.option("--guidance", type=float, help="Classifier-free guidance scale, 0 to 50. [default: the bundle's]")
@click.option("--size", metavar="WxH", help="Output size in pixels. [default: the bundle's]")
@click.option("--negative", default="", metavar="TEXT", help="What the picture should not show.")
@click.option("--scheduler", metavar="NAME", help="ddim, euler or dpm++2m. [default: the bundle's]")
@click.option("--policy", metavar="NAME|FILE", help="strict, standard, research, or a TOML file. [default: standard]")
@json_option
def command(
    prompts: tuple[str, ...], output: str, bundle: Path | None, n: int, seed: int, as_json: bool, policy: str | None, **options: Any
) -> int:
    """Generate pictures; each is checked, marked, signed and recorded before it is written."""
    from platemark.press import load

    settings = _settings(options)
    target = _Target(output, single=len(prompts) * n == 1)
    press = load(bundle, policy=policy)
    # Every prompt is admitted before the first is rendered: a bad one leaves nothing behind.
    starts = [seed if seed < 0 else (seed + number * n) % 2**64 for number in range(len(prompts))]
    requests = [press.admit(prompt, n=n, seed=start, **settings) for prompt, start in zip(prompts, starts, strict=True)]
    results: list[tuple[str | None, Any]] = []
    try:
        with progress("generating") as update:
            for number, request in enumerate(requests):
                title = f"prompt {number + 1} of {len(requests)}"
                steps = partial(_show, update, title)
                for result in press.run(request, file_format=target.file_format, on_step=steps):
                    results.append((target.write(len(results), result), result))
    except PlatemarkError as error:
        return _broken_off(error, [file for file, _ in results if file], as_json)
    _report(results, as_json)
    if all(result.data is None for _, result in results):
        if not as_json:
            raise PolicyBlocked("the policy withheld every picture", "another seed, prompt or policy", results[0][1].decision)
        return PolicyBlocked.exit_code
    return 0


def _show(update: Callable[[int, int, str], None], title: str, step: int, total: int) -> None:
    update(step, total, title)


def _broken_off(error: PlatemarkError, written: list[str], as_json: bool) -> int:
    """An error after some pictures were released: they are named, as they are recorded and stay."""
    if not written:
        raise error
    if as_json:
        emit({"error": error.as_dict(), "files": written})
    else:
        fail(error.as_dict(), error.exit_code, as_json)
        click.echo(f"note: finished before the error: {', '.join(written)}", err=True)
    return error.exit_code


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    width, height = parse_size(options["size"]) if options["size"] is not None else (None, None)
    return {
        "negative_prompt": options["negative"],
        "num_inference_steps": options["steps"],
        "guidance_scale": options["guidance"],
        "scheduler": options["scheduler"],
        "width": width,
        "height": height,
    }


def parse_size(text: str) -> tuple[int, int]:
    """ "640x480" → (640, 480), width first. Raises `InputError`; ranges are the request's to check."""
    match = re.fullmatch(r"(-?[0-9]{1,11})x(-?[0-9]{1,11})", text.strip().lower())
    if match is None:
        raise InputError(f"the size {text[:40]!r} is not WIDTHxHEIGHT", "give two whole numbers, as in --size 512x512")
    return int(match[1]), int(match[2])


class _Target:
    """Where the files go; checked before any work is done."""

    def __init__(self, output: str, *, single: bool) -> None:
        from platemark.press import FORMATS

        self.path, self.file_format = Path(output), "png"
        suffix = self.path.suffix.lower()
        self.folder = self.path.is_dir() or output.endswith(("/", os.sep)) or not suffix
        if not self.folder:
            if suffix not in FORMATS:
                raise InputError(f"cannot write {suffix!r} files", "use .png, .jpg or .webp; for a folder, end it with a slash")
            if not single:
                raise InputError(f"several pictures do not fit in the one file {self.path.name!r}", "give a folder with -o")
            self.file_format = FORMATS[suffix]
        place = self.path if self.folder else self.path.parent
        if not self.folder and not place.is_dir():
            raise InputError(f"the folder {str(place)!r} does not exist", "make it first, or write elsewhere")
        while not place.exists():
            place = place.parent
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise InputError(f"cannot write into {str(place)!r}", "write elsewhere with -o")

    def write(self, index: int, result: Any) -> str | None:
        if result.data is None:
            return None
        path = self.path / f"{index:04d}-{result.seed}.png" if self.folder else self.path
        if self.folder:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"cannot make the folder {str(self.path)!r}: {error.strerror}", "write elsewhere with -o") from error
        result.save(path)
        return str(path)


def _report(results: list[tuple[Any, Any]], as_json: bool) -> None:
    if as_json:
        emit({
            "files": [file for file, _ in results],
            "seeds": [str(result.seed) for _, result in results],
            "timings": [result.timings for _, result in results],
            "decisions": [result.decision.as_dict() for _, result in results],
            "provenance": [result.provenance.as_dict() if result.provenance else None for _, result in results],
            "notes": [list(result.notes) for _, result in results],
        })  # fmt: skip
        return
    for note in dict.fromkeys(note for _, result in results for note in result.notes):
        click.echo(f"note: {note}", err=True)
    for file, result in results:
        if file is None:
            reasons = ", ".join(sorted({f"{r.category}: {r.evidence or r.code}" for r in result.decision.reasons}))
            say(f"withheld  seed {result.seed}  {result.decision.action.value} ({reasons})")
            continue
        record = result.provenance
        mark = "not marked" if record.watermark == "none" else f"marked at {record.psnr:.1f} dB"
        say(f"{file}  seed {result.seed}  {mark}, signed by {record.identity}, recorded as {record.content_id}")
