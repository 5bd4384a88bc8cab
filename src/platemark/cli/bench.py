"""`platemark bench`: what a picture costs on this machine, and what pictures and filters are biased to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from platemark.cli.output import emit, json_option, progress, say

bundle_option = click.option("--bundle", type=click.Path(path_type=Path), help="A bundle folder. [default: the embedded emoji model]")
policy_option = click.option("--policy", metavar="NAME|FILE", help="strict, standard, research, or a TOML file. [default: standard]")
steps_option = click.option("--steps", type=int, help="Denoising steps. [default: the bundle's]")
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Seed of the first picture.")


@click.group("bench", invoke_without_command=True)
@bundle_option
@policy_option
@click.option("--runs", type=int, default=10, show_default=True, help="Measured requests.")
@click.option("--warmup", type=int, default=1, show_default=True, help="Requests before them that are not counted.")
@click.option("-n", "n", type=int, default=1, show_default=True, help="Pictures in one request, rendered as one batch (at most 8).")
@click.option("--prompt", metavar="TEXT", default="a red apple", show_default=True, help="What the pictures show.")
@seed_option
@steps_option
@click.option("--guidance", type=float, help="Classifier-free guidance scale. [default: the bundle's]")
@click.option("--guidance-interval", metavar="LOW,HIGH", help="Guidance at these noise levels alone: what it gains and costs is told.")
@click.option("--size", metavar="WxH", help="Output size in pixels. [default: the bundle's]")
@click.option("--scheduler", metavar="NAME", help="The sampler. [default: the bundle's]")
@click.option("--breakdown", is_flag=True, help="Show what everything outside the engines takes. (--json always has it.)")
@json_option
@click.pass_context
def command(context: click.Context, /, bundle: Path | None, policy: str | None, as_json: bool, breakdown: bool, **asked: Any) -> int | None:
    """Time a bundle from prompt to signed file: latency, stages, memory, energy.

    Each run is checked, marked, signed and recorded in a state folder that is thrown away. Energy is read from RAPL or NVML counters and
    unknown where there are none.
    """
    if context.invoked_subcommand is not None:
        _refuse_own_options(context)
        return None
    from platemark.bench.latency import measure
    from platemark.bench.output import latency_lines

    plan = _plan(asked)
    with progress("measuring") as update:
        report = measure(bundle, policy, plan, on_run=lambda done, total: update(done, total, "run"))
    if as_json:
        emit(report.model_dump(mode="json"))
    else:
        for line in latency_lines(report, breakdown=breakdown):
            say(line)
    return 0


def _plan(asked: dict[str, Any]) -> Any:
    from platemark.bench.latency import Plan
    from platemark.cli.generate import parse_interval, parse_size

    width, height = parse_size(asked["size"]) if asked["size"] is not None else (None, None)
    settings = {
        "num_inference_steps": asked["steps"],
        "guidance_scale": asked["guidance"],
        "scheduler": asked["scheduler"],
        "guidance_interval": None if asked["guidance_interval"] is None else parse_interval(asked["guidance_interval"]),
        "width": width,
        "height": height,
    }
    return Plan(**{name: asked[name] for name in ("prompt", "runs", "warmup", "n", "seed")}, settings=settings)


def _refuse_own_options(context: click.Context) -> None:
    """Options before the subcommand would do nothing: they are refused, not ignored."""
    for parameter in command.params:
        if parameter.name and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE:
            given = parameter.opts[-1]
            raise click.UsageError(f"{given} belongs behind '{context.invoked_subcommand}'", context)


@command.command("bias")
@bundle_option
@policy_option
@click.option("--images", type=int, default=8, show_default=True, help="Pictures for each neutral prompt.")
@seed_option
@steps_option
@click.option("--attributes", metavar="FILE", type=click.Path(path_type=Path), help="Your own neutral prompts and attributes (TOML).")
@click.option("--benign", metavar="FILE", type=click.Path(path_type=Path), help="Your own harmless prompts by language and group (TOML).")
@click.option("--prompts-only", is_flag=True, help="Measure the prompt check alone, and make no pictures.")
@json_option
def bias(bundle: Path | None, policy: str | None, as_json: bool, **asked: Any) -> int:
    """Measure what pictures of neutral prompts show, and whom the filters stop for nothing.

    Attributes are read zero-shot by the bundle's CLIP, which knows only what it was trained on: the embedded one, emoji. False positives
    of the prompt check are counted by language and by the group of people named. No picture leaves.
    """
    from platemark.bench.bias import Plan, measure
    from platemark.bench.bias_output import bias_lines

    with progress("measuring") as update:
        report = measure(bundle, policy, Plan(**asked), on_done=lambda what, done, total: update(done, total, what))
    if as_json:
        emit(report.model_dump(mode="json"))
    else:
        for line in bias_lines(report):
            say(line)
    return 0
