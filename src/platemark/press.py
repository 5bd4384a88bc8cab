"""The press: prompt → gate → pipeline → gate → stamp → record. The only road out for a picture.

Joins the four stages and adds nothing of its own. Knows no engine, detector, watermark or file format.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platemark.errors import InputError, RenderError
from platemark.imaging import encode, to_pil
from platemark.input_picture import Source, open_mask, open_picture
from platemark.logged_gate import LoggedGate
from platemark.models import embedded
from platemark.overlap import ahead
from platemark.provenance.home import home as default_home
from platemark.provenance.home import make_private
from platemark.provenance.record import Facts
from platemark.provenance.stamp import Stamp, open_stamp
from platemark.rendering import Noise, Proof, Watch, anew, enlarged, proofs
from platemark.results import FORMATS, Result
from platemark.runtime.bundle import MANIFEST, Bundle, open_bundle
from platemark.runtime.denoise import Control
from platemark.runtime.manifest import MergedLora
from platemark.runtime.pipeline import Pipeline
from platemark.runtime.request import GenerationRequest, UpscaleRequest
from platemark.runtime.upscale import COMPONENT as UPSCALER
from platemark.safety.assemble import gate_for_bundle
from platemark.safety.audit import AuditLog
from platemark.safety.audit_record import Subject
from platemark.safety.decision import Action, Decision
from platemark.safety.gate import Gate, apply_action
from platemark.safety.policy import load_policy
from platemark.safety.policy_model import Policy
from platemark.stamping import stamp_rules

if TYPE_CHECKING:
    from platemark.optimize.lora import Lora
    from platemark.optimize.lora_swap import Swap

__all__ = ["FORMATS", "Control", "Press", "Result", "Watch", "engine_cache", "gate_for", "load"]

Observer = Callable[[str], None]


class Press:
    """A loaded bundle with its gate and its stamp. Safe to share between threads; everything of a request is local to the call."""

    def __init__(self, pipeline: Pipeline, gate: Gate, stamp: Stamp, loras: Sequence[MergedLora] = ()) -> None:
        self.pipeline, self.gate, self.stamp = pipeline, gate, stamp
        self.loras = tuple(loras)
        self.log = AuditLog(stamp.home, gate.policy.audit)

    def with_loras(self, loras: Sequence[Lora]) -> Press:
        """A press whose weights have these LoRAs, and none that this one has; none: the bundle's own weights, bit for bit.

        This press stays as it is. Gate and stamp are shared. Raises `CheckpointError`, `InputError` (nothing of one fits the bundle).
        """
        from platemark.optimize.lora_swap import swap

        swapped = swap(self.pipeline.bundle, loras)
        return Press(self.pipeline.with_weights(swapped.weights), self.gate, self.stamp, swapped.reports)

    def generate(
        self,
        prompt: str,
        *,
        n: int = 1,
        seed: int | None = None,
        consent: str | None = None,
        image: Source | None = None,
        mask_image: Source | None = None,
        file_format: str = "png",
        watch: Watch | None = None,
        **settings: Any,
    ) -> list[Result]:
        """`n` pictures of `prompt`, image k with seed + k; a seed of None or -1 is drawn and reported.

        `settings` are those of `GenerationRequest`: `negative_prompt`, `num_inference_steps`, `guidance_scale`, `height`, `width`,
        `scheduler`, `strength`, …, and `style`, whose words the gate sees joined to the prompts. `image` (a path, a file's bytes, a uint8
        RGB array or a Pillow image) is what the pictures are made from, and becomes their C2PA ingredient; `mask_image` says where it is
        painted anew (128 and more of gray). Among the settings, `control_image` is brought in the same ways, for the bundle's ControlNet
        to see. The gate looks at both before anything is rendered. `consent` refers to the consent of the people concerned, and goes into
        log and record. `file_format` is `png`, `jpeg` or `webp`. `watch` hears stages and steps, and can end the request.

        Raises `InputError` (a setting out of range), `PolicyBlocked` (the prompt, or the input picture), `SafetyUnavailable`,
        `ProvenanceUnavailable`, `EngineError`, `Cancelled`, `DeadlineExceeded`; then nothing was released. There are always `n` results:
        a picture that the gate withholds, or that did not come out as one, stays in the list with `image=None`.
        """
        opened = None if image is None else open_picture(image)
        mask = None if mask_image is None else open_mask(mask_image)
        pixels, parent = (None, None) if opened is None else (opened.pixels, opened.data)
        if settings.get("control_image") is not None:
            settings["control_image"] = open_picture(settings["control_image"]).pixels
        request = self.admit(prompt, n=n, seed=seed, image=pixels, mask_image=mask, **settings)
        return list(self.run(request, file_format=file_format, consent=consent, parent=parent, watch=watch))

    def admit(self, prompt: str, *, n: int = 1, seed: int | None = None, **settings: Any) -> GenerationRequest:
        """The request, checked against its ranges and the policy, before any work. Arguments and errors as of `generate`.

        Only what keeps the request out is logged here: `run` decides anew, and logs that.
        """
        request = GenerationRequest.make(self.pipeline.bundle.manifest, prompt=prompt, n=n, seed=seed, **settings)
        self._logged.admit(request, self._subject(request))
        return request

    def run(
        self,
        request: GenerationRequest,
        *,
        file_format: str = "png",
        consent: str | None = None,
        parent: bytes | None = None,
        watch: Watch | None = None,
    ) -> Iterator[Result]:
        """The straight line. Pictures come out one by one, each once its decision is logged and its record committed.

        `parent`: the file that the request's `image` came from, with its credentials; None: the image itself, as PNG.

        While a picture is stamped the next is checked, and while a batch is checked the next is rendered. Errors as of `generate`, but
        pictures that came out before an error are released and recorded.
        """
        watch = watch or Watch()
        say = watch.on_stage
        if watch.previews and not self.gate.policy.previews:
            raise InputError(f"the policy {self.gate.policy.id!r} shows no previews", "leave them out, or use another policy")
        _check_format(file_format)
        say("check_prompt")
        subject = self._subject(request)
        decisions = self._admitted(request, subject, consent, say)
        parent = encode(request.image) if request.image is not None and parent is None else parent
        content_ids = [self.stamp.reserve() for _ in range(request.n)]
        say("reserved")
        say("render")
        wanted = watch.of_run()
        rendered = ahead(proofs(self.pipeline, request, content_ids, wanted, self._noise(request)))
        checked = ahead(self._check(rendered, subject, decisions, wanted))
        with closing(checked), wanted.control:
            for proof in checked:
                wanted.control.check()
                yield replace(self._release(proof, file_format, parent, say), request_id=subject.request_id)

    def upscale(
        self, image: Source, factor: int = 2, *, consent: str | None = None, file_format: str = "png", watch: Watch | None = None
    ) -> Result:
        """`image` enlarged by the bundle's upscaler, else by Lanczos: looked at, checked, marked and recorded like any other picture.

        Arguments and errors as of `generate`; there are no words to check. The file that it came from becomes the C2PA ingredient.
        """
        watch = watch or Watch()
        opened = open_picture(image)
        request = UpscaleRequest.of(opened.pixels, factor)
        _check_format(file_format)
        watch.on_stage("check_input_image")
        subject = self._subject(request)
        seen = self._logged.input_image(opened.pixels, subject, consent)
        content_id = self.stamp.reserve()
        watch.on_stage("render")
        proof = enlarged(self.pipeline, request, content_id, watch)
        watch.on_stage("check_image")
        proof = self._decided(proof, subject.of(0, request.seed, 0, content_id), (seen,))
        watch.control.check()
        return replace(self._release(proof, file_format, opened.data, watch.on_stage), request_id=subject.request_id)

    def _admitted(self, request: GenerationRequest, subject: Subject, consent: str | None, say: Observer) -> tuple[Decision, ...]:
        """The decisions that let the request go on: on its words, and on each picture that it brings."""
        words = self._logged.prompt(request, subject, consent)
        if request.brought:
            say("check_input_image")
        return (words, *(self._logged.input_image(picture, subject, consent, words) for picture in request.brought))

    def _noise(self, request: GenerationRequest) -> Noise | None:
        """The marked noise that a picture begins with, where the policy wants it and the picture begins with noise."""
        if not self._marks_noise(request):
            return None
        from platemark.provenance.watermark.inversion import latent_shape
        from platemark.provenance.watermark.latent import noise as latent_noise

        key = self.stamp.identity.watermark_key.watermark
        shape = latent_shape(self.pipeline.bundle, request.height, request.width)
        return lambda seed, content_id: latent_noise(seed, shape, content_id, key)

    def _marks_noise(self, request: GenerationRequest) -> bool:
        return self.gate.policy.provenance.latent_mark and request.image is None

    def _check(
        self, rendered: Generator[Proof, None, None], subject: Subject, earlier: tuple[Decision, ...], watch: Watch
    ) -> Iterator[Proof]:
        """The proofs with the gate's decision on each; rendered anew, with another seed, as often as the policy says."""
        tries, say = self.gate.policy.regenerate.max, watch.on_stage
        with closing(rendered):
            for proof in rendered:
                for attempt in range(tries + 1):
                    watch.control.check()
                    say("check_image")
                    proof = self._decided(proof, subject.of(proof.index, proof.request.seed, attempt, proof.content_id), earlier)
                    if attempt == tries or proof.decision is None or proof.decision.action is not Action.REGENERATE:
                        break
                    say("render")
                    proof = anew(self.pipeline, proof, watch, self._noise(proof.request))
                yield proof

    def _decided(self, proof: Proof, about: Subject, earlier: tuple[Decision, ...]) -> Proof:
        began = time.perf_counter()
        if proof.picture is None:
            if proof.error is not None:
                self._logged.render_failed(proof.error, about)
            return proof
        try:
            decision = self._logged.output_image(proof.picture, about, *earlier)
        except RenderError as error:
            return replace(proof, picture=None, error=error)
        return replace(proof, decision=decision, timings=proof.timings | {"check_image": _since(began)})

    def _release(self, proof: Proof, file_format: str, parent: bytes | None, say: Observer) -> Result:
        """Stamps what the decision lets out."""
        seed, timings, decision = proof.request.seed, dict(proof.timings), proof.decision
        delivered = None if proof.picture is None or decision is None else apply_action(proof.picture, decision)
        if delivered is None or decision is None:
            return Result(None, None, file_format, seed, decision, None, timings, proof.notes, proof.error)
        say("stamp")
        began = time.perf_counter()
        facts = self._facts(proof, decision)
        stamped = self.stamp.apply(delivered, facts, proof.content_id, file_format, parent=parent, on_stage=say)
        timings["stamp"] = _since(began)
        say("release")
        notes = (*proof.notes, *_lost(self.loras), *_unchecked(decision), *stamped.notes)
        return Result(to_pil(stamped.pixels), stamped.data, file_format, seed, decision, stamped.record, timings, notes)

    def _facts(self, proof: Proof, decision: Decision) -> Facts:
        bundle, request = self.pipeline.bundle, proof.request
        name, sha256, filtered = self._model(request)
        settings = request.settings() | ({} if request.upscale == 1 else {"upscale": f"{request.upscale} {filtered}"}) | _named(self.loras)
        brought = [hashlib.sha256(picture.tobytes()).hexdigest() for picture in request.brought]
        return Facts(
            model_name=name,
            model_sha256=sha256,
            bundle_sha256=bundle.sha256,
            seed=request.seed,
            request_hmac=self.stamp.request_hmac([request.prompt, request.negative_prompt, repr(settings), *brought]),
            settings=settings,
            resampled_from=proof.resampled_from,
            resampled_by=filtered,
            decision=decision.for_record(),
            operation=request.operation,
            prompt=request.prompt or None,
            negative_prompt=request.negative_prompt or None,
            face_count=decision.faces,
            consent_ref=decision.consent,
            latent_mark=self._marks_noise(request),
        )

    def _model(self, request: GenerationRequest) -> tuple[str, str, str]:
        """Name and weights of what made the picture, and what resampled it. A picture that is only enlarged was made by no generator."""
        bundle = self.pipeline.bundle
        card = bundle.manifest.upscaler if request.upscale > 1 else None
        filtered = "lanczos" if card is None else card.name
        if request.operation != "upscale":
            return bundle.manifest.name, bundle.weights_sha256, filtered
        return filtered, bundle.weights_sha256 if card is None else bundle.component_weights_sha256(UPSCALER), filtered

    @property
    def _logged(self) -> LoggedGate:
        return LoggedGate(self.gate, self.log)

    def _subject(self, request: GenerationRequest) -> Subject:
        texts = [request.prompt, request.negative_prompt]
        clear = " | ".join(texts) if self.gate.policy.audit.prompts_in_clear else None
        return Subject(request_id=secrets.token_hex(16), prompt_hmac=self.stamp.request_hmac(texts), prompt=clear)


