"""What a bundle's pictures show for neutral prompts, and whom its filters stop for nothing.

The pictures are rendered, read, checked and dropped: none leaves. The audit log is not written, as nobody asked for a picture.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from platemark.bench.attributes import NONE, AttributeReader
from platemark.bench.bias_data import Attributes, load_attributes, load_benign
from platemark.bench.energy import Meter, open_meter
from platemark.bench.machine import Machine, this_machine
from platemark.bench.picture_rates import Picture, PictureRates, picture_rates
from platemark.bench.prompt_rates import PromptRates, prompt_rates
from platemark.bench.statistics import Data, Share, share
from platemark.errors import InputError, RenderError
from platemark.models import embedded
from platemark.press import gate_for
from platemark.runtime.bundle import Bundle, open_bundle
from platemark.runtime.noise import SEEDS, image_seed
from platemark.runtime.pipeline import Pipeline
from platemark.runtime.request import MAX_IMAGES, GenerationRequest
from platemark.safety.assemble import gate_for_texts
from platemark.safety.clip import ClipModel
from platemark.safety.detectors.clip_files import GENERAL
from platemark.safety.detectors.clip_loading import clip_of_bundle, clip_of_folder, domain_of, knows
from platemark.safety.gate import Gate
from platemark.safety.policy import load_policy
from platemark.safety.policy_model import Policy

OnDone = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Plan:
    """`images` a neutral prompt, picture k with `seed` + k. `attributes`, `benign`: a user's own files. Raises `InputError`."""

    images: int = 8
    seed: int = 0
    steps: int | None = None
    attributes: Path | None = None
    benign: Path | None = None
    prompts_only: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.images <= MAX_IMAGES:
            raise InputError("images is out of range", f"give a whole number from 1 to {MAX_IMAGES}")
        if not 0 <= self.seed < SEEDS:
            raise InputError("seed is out of range", "give a whole number from 0 to 2^64-1: a measurement is to be repeatable")


class Shown(Data):
    """One attribute over all pictures: value → share of them, and the counts of each prompt. `none of these` is a value too."""

    values: dict[str, Share]
    by_prompt: dict[str, dict[str, int]]


class AttributeReport(Data):
    """`clip_domain`: what pictures the CLIP knows. `unknown`: groups that it has no words for, with those words: not measured.

    `names`: prompt → likeliest name, out of those that the model was trained on, → pictures; empty where the names are not known.
    """

    clip_domain: str
    prompts: tuple[str, ...]
    pictures: int
    groups: dict[str, Shown]
    names: dict[str, dict[str, int]]
    unknown: dict[str, tuple[str, ...]]


class BiasReport(Data):
    """`attributes`: None where nothing could be read; `pictures`: the image check on the pictures made; `notes` say what is missing, and
    what the figures cannot show. `energy_j` is of the whole measurement."""

    bench: Literal["bias"] = "bias"
    format_version: Literal[1] = 1
    machine: Machine
    bundle: str
    bundle_sha256: str
    domain: str
    policy: str
    policy_sha256: str
    settings: dict[str, str]
    prompt_check: PromptRates
    attributes: AttributeReport | None
    picture_check: PictureRates | None
    notes: tuple[str, ...]
    energy_j: float | None
    energy_source: str
    energy_meters: dict[str, float]


def measure(
    bundle: Path | None = None, policy: str | Path | None = None, plan: Plan | None = None, *, meter: Meter | None = None,
    on_done: OnDone | None = None,
) -> BiasReport:  # fmt: skip
    """Measures a bundle (None: the embedded model) under a policy (None: `standard`). `on_done(what, done, total)` hears the progress.

    Raises `InputError`, `BundleError`, `PolicyError`, `SafetyUnavailable`, `EngineError`.
    """
    plan, hear, meter = plan or Plan(), on_done or (lambda what, done, total: None), meter or open_meter()
    opened, rules = open_bundle(bundle if bundle is not None else embedded()), load_policy(policy)
    domain = domain_of(opened)
    benign = load_benign(plan.benign)
    attributes = None if plan.prompts_only else load_attributes(domain, plan.attributes)
    meter.start()
    words = prompt_rates(gate_for_texts(rules), benign, lambda done, total: hear("prompts", done, total))
    pictures, shown, settings = (None, None, {}) if attributes is None else _pictures(opened, rules, attributes, plan, hear)
    meter.stop()
    return BiasReport(
        machine=this_machine(),
        bundle=opened.manifest.name,
        bundle_sha256=opened.sha256,
        domain=domain,
        policy=rules.id,
        policy_sha256=rules.sha256,
        settings=settings,
        prompt_check=words,
        attributes=shown,
        picture_check=pictures,
        notes=_notes(shown, plan),
        **meter.total().model_dump(),
    )


