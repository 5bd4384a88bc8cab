"""`platemark generate`: prompts in, stamped files out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from platemark.cli.output import emit, fail, json_option, progress, say, spelled
from platemark.errors import InputError, PlatemarkError, PolicyBlocked

if TYPE_CHECKING:
    from platemark.optimize.lora import Lora
    from platemark.results import Result
    from platemark.runtime.denoise import Step


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
@click.option("--style", metavar="NAME|FILE", help="Words and settings around the prompt: a built-in style, or a TOML file.")
@click.option(
    "--scheduler",
    "--sampler",
    "scheduler",
    metavar="NAME",
    help="ddim, ddpm, euler, euler-a, heun, dpm++2m, dpm++sde, unipc, lcm or tcd; also dpm++2m-sde, and -karras after any dpm++ name. "
    "[default: the bundle's]",
)
@click.option("--eta", type=float, metavar="N", help="How much noise the steps of ddim or tcd draw, 0 to 1. [default: 0; tcd: 0.3]")
@click.option("--guidance-interval", metavar="LOW,HIGH", help="Guidance at these noise levels alone; steps elsewhere cost half.")
@click.option("--image", type=click.Path(path_type=Path), help="A picture to start from: image to image, or inpainting with --mask.")
@click.option("--strength", type=float, help="How much of --image is changed, 0 to 1. [default: 0.8; 1 with a mask]")
@click.option("--mask", type=click.Path(path_type=Path), help="A gray picture as large as --image: white is painted anew.")
@click.option("--invert-mask", is_flag=True, help="Black is painted anew instead.")
@click.option("--outpaint", metavar="PIXELS", help="Extend --image on every side, or by LEFT,TOP,RIGHT,BOTTOM pixels.")
@click.option("--upscale", type=int, help="Deliver the picture so many times as large, 2 to 8: by the bundle's upscaler, else by Lanczos.")
@click.option("--control", type=click.Path(path_type=Path), help="A picture for the bundle's ControlNet: its edges, pose or depth, say.")
@click.option("--control-scale", type=float, help="How strongly --control steers, 0 to 2. [default: 1]")
@click.option("--variation-seed", type=int, help="A second seed whose noise is mixed in.")
@click.option("--variation-strength", type=float, help="How much of it, 0 to 1. [default: 0]")
@click.option(
    "--lora", "loras", multiple=True, metavar="FILE[:SCALE]", help="Change the weights by a LoRA for this call (may be repeated)."
)
@click.option("--policy", metavar="NAME|FILE", help="strict, standard, research, or a TOML file. [default: standard]")
@click.option("--memory-budget", metavar="SIZE", help="What the process may hold, as in 4GiB. [default: what the system has left]")
@click.option("--timeout", type=float, metavar="SECONDS", help="Give up a prompt whose pictures take longer.")
@click.option("--consent", metavar="REF", help="Refers to the consent of the people shown; goes into the log and the record.")
@click.option("--backend", metavar="NAME", help="onnxruntime or openvino. [default: the one that the bundle was built for]")
@json_option
def command(
    prompts: tuple[str, ...], output: str, bundle: Path | None, n: int, seed: int, as_json: bool, policy: str | None, **options: Any
) -> int:
    """Generate pictures; each is checked, marked, signed and recorded before it is written."""
    from platemark.press import Watch, load
    from platemark.runtime.denoise import Control
    from platemark.runtime.memory import parse_bytes

    Control(options["timeout"])  # one that cannot be is refused before any work
    budget = None if options["memory_budget"] is None else parse_bytes(options["memory_budget"])
    settings, parent = _settings(options)
    target = _Target(output, single=len(prompts) * n == 1)
    press = load(bundle, policy=policy, backend=spelled(options["backend"]), memory_budget=budget, loras=_loras(options["loras"]))
    # Every prompt is admitted before the first is rendered: a bad one leaves nothing behind.
    starts = [seed if seed < 0 else (seed + number * n) % 2**64 for number in range(len(prompts))]
    requests = [press.admit(prompt, n=n, seed=start, **settings) for prompt, start in zip(prompts, starts, strict=True)]
    results: list[tuple[str | None, Result]] = []
    try:
        with progress("generating") as update:
            for number, request in enumerate(requests):
                title = f"prompt {number + 1} of {len(requests)}"
                watch = Watch(on_step=partial(_show, update, title), control=Control(options["timeout"]))
                for result in press.run(request, file_format=target.file_format, consent=options["consent"], parent=parent, watch=watch):
                    results.append((target.write(len(results), result), result))
    except PlatemarkError as error:
        return _broken_off(error, [file for file, _ in results if file], as_json)
    _report(results, as_json)
    why = _nothing([result for _, result in results])
    if why is not None and not as_json:
        raise why
    return why.exit_code if why is not None else 0


def _loras(texts: tuple[str, ...]) -> list[Lora]:
    if not texts:
        return []
    from platemark.optimize.lora import Lora

    return [Lora.parse(text) for text in texts]


def _nothing(results: list[Result]) -> PlatemarkError | None:
    """Why no picture came out at all: the policy, or else the first render's error; None where one did."""
    if any(result.data is not None for result in results):
        return None
    withheld = [result for result in results if result.decision is not None]
    if withheld:
        return PolicyBlocked("the policy withheld every picture", "another seed, prompt or policy", withheld[0].decision)
    return next((result.error for result in results if result.error is not None), None)


