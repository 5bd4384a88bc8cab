"""The press: prompt → gate → pipeline → gate → stamp → record. The only road out for a picture.

Joins the four stages and adds nothing of its own. Knows no engine, detector, watermark or file format.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from platemark.errors import PolicyBlocked
from platemark.imaging import to_pil
from platemark.models import embedded
from platemark.provenance.files import write_atomically
from platemark.provenance.home import home as default_home
from platemark.provenance.record import Facts, ProvenanceRecord
from platemark.provenance.stamp import Stamp, Stamped, open_stamp
from platemark.runtime.bundle import Bundle, open_bundle
from platemark.runtime.pipeline import Pipeline
from platemark.runtime.request import GenerationRequest
from platemark.safety.decision import Action, Decision
from platemark.safety.gate import Gate, apply_action, gate_for_folder
from platemark.safety.policy import Policy, load_policy

if TYPE_CHECKING:
    from PIL.Image import Image

_NEXT_SEED = 0x9E3779B9
_NAMES = "names.txt"  # beside the bundle's manifest: what the bundle's CLIP was trained on, one name a line
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
    seed: int
    decision: Decision
    provenance: ProvenanceRecord | None
    timings: dict[str, float]
    notes: tuple[str, ...] = ()

    def save(self, path: str | Path) -> None:
        """Writes the stamped file: whole or not at all. Raises `PolicyBlocked` where there is none."""
        if self.data is None:
            raise PolicyBlocked("the policy withheld this picture", "read `decision.reasons`; nothing was written", self.decision)
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
        say = on_stage or (lambda stage: None)
        request = GenerationRequest.make(self.pipeline.bundle.manifest, prompt=prompt, n=n, seed=seed, **settings)
        say("check_prompt")
        self._pass_prompt(request)
        results = []
        say("render")
        output = self.pipeline.generate(request, on_step=on_step)
        notes = tuple(_cut(one.field, one.tokens) for one in output.truncated)
        for k, picture in enumerate(output.images):
            one = replace(request, n=1, seed=output.seeds[k])
            results.append(replace(self._release(one, picture, dict(output.timings), file_format, say), notes=notes))
        return results

    def _pass_prompt(self, request: GenerationRequest) -> None:
        decision = self.gate.check_prompt(request.prompt, request.negative_prompt)
        if not decision.allowed:
            reasons = ", ".join(sorted({f"{r.category} ({r.code})" for r in decision.reasons if r.action is decision.action}))
            raise PolicyBlocked(
                f"the policy '{decision.policy_id}' blocks this prompt: {reasons}", "rephrase it, or use another policy", decision
            )

    def _release(
        self, request: GenerationRequest, picture: NDArray[np.uint8], timings: dict[str, float], file_format: str, say: Observer
    ) -> Result:
        """Gate, then stamp, one picture; renders it anew with the next free seeds where the policy says so."""
        for attempt in range(self.gate.policy.regenerate.max + 1):
            say("check_image")
            began = time.perf_counter()
            decision = self.gate.check_image(picture)
            timings["check_image"] = _since(began)
            if decision.action is not Action.REGENERATE or attempt == self.gate.policy.regenerate.max:
                break
            say("render")
            # Far from the seeds of the request's other pictures, and the same on every run; the noise knows the low 32 bits only.
            request = replace(request, seed=(request.seed + _NEXT_SEED) % 2**64)
            picture = self.pipeline.generate(request).images[0]
        delivered = apply_action(picture, decision)
        if delivered is None:
            return Result(None, None, request.seed, decision, None, timings)
        say("stamp")
        began = time.perf_counter()
        stamped = self._stamp(request, delivered, decision, file_format, say)
        timings["stamp"] = _since(began)
        say("release")
        return Result(to_pil(stamped.pixels), stamped.data, request.seed, decision, stamped.record, timings)

    def _stamp(
        self, request: GenerationRequest, picture: NDArray[np.uint8], decision: Decision, file_format: str, say: Observer
    ) -> Stamped:
        bundle = self.pipeline.bundle
        native, size = bundle.manifest.native_size, (picture.shape[0], picture.shape[1])
        content_id = self.stamp.reserve()
        say("reserved")
        facts = Facts(
            model_name=bundle.manifest.name,
            model_sha256=bundle.weights_sha256,
            bundle_sha256=bundle.sha256,
            seed=request.seed,
            request_hmac=self.stamp.request_hmac([request.prompt, request.negative_prompt, repr(request.settings())]),
            settings=request.settings(),
            resampled_from=None if native == size else native,
            decision=decision.as_dict(),
        )
        return self.stamp.apply(picture, facts, content_id, file_format, on_stage=say)


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
    pipeline = Pipeline.load(opened, backend)
    with ThreadPoolExecutor(2) as pool:  # engines compile without the interpreter lock, so the three overlap
        stamp = pool.submit(open_stamp, place, require_watermark=rules.provenance.require_watermark)
        gate = pool.submit(gate_for, opened, rules, place)
        pipeline.compile()
        return Press(pipeline, gate.result(), stamp.result())


def gate_for(bundle: Bundle, policy: Policy, home: Path) -> Gate:
    """The gate for this bundle: its own CLIP as image filter, with the names it knows as the vocabulary to tell concepts from."""
    names = bundle.file(_NAMES).read_text(encoding="utf-8").splitlines() if _NAMES in bundle.manifest.files else []
    folder = bundle.root / "clip" if "clip_image" in bundle.manifest.components else None
    return gate_for_folder(policy, folder, names, home / "cache")


def _cut(field: str, tokens: int) -> str:
    return f"the last {tokens} tokens of the {field.replace('_', ' ')} did not fit the text encoder and were not used"


def _since(began: float) -> float:
    return round((time.perf_counter() - began) * 1000, 2)
