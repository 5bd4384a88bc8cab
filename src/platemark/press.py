"""The press: prompt → gate → pipeline → gate → stamp → record. The only road out for a picture.

Joins the four stages and adds nothing of its own. Knows no engine, detector, watermark or file format.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from platemark.errors import InputError, PolicyBlocked
from platemark.imaging import to_pil
from platemark.models import embedded
from platemark.provenance.files import write_atomically
from platemark.provenance.home import home as default_home
from platemark.provenance.home import make_private
from platemark.provenance.record import Facts, ProvenanceRecord
from platemark.provenance.stamp import Stamp, open_stamp
from platemark.runtime.bundle import Bundle, open_bundle
from platemark.runtime.pipeline import Pipeline
from platemark.runtime.request import GenerationRequest
from platemark.safety.decision import Action, Decision
from platemark.safety.gate import Gate, apply_action, gate_for_bundle
from platemark.safety.policy import Policy, load_policy

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}  # suffix → format
_NEXT_SEED = 0x9E3779B9
Observer = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """One picture of a request, or the decision that withheld it.

    `data` holds the stamped file (marked, signed, recorded); `image` the same pixels as a PIL image. Both are None where `decision`
    blocked the picture. `timings` are milliseconds by stage; `notes` say, in sentences, what of the request could not be used. The
    guarantee is about `data`: an image saved anew from `image` keeps the watermark but not the signature.
    """

    image: Image | None
    data: bytes | None
    file_format: str
    seed: int
    decision: Decision
    provenance: ProvenanceRecord | None
    timings: dict[str, float]
    notes: tuple[str, ...] = ()

    def save(self, path: str | Path) -> None:
        """Writes the stamped file: whole or not at all.

        Raises `PolicyBlocked` where there is none, and `InputError` where the path's suffix names another format.
        """
        if self.data is None:
            raise PolicyBlocked("the policy withheld this picture", "read `decision.reasons`; nothing was written", self.decision)
        if FORMATS.get(Path(path).suffix.lower()) != self.file_format:
            raise InputError(
                f"the picture is a {self.file_format.upper()} file, and {Path(path).name!r} says otherwise",
                f"save it with another suffix, or generate with file_format={FORMATS.get(Path(path).suffix.lower(), 'png')!r}",
            )
        write_atomically(Path(path), self.data)


class Press:
    """A loaded bundle with its gate and its stamp. Safe to share between threads; everything of a request is local to the call."""

    def __init__(self, pipeline: Pipeline, gate: Gate, stamp: Stamp) -> None:
        self.pipeline, self.gate, self.stamp = pipeline, gate, stamp

    def generate(
        self,
        prompt: str,
        *,
        n: int = 1,
        seed: int | None = None,
        file_format: str = "png",
        on_stage: Observer | None = None,
        on_step: Callable[[int, int], None] | None = None,
        **settings: Any,
    ) -> list[Result]:
        """`n` pictures of `prompt`, image k with seed + k; a seed of None or -1 is drawn and reported.

        `settings` are those of `GenerationRequest`: `negative_prompt`, `num_inference_steps`, `guidance_scale`, `height`, `width`,
        `scheduler`. `file_format` is `png`, `jpeg` or `webp`. `on_stage` hears the name of each stage as it begins.

        Raises `InputError` (a setting out of range), `PolicyBlocked` (the prompt), `SafetyUnavailable`, `ProvenanceUnavailable`,
        `EngineError`; then nothing was released. A picture that the gate withholds stays in the list with `image=None`.
        """
        request = self.admit(prompt, n=n, seed=seed, **settings)
        return list(self.run(request, file_format=file_format, on_stage=on_stage, on_step=on_step))

    def admit(self, prompt: str, *, n: int = 1, seed: int | None = None, **settings: Any) -> GenerationRequest:
        """The request, checked against its ranges and the policy, before any work. Arguments and errors as of `generate`."""
        request = GenerationRequest.make(self.pipeline.bundle.manifest, prompt=prompt, n=n, seed=seed, **settings)
        self._check_prompt(request)
        return request

    def run(
        self,
        request: GenerationRequest,
        *,
        file_format: str = "png",
        on_stage: Observer | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Iterator[Result]:
        """The straight line. Pictures come out one by one, each once its record is committed; all are checked before the first is stamped.

        Errors as of `generate`, but pictures that came out before an error are released and recorded.
        """
        say = on_stage or (lambda stage: None)
        if file_format not in FORMATS.values():
            raise InputError(f"cannot write the format {str(file_format)[:20]!r}", f"use {', '.join(dict.fromkeys(FORMATS.values()))}")
        say("check_prompt")
        self._check_prompt(request)
        content_ids = [self.stamp.reserve() for _ in range(request.n)]
        say("reserved")
        say("render")
        output = self.pipeline.generate(request, on_step=on_step)
        proofs = [
            self._check_image(_Proof(replace(request, n=1, seed=output.seeds[k]), picture, dict(output.timings)), say)
            for k, picture in enumerate(output.images)
        ]
        for content_id, (proof, decision) in zip(content_ids, proofs, strict=True):
            yield replace(self._release(proof, decision, content_id, file_format, say), notes=output.notes)

    def _check_prompt(self, request: GenerationRequest) -> None:
        decision = self.gate.check_prompt(request.prompt, request.negative_prompt)
        if not decision.allowed:
            reasons = ", ".join(sorted({f"{r.category} ({r.code})" for r in decision.reasons if r.action is decision.action}))
            message = f"the policy '{decision.policy_id}' blocks this prompt: {reasons}"
            raise PolicyBlocked(message, "rephrase it, or use another policy", decision)

    def _check_image(self, proof: _Proof, say: Observer) -> tuple[_Proof, Decision]:
        """The gate's decision on one picture; renders it anew, with another seed, as often as the policy says."""
        for attempt in range(self.gate.policy.regenerate.max + 1):
            say("check_image")
            began = time.perf_counter()
            decision = self.gate.check_image(proof.picture)
            proof.timings["check_image"] = _since(began)
            if decision.action is not Action.REGENERATE or attempt == self.gate.policy.regenerate.max:
                break
            say("render")
            # Far from the seeds of the request's other pictures, and the same on every run; the noise knows the low 32 bits only.
            request = replace(proof.request, seed=(proof.request.seed + _NEXT_SEED) % 2**64)
            output = self.pipeline.generate(request)
            proof = _Proof(request, output.images[0], dict(output.timings))
        return proof, decision

    def _release(self, proof: _Proof, decision: Decision, content_id: int, file_format: str, say: Observer) -> Result:
        """Stamps what the decision lets out."""
        seed, timings = proof.request.seed, proof.timings
        delivered = apply_action(proof.picture, decision)
        if delivered is None:
            return Result(None, None, file_format, seed, decision, None, timings)
        say("stamp")
        began = time.perf_counter()
        facts = self._facts(proof.request, delivered, decision)
        stamped = self.stamp.apply(delivered, facts, content_id, file_format, on_stage=say)
        timings["stamp"] = _since(began)
        say("release")
        return Result(to_pil(stamped.pixels), stamped.data, file_format, seed, decision, stamped.record, timings)

    def _facts(self, request: GenerationRequest, picture: NDArray[np.uint8], decision: Decision) -> Facts:
        bundle = self.pipeline.bundle
        native, size = bundle.manifest.native_size, (picture.shape[0], picture.shape[1])
        return Facts(
            model_name=bundle.manifest.name,
            model_sha256=bundle.weights_sha256,
            bundle_sha256=bundle.sha256,
            seed=request.seed,
            request_hmac=self.stamp.request_hmac([request.prompt, request.negative_prompt, repr(request.settings())]),
            settings=request.settings(),
            resampled_from=None if native == size else native,
            decision=decision.as_dict(),
        )