def _pictures(
    bundle: Bundle, rules: Policy, attributes: Attributes, plan: Plan, hear: OnDone
) -> tuple[PictureRates, AttributeReport | None, dict[str, str]]:
    """Renders, reads and checks the pictures of the neutral prompts."""
    model = _clip(bundle, rules)
    reader = None if model is None else AttributeReader(model, attributes, bundle.names())
    with tempfile.TemporaryDirectory(prefix="platemark-bench-", ignore_cleanup_errors=True) as folder:
        gate, pipeline = gate_for(bundle, rules, Path(folder)), Pipeline.load(bundle)
        requests = [_request(bundle, prompt, plan, k) for prompt in attributes.prompts for k in range(plan.images)]
        made = []
        for number, request in enumerate(requests):
            made.append(_made(pipeline, gate, reader, request))
            hear("pictures", number + 1, len(requests))
    shown = None if reader is None or model is None else _shown(reader, model, attributes, made)
    settings = {**requests[0].settings(), "images_per_prompt": str(plan.images), "seed": str(plan.seed)}
    return picture_rates(gate, made, () if reader is None else tuple(reader.groups)), shown, settings


def _request(bundle: Bundle, prompt: str, plan: Plan, k: int) -> GenerationRequest:
    seed = image_seed(plan.seed, k)
    return GenerationRequest.make(bundle.manifest, prompt=prompt, seed=seed, num_inference_steps=plan.steps)


def _made(pipeline: Pipeline, gate: Gate, reader: AttributeReader | None, request: GenerationRequest) -> Picture:
    words = gate.check_prompt(request.prompt)
    if not words.allowed:
        return Picture(request.prompt, "prompt_blocked", None, {})
    try:
        image = pipeline.generate(request).images[0]
        decision = gate.check_output_image(image, words)
    except RenderError:
        return Picture(request.prompt, "render_error", None, {})
    shows, name = ({}, None) if reader is None else reader.read(image)
    return Picture(request.prompt, "made", decision, shows, name)


def _clip(bundle: Bundle, rules: Policy) -> ClipModel | None:
    """The CLIP that the policy names, else the bundle's; None where there is none that knows what the bundle draws."""
    if rules.clip_path is not None:
        model = clip_of_folder(Path(rules.clip_path))
    elif "clip_image" in bundle.manifest.components:
        model = clip_of_bundle(bundle)
    else:
        return None
    return model if knows(model.preprocess.domain, domain_of(bundle)) else None


def _shown(reader: AttributeReader, model: ClipModel, attributes: Attributes, made: list[Picture]) -> AttributeReport:
    pictures = [one for one in made if one.state == "made"]
    groups = {}
    for name, values in reader.groups.items():
        counts = Counter(one.shows[name] for one in pictures)
        by_prompt = {prompt: dict(Counter(one.shows[name] for one in pictures if one.prompt == prompt)) for prompt in attributes.prompts}
        groups[name] = Shown(values={value: share(counts[value], len(pictures)) for value in values}, by_prompt=by_prompt)
    named = {prompt: [one.name for one in pictures if one.prompt == prompt and one.name] for prompt in attributes.prompts}
    return AttributeReport(
        clip_domain=model.preprocess.domain,
        prompts=attributes.prompts,
        pictures=len(pictures),
        groups=groups,
        names={prompt: dict(Counter(names).most_common()) for prompt, names in named.items() if names},
        unknown=reader.unknown,
    )


def _notes(shown: AttributeReport | None, plan: Plan) -> tuple[str, ...]:
    """What a reader of the figures must know."""
    notes = ["the prompts are harmless by construction, so the rates say whom the filters stop for nothing, and not what they miss"]
    if plan.prompts_only:
        return (*notes, "no pictures were made: only the prompt check was measured")
    if shown is None:
        return (*notes, "attributes were not measured: neither the bundle nor the policy has a CLIP that knows these pictures")
    notes.append(f"attributes are read zero-shot by a CLIP, whose own biases are in them; a picture counts as '{NONE}' where it shows none")
    if shown.clip_domain != GENERAL:
        notes.append(f"this CLIP knows {shown.clip_domain} pictures and the names that it was trained on, and nothing else")
    if shown.unknown:
        notes.append(f"not measured, since this CLIP has no words for it: {', '.join(shown.unknown)}")
    return tuple(notes)
