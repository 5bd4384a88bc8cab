"""`platemark generate`: prompts in, stamped files out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from platemark.cli.output import emit, json_option, progress, say
from platemark.errors import InputError, PolicyBlocked

_SUFFIXES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


@click.command("generate")
@click.argument("prompts", metavar="PROMPT...", nargs=-1, required=True)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="A file (.png, .jpg, .webp) for one picture, a folder for several. [default: .]"
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
    prompts: tuple[str, ...], output: Path | None, bundle: Path | None, n: int, seed: int, as_json: bool, policy: str | None, **options: Any
) -> int:
    """Generate pictures; each is checked, marked, signed and recorded before it is written."""
    from platemark.press import load

    settings = _settings(options)
    target = _Target(output, single=len(prompts) * n == 1)
    press = load(bundle, policy=policy)
    results: list[tuple[str | None, Any]] = []
    with progress("generating") as update:
        for number, prompt in enumerate(prompts):
            start = seed if seed < 0 else (seed + number * n) % 2**64

            def on_step(step: int, total: int, prompt_number: int = number) -> None:
                update(step, total, f"prompt {prompt_number + 1} of {len(prompts)}")

            for result in press.generate(prompt, n=n, seed=start, file_format=target.file_format, on_step=on_step, **settings):
                results.append((target.write(len(results), result), result))
    _report(results, as_json)
    withheld = [result for _, result in results if result.data is None]
    if withheld and len(withheld) == len(results):
        if not as_json:
            raise PolicyBlocked("the policy withheld every picture", "another seed, prompt or policy", withheld[0].decision)
        return PolicyBlocked.exit_code
    return 0


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
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.strip().lstrip("-").isdecimal() and len(part) < 12 for part in parts):
        raise InputError(f"the size {text[:40]!r} is not WIDTHxHEIGHT", "give two whole numbers, as in --size 512x512")
    return int(parts[0]), int(parts[1])


class _Target:
    """Where the files go; checked before any work is done."""

    def __init__(self, output: Path | None, *, single: bool) -> None:
        output = output if output is not None else Path()
        suffix = output.suffix.lower()
        self.folder = output.is_dir() or not suffix
        self.path, self.file_format = output, "png"
        if self.folder:
            return
        if suffix not in _SUFFIXES:
            raise InputError(f"cannot write {suffix!r} files", "use .png, .jpg or .webp")
        if not single:
            raise InputError(f"several pictures do not fit in the one file {output.name!r}", "give a folder with -o")
        if not output.parent.is_dir():
            raise InputError(f"the folder {str(output.parent)!r} does not exist", "make it first, or write elsewhere")
        self.file_format = _SUFFIXES[suffix]

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