@dataclass(frozen=True)
class _Proof:
    """A rendered picture before the stamp: unchecked or just checked, and never handed out."""

    request: GenerationRequest
    picture: NDArray[np.uint8]
    timings: dict[str, float]


def load(
    bundle: str | Path | None = None,
    *,
    policy: str | Path | None = None,
    home: str | Path | None = None,
    backend: str = "onnxruntime",
) -> Press:
    """Opens a bundle (None: the embedded emoji model) with a policy (a preset's name or a TOML file; None: `standard`).

    `home` is the state folder (keys, registry); None: `$PLATEMARK_HOME`, else the platform's user data folder.
    Raises `BundleError`, `PolicyError`, `SafetyUnavailable` (the policy needs a check that this bundle cannot have),
    `ProvenanceUnavailable` (keys expired or unreadable).
    """
    opened = open_bundle(Path(bundle) if bundle is not None else embedded())
    rules = load_policy(policy)
    place = Path(home) if home is not None else default_home()
    make_private(place)  # before anything else makes it, so that it is its owner's alone
    pipeline = Pipeline.load(opened, backend)
    with ThreadPoolExecutor(2) as pool:  # engines compile without the interpreter lock, so the three overlap
        stamp = pool.submit(open_stamp, place, require_watermark=rules.provenance.require_watermark)
        gate = pool.submit(gate_for, opened, rules, place)
        pipeline.compile()
        return Press(pipeline, gate.result(), stamp.result())


def gate_for(bundle: Bundle, policy: Policy, home: Path) -> Gate:
    """The gate for this bundle: its own CLIP as image filter, with the names it knows as the vocabulary to tell concepts from.

    Raises `SafetyUnavailable` and `BundleError`.
    """
    return gate_for_bundle(policy, bundle, cache_folder=home / "cache")


def _since(began: float) -> float:
    return round((time.perf_counter() - began) * 1000, 2)