def _show(update: Callable[[int, int, str], None], title: str, step: Step) -> None:
    update(step.step, step.total, title)


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


def _settings(options: dict[str, Any]) -> tuple[dict[str, Any], bytes | None]:
    """What the request is made of, and the file of the picture that it brings."""
    width, height = parse_size(options["size"]) if options["size"] is not None else (None, None)
    settings = {
        "negative_prompt": options["negative"],
        "num_inference_steps": options["steps"],
        "guidance_scale": options["guidance"],
        "guidance_interval": None if options["guidance_interval"] is None else parse_interval(options["guidance_interval"]),
        "scheduler": options["scheduler"],
        "eta": options["eta"],
        "style": options["style"],
        "upscale": options["upscale"],
        "variation_seed": options["variation_seed"],
        "variation_strength": options["variation_strength"],
        "strength": options["strength"],
        "control_scale": options["control_scale"],
        "width": width,
        "height": height,
    }
    image, mask, parent = _pictures(options)
    return settings | {"image": image, "mask_image": mask, "control_image": _control(options)}, parent


def _control(options: dict[str, Any]) -> Any:
    """The picture that controls, if any."""
    from platemark.input_picture import open_picture

    if options["control"] is None:
        if options["control_scale"] is not None:
            raise InputError("--control-scale without --control", "name the picture that controls with --control")
        return None
    return open_picture(options["control"]).pixels


def _pictures(options: dict[str, Any]) -> tuple[Any, Any, bytes | None]:
    """The picture and the mask of a request, on the canvas that it asks for, and the picture's file."""
    from platemark.input_picture import open_mask, open_picture
    from platemark.runtime.outpaint import margins, outpaint

    if options["image"] is None:
        for name in ("mask", "outpaint"):
            if options[name] is not None:
                raise InputError(f"--{name} without --image", "name the picture with --image")
    if options["invert_mask"] and options["mask"] is None:
        raise InputError("--invert-mask without --mask", "name the mask with --mask")
    if options["image"] is None:
        return None, None, None
    opened = open_picture(options["image"])
    mask = None if options["mask"] is None else open_mask(options["mask"], invert=options["invert_mask"])
    if options["outpaint"] is None:
        return opened.pixels, mask, opened.data
    if mask is not None and mask.shape != opened.pixels.shape[:2]:
        raise InputError("the mask is not as large as the image", "make the mask as large as the image, in gray")
    return (*outpaint(opened.pixels, *margins(options["outpaint"]), mask), opened.data)


def single_target(output: str) -> _Target:
    """Where one picture goes. Raises `InputError` for a folder, or what cannot be written."""
    target = _Target(output, single=True)
    if target.folder:
        raise InputError(f"{output!r} is no file name", "give a .png, .jpg or .webp file with -o")
    return target


def parse_size(text: str) -> tuple[int, int]:
    """ "640x480" → (640, 480), width first. Raises `InputError`; ranges are the request's to check."""
    match = re.fullmatch(r"(-?[0-9]{1,11})x(-?[0-9]{1,11})", text.strip().lower())
    if match is None:
        raise InputError(f"the size {text[:40]!r} is not WIDTHxHEIGHT", "give two whole numbers, as in --size 512x512")
    return int(match[1]), int(match[2])


def parse_interval(text: str) -> tuple[float, float]:
    """ "0.3,5.4" → (0.3, 5.4). Raises `InputError`; ranges are the request's to check."""
    match = re.fullmatch(r"([0-9.]{1,12}),([0-9.]{1,12})", text.replace(" ", ""))
    try:
        return (float(match[1]), float(match[2])) if match else (float("nan"), float("nan"))
    except ValueError as error:
        raise InputError(f"the interval {text[:40]!r} is not LOW,HIGH", "give two noise levels, as in 0.3,5.4") from error


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


def _report(results: list[tuple[str | None, Result]], as_json: bool) -> None:
    """With `--json`, lists of which entry k is picture k: `status` is released, withheld or render_error; `files` null where none is."""
    if as_json:
        rows = [{"file": file, **result.as_dict()} for file, result in results]
        plural = {"file": "files", "seed": "seeds", "decision": "decisions", "error": "errors", "request_id": "request_ids"}
        emit({plural.get(key, key): [row[key] for row in rows] for key in rows[0]})
        return
    for note in dict.fromkeys(note for _, result in results for note in result.notes):
        click.echo(f"note: {note}", err=True)
    for file, result in results:
        record, decision = result.provenance, result.decision
        if file is None or record is None:
            say(f"{result.status}  seed {result.seed}  {_why(result)}")
            continue
        if decision is not None and decision.reasons:
            say(f"{decision.action.value}  seed {result.seed}  {_why(result)}")
        mark = "not marked" if record.watermark == "none" else f"marked at {record.psnr:.1f} dB"
        say(f"{file}  seed {result.seed}  {mark}, signed by {record.identity}, recorded as {record.content_id}")


def _why(result: Result) -> str:
    """Why a picture was withheld, changed or flagged, or did not come out as one."""
    if result.decision is None:
        return result.error.message if result.error else ""
    reasons = ", ".join(sorted({f"{r.category}: {r.evidence or r.code}" for r in result.decision.reasons}))
    return f"{result.decision.action.value} ({reasons})"