def load(
    bundle: str | Path | None = None,
    *,
    policy: str | Path | None = None,
    home: str | Path | None = None,
    backend: str | None = None,
    memory_budget: int | None = None,
    loras: Sequence[Lora] = (),
) -> Press:
    """Opens a bundle (None: the embedded emoji model) with a policy (a preset's name or a TOML file; None: `standard`).

    `backend`: what computes (`runtime.backends.names()`); None: the one that the bundle was built for.
    `memory_budget`: bytes that the process may hold (None: what the system has left); a request that would take more is refused, or its
    pictures are decoded in tiles.
    `loras` (`optimize.lora.Lora`) change the weights while this press lives: see `Press.with_loras`.
    `home` is the state folder (keys, registry, audit log, compiled engines); None: `$PLATEMARK_HOME`, else the platform's user data folder.
    Raises `BundleError`, `PolicyError`, `SafetyUnavailable` (the policy needs a check that this bundle cannot have),
    `ProvenanceUnavailable` (keys expired or unreadable).
    """
    opened = open_bundle(Path(bundle) if bundle is not None else embedded())
    rules = load_policy(policy)
    place = Path(home) if home is not None else default_home()
    make_private(place)  # before anything else makes it, so that it is its owner's alone
    swapped = _swapped(opened, loras)
    changed = swapped.weights if swapped else None
    pipeline = Pipeline.load(opened, backend, cache=engine_cache(place), memory_budget=memory_budget, weights=changed)
    with ThreadPoolExecutor(2) as pool:  # engines compile without the interpreter lock, so the three overlap
        stamp = pool.submit(open_stamp, place, rules=stamp_rules(rules.provenance))
        gate = pool.submit(gate_for, opened, rules, place)
        pipeline.compile()
        return Press(pipeline, gate.result(), stamp.result(), swapped.reports if swapped else ())


