"""A bias report as text for people. The report itself holds more, each hit among it, and `--json` shows all of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from platemark.bench.bias import AttributeReport, BiasReport
from platemark.bench.picture_rates import PictureRates
from platemark.bench.prompt_rates import PromptRates
from platemark.bench.statistics import Share

_WIDTH = 32


def bias_lines(report: BiasReport) -> Iterator[str]:
    """The tables of `platemark bench bias`."""
    yield f"{report.bundle} ({report.domain} pictures), policy {report.policy} ({report.policy_sha256[:12]})"
    yield str(report.machine)
    if report.settings:
        yield ", ".join(f"{name} {value}" for name, value in report.settings.items())
    yield ""
    yield from _prompts(report.prompt_check)
    if report.attributes is not None:
        yield from _attributes(report.attributes)
    if report.picture_check is not None:
        yield from _pictures(report.picture_check)
    yield from (f"note: {note}" for note in report.notes)
    energy = "unknown" if report.energy_j is None else f"{report.energy_j:.1f} J"
    yield f"energy: {energy} ({report.energy_source})"


def _prompts(found: PromptRates) -> Iterator[str]:
    yield f"prompt check ({', '.join(found.detectors)}): harmless prompts that were stopped"
    yield _head()
    yield _row("all", found.overall)
    yield _row("let through with a flag", found.flagged)
    for title, rates in (("language", found.by_language), ("kind of group", found.by_axis), ("group", found.by_group)):
        yield from _rates(title, rates)
    yield from _stopped("scenes with any", found.by_scene)
    if found.by_category:
        yield "by category: " + ", ".join(f"{name} {count}" for name, count in found.by_category.items())
    yield ""


def _attributes(shown: AttributeReport) -> Iterator[str]:
    yield f"what {shown.pictures} pictures of {len(shown.prompts)} neutral prompts show, by a CLIP that knows {shown.clip_domain} pictures"
    yield _head()
    for name, group in shown.groups.items():
        yield from _rates(name, group.values)
    if shown.names:
        yield "likeliest of the names that the model was trained on"
    for prompt, counts in shown.names.items():
        yield f"  {prompt:{_WIDTH - 2}} " + ", ".join(f"{name} {count}" for name, count in counts.items())
    for name, texts in shown.unknown.items():
        yield f"{name}: not measured, this CLIP does not know {', '.join(repr(text) for text in texts)}"
    yield ""


def _pictures(found: PictureRates) -> Iterator[str]:
    yield f"image check ({', '.join(found.detectors)}): pictures of neutral prompts that were stopped"
    yield _head()
    yield _row("all", found.overall)
    yield _row("let through with a flag", found.flagged)
    yield from _stopped("prompts with any", found.by_prompt)
    for group, rates in found.by_attribute.items():
        yield from _rates(group, rates)
    if found.by_category:
        yield "by category: " + ", ".join(f"{name} {count}" for name, count in found.by_category.items())
    if found.prompts_blocked or found.render_errors:
        yield f"never made: {found.prompts_blocked} by the prompt check, {found.render_errors} that did not come out as a picture"
    if found.unchecked:
        yield f"not checked, as nobody here can: {', '.join(found.unchecked)}"
    yield ""


def _rates(title: str, rates: Mapping[str, Share]) -> Iterator[str]:
    yield f"{title}"
    yield from (_row(f"  {name}", rate) for name, rate in rates.items())


def _stopped(title: str, rates: Mapping[str, Share]) -> Iterator[str]:
    """Only the rows where anything was stopped; nothing where there are none."""
    some = {name: rate for name, rate in rates.items() if rate.count}
    if some:
        yield from _rates(title, some)


def _head() -> str:
    return f"{'':{_WIDTH}} {'count':>6} {'of':>6} {'share':>8}   95 % interval"


def _row(name: str, one: Share) -> str:
    if one.share is None or one.low is None or one.high is None:
        return f"{name:{_WIDTH}} {one.count:6} {one.n:6} {'-':>8}"
    return f"{name:{_WIDTH}} {one.count:6} {one.n:6} {100 * one.share:6.1f} %   {100 * one.low:.1f} to {100 * one.high:.1f} %"
