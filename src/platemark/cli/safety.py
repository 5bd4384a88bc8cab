"""`platemark safety`: what the gate decides, why, and the log of what it decided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from platemark.cli.output import emit, json_option, say
from platemark.errors import PolicyBlocked

policy_option = click.option("--policy", metavar="NAME|FILE", help="strict, standard, research, or a TOML file. [default: standard]")
bundle_option = click.option("--bundle", type=click.Path(path_type=Path), help="A bundle folder. [default: the embedded emoji model]")
image_type = click.Path(path_type=Path)


@click.group("safety")
def command() -> None:
    """Explain the gate's decisions, and read its audit log."""


@command.command("check")
@click.option("--prompt", "prompts", metavar="TEXT", multiple=True, help="A prompt to decide on (may be repeated).")
@click.option("--negative", default="", metavar="TEXT", help="The negative prompt that goes with each prompt.")
@click.option("--image", "images", metavar="FILE", multiple=True, type=image_type, help="A rendered picture (may be repeated).")
@click.option("--input-image", "inputs", metavar="FILE", multiple=True, type=image_type, help="A picture that a user brings.")
@click.option("--consent", metavar="REF", help="Refers to the consent of the people in the input image.")
@policy_option
@bundle_option
@json_option
def check(policy: str | None, bundle: Path | None, as_json: bool, **asked: Any) -> int:
    """Say what the gate would do with prompts and pictures, and why.

    Prompts and input images given together are decided on as one request. Exit code 3 where it would block.
    """
    from platemark.explain import Question, decisions

    question = Question(**asked)
    blocked = False
    for kind, subject, decision in decisions(question, policy, bundle):
        blocked |= not decision.allowed
        if as_json:
            emit({kind: subject, **decision.as_dict()})
            continue
        say(f"{decision.action.value}  {subject}")
        for reason in decision.reasons:
            measured = f"{reason.detector}, {reason.score:.2f} of {reason.threshold:.2f}"
            say(f"  {reason.category}: {reason.evidence or reason.code} ({measured}) -> {reason.action.value}, by {reason.rule}")
    return PolicyBlocked.exit_code if blocked else 0


@command.command("explain")
@click.argument("subject", metavar="PROMPT|IMAGE")
@click.option("--negative", default="", metavar="TEXT", help="The negative prompt that goes with the prompt.")
@click.option("--input-image", "as_input", is_flag=True, help="IMAGE is one that a user brings, or PROMPT goes with one.")
@click.option("--consent", metavar="REF", help="Refers to the consent of the people in the input image.")
@policy_option
@bundle_option
@json_option
def explain(subject: str, policy: str | None, bundle: Path | None, as_json: bool, **asked: Any) -> int:
    """Show every score, threshold, rule and the outcome for a prompt or a picture.

    What names a file is taken as a picture, all else as a prompt. Always exits with 0 where the question could be answered.
    """
    from platemark.explain import explained, lines

    answer = explained(subject, policy, bundle, **asked)
    if as_json:
        emit(answer)
    else:
        for line in lines(answer):
            say(line)
    return 0


@command.group("audit")
def audit() -> None:
    """Verify and search the log of decisions."""


@audit.command("verify")
@json_option
def verify(as_json: bool) -> int:
    """Follow the log's chain from its first record to its head.

    Exit code 1 where it is not what was written; the file and line are named.
    """
    from platemark.explain import audit_log

    report = audit_log().verify()
    if as_json:
        emit(report.as_dict())
    elif report.problem:
        say(f"not intact: {report.problem}")
    else:
        sealed = f", {report.sealed} torn line(s) sealed" if report.sealed else ""
        say(f"intact: {report.records} records from number {report.first_seq} on, in {report.segments} file(s){sealed}")
        say(f"head    {report.last}")
    return 0 if report.intact else 1


@audit.command("search")
@click.option("--request", metavar="ID", help="One request.")
@click.option("--action", type=click.Choice(["allow", "flag", "blur", "regenerate", "block"]), help="What was decided.")
@click.option("--category", metavar="NAME", help="The category that decided.")
@click.option("--stage", type=click.Choice(["prompt", "negative_prompt", "input_image", "output_image"]), help="What was looked at.")
@click.option("--image", type=image_type, help="Records of pictures that look like this one, by perceptual hash.")
@click.option("--since", metavar="TIME", help="Not before this date or time.")
@click.option("--until", metavar="TIME", help="Before this date or time.")
@click.option("--limit", type=click.IntRange(1), help="The last records only.")
@json_option
def search(as_json: bool, **asked: Any) -> int:
    """List records, oldest first."""
    from platemark.explain import found, headline

    for record in found(**asked):
        if as_json:
            emit(record)
        else:
            say(headline(record))
    return 0
