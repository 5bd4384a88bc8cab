"""One run's time, split by stage, and what of it is spent outside the engines. Knows clocks, and runs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from platemark.bench.clocks import Stages
from platemark.bench.statistics import Data, Spread, spread
from platemark.errors import EngineError
from platemark.results import Result

Engines = Mapping[str, tuple[float, int]]  # component → milliseconds in the engine, calls


@dataclass(frozen=True)
class RunTimes:
    """Milliseconds of one request. `stages`: by name, in the order of the road; `outside`: what of them no engine computed.

    Stages:
    `check_prompt` (twice: on admission and on running), `tokenize` and `text` (the texts and their engine), `prepare` (noise, hand-over),
    `denoise`, `decode`, `resize`, `check_image`, `mark`, `encode` (PNG), `sign` (also reading back), `record`, and `other`: what is left
    of the latency. Where a request has several pictures, stages overlap, and `other` is None.
    """

    latency: float
    stages: dict[str, float]
    outside: dict[str, float]


class Breakdown(Data):
    """Time outside the engines, per run, and its share of the denoise time: the sum over all runs of both.

    `parts_ms`: tokenizing, samplers and guidance, batching and noise, the pictures' arithmetic around the decoder, resizing, PNG.
    `checks_and_provenance_ms` is beside it and not in it: prompt and image checks, marking, signing, recording.
    """

    parts_ms: dict[str, Spread]
    outside_ms: Spread
    denoise_ms: Spread
    share_of_denoise: float
    checks_and_provenance_ms: Spread


def run_times(latency: float, admission: float, heard: Stages, results: Sequence[Result], engines: Engines, encode: float) -> RunTimes:
    """`admission`: of checking the request before it runs. `encode`: of the run's PNG files, taken out of `sign`.

    Raises `EngineError` where an engine's time cannot be told.
    """
    timings = results[0].timings  # one batch: its pictures share the render's timings
    text, unet = _sum(engines, "text_encoder", "text_encoder_2"), _sum(engines, "unet", "controlnet")
    decoder = _sum(engines, "vae_decoder")
    if unet[1] == 0 or decoder[1] == 0:
        raise EngineError("the engines ran past their clocks", "report this with the backend in use")
    rendered = heard.until("render", "check_image") or 0.0
    prepare = max(0.0, rendered - sum(timings[name] for name in ("text_encoder", "denoise", "vae_decoder", "resize")))
    mark = heard.between("stamp", "marked") + heard.between("marked", "marked")
    sign = heard.between("marked", "signed") + heard.between("stamp", "signed")
    stages = {
        "check_prompt": admission + heard.between("check_prompt", "reserved"),
        "tokenize": max(0.0, timings["text_encoder"] - text[0]),
        "text": text[0],
        "prepare": prepare,
        "denoise": timings["denoise"],
        "decode": timings["vae_decoder"],
        "resize": timings["resize"],
        "check_image": sum(result.timings["check_image"] for result in results),
        "mark": mark,
        "encode": encode,
        "sign": max(0.0, sign - encode),
        "record": heard.between("signed", "recorded"),
    }
    if len(results) == 1:
        stages["other"] = max(0.0, latency - sum(stages.values()))
    outside = {
        "tokenize": stages["tokenize"],
        "sampler_and_guidance": max(0.0, timings["denoise"] - unet[0]),
        "noise_and_batching": prepare,
        "around_the_decoder": max(0.0, timings["vae_decoder"] - decoder[0]),
        "resize": stages["resize"],
        "png": encode,
    }
    return RunTimes(latency, stages, outside)


def _sum(engines: Engines, *names: str) -> tuple[float, int]:
    """Milliseconds and calls of several components."""
    found = [engines[name] for name in names if name in engines]
    return sum(time for time, _ in found), sum(calls for _, calls in found)


def breakdown(times: Sequence[RunTimes]) -> Breakdown:
    """Of at least one run."""
    sums = [sum(one.outside.values()) for one in times]
    denoise = [one.stages["denoise"] for one in times]
    names = ("check_prompt", "check_image", "mark", "sign", "record")
    return Breakdown(
        parts_ms={name: spread([one.outside[name] for one in times]) for name in times[0].outside},
        outside_ms=spread(sums),
        denoise_ms=spread(denoise),
        share_of_denoise=round(sum(sums) / sum(denoise), 6),
        checks_and_provenance_ms=spread([sum(one.stages[name] for name in names) for one in times]),
    )