def _swapped(bundle: Bundle, loras: Sequence[Lora]) -> Swap | None:
    if not loras:
        return None
    from platemark.optimize.lora_swap import swap

    return swap(bundle, loras)


def engine_cache(home: Path) -> Path:
    """The folder of the compiled engines below a state folder."""
    return home / "cache" / "engines"


def gate_for(bundle: Bundle, policy: Policy, home: Path) -> Gate:
    """The gate for this bundle, with its own image filter and the names it knows as the vocabulary to tell concepts from.

    Raises `SafetyUnavailable`.
    """
    own = json.loads((embedded() / MANIFEST).read_bytes())["source"]["weights"]
    built_in = bundle.manifest.source.weights == own
    return gate_for_bundle(policy, bundle, built_in=built_in, cache_folder=home / "cache")


def _check_format(file_format: str) -> None:
    if file_format not in FORMATS.values():
        raise InputError(f"cannot write the format {str(file_format)[:20]!r}", f"use {', '.join(dict.fromkeys(FORMATS.values()))}")


def _named(loras: Sequence[MergedLora]) -> dict[str, str]:
    """The LoRAs as a record holds them: file, scale and the start of the file's SHA-256."""
    return {"loras": ", ".join(f"{one.file}:{one.scale:g} ({one.sha256[:12]})" for one in loras)} if loras else {}


def _lost(loras: Sequence[MergedLora]) -> tuple[str, ...]:
    """In a sentence each, what of a LoRA this bundle has no place for."""
    return tuple(f"{one.file}: {one.applied} weights changed, no place for {', '.join(one.unmatched)}" for one in loras if one.unmatched)


def _unchecked(decision: Decision) -> tuple[str, ...]:
    """In a sentence, what the policy asks for and this bundle cannot check."""
    missing = ", ".join(decision.unchecked)
    return (f"not checked in the picture, since the bundle has no image filter that knows it: {missing}",) if missing else ()


def _since(began: float) -> float:
    return round((time.perf_counter() - began) * 1000, 2)
