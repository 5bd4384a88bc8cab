"""`platemark check`: the safety decision alone."""

from __future__ import annotations

from pathlib import Path

import click

from platemark.cli.output import emit, json_option, say
from platemark.errors import InputError, PolicyBlocked
from platemark.safety.decision import Action, Decision


@click.command("check")
@click.option("--prompt", "prompts", metavar="TEXT", multiple=True, help="A prompt to decide on (may be repeated).")
@click.option(
    "--image", "images", metavar="FILE", multiple=True, type=click.Path(path_type=Path), help="A picture to decide on (may be repeated)."
)
@click.option("--policy", metavar="NAME|FILE", help="strict, standard, research, or a TOML file. [default: standard]")
@json_option
def command(prompts: tuple[str, ...], images: tuple[Path, ...], policy: str | None, as_json: bool) -> int:
    """Say what the gate would do with a prompt or a picture, and why.

    Exit code 3 where it would block.
    """
    if not prompts and not images:
        raise InputError("nothing to check", "give --prompt TEXT or --image FILE")
    from platemark.imaging import decode
    from platemark.models import embedded
    from platemark.press import gate_for
    from platemark.provenance.home import home, make_private
    from platemark.runtime.bundle import open_bundle
    from platemark.runtime.request import check_prompt_text
    from platemark.safety.gate import Gate
    from platemark.safety.policy import load_policy

    rules = load_policy(policy)
    blocked = False
    if prompts:
        words = Gate(rules.model_copy(update={"image_checks": False}))  # a prompt alone needs no CLIP
        for prompt in prompts:
            check_prompt_text(prompt)
        for prompt in prompts:
            blocked |= _report("prompt", prompt, words.check_prompt(prompt), as_json)
    if images:
        gate = gate_for(open_bundle(embedded()), rules, make_private(home()))
        for image in images:
            blocked |= _report("file", str(image), gate.check_image(decode(image).array), as_json)
    return PolicyBlocked.exit_code if blocked else 0


def _report(kind: str, subject: str, decision: Decision, as_json: bool) -> bool:
    if as_json:
        emit({kind: subject, **decision.as_dict()})
    else:
        say(f"{decision.action.value}  {subject}")
        for reason in decision.reasons:
            measured = f"{reason.detector}, {reason.score:.2f} of {reason.threshold:.2f}"
            say(f"  {reason.category}: {reason.evidence or reason.code} ({measured}) -> {reason.action.value}")
    return decision.action is Action.BLOCK
