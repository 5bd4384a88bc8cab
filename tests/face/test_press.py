"""The straight line: what comes out is checked, marked, signed and recorded, whatever happens on the way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import platemark
from platemark.errors import InputError, PolicyBlocked, ProvenanceUnavailable, RenderError, SafetyUnavailable
from platemark.press import Press, Watch
from platemark.provenance.registry import Registry
from platemark.provenance.stamp import open_stamp
from platemark.safety.decision import Action, Decision

FAST: dict[str, Any] = {"num_inference_steps": 4, "height": 128, "width": 128}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Press:
    return platemark.load(home=tmp_path_factory.mktemp("press"))


def decide(action: Action) -> Decision:
    return Decision(stage="output_image", action=action, policy_id="test", policy_sha256="0" * 64)


def test_a_picture_comes_out_marked_signed_and_recorded(shared: Press, tmp_path: Path) -> None:
    result = shared.generate("a red apple", seed=1)[0]
    assert result.image is not None
    assert result.image.size == (512, 512)
    assert result.provenance is not None
    assert result.provenance.watermark == "full"
    assert result.provenance.psnr is not None
    assert result.provenance.psnr >= 41
    result.save(tmp_path / "apple.png")
    report = platemark.verify(tmp_path / "apple.png", home=shared.stamp.home)
    assert report.verdict == "intact-untrusted"
    assert report.content_id == result.provenance.content_id
    assert report.layers["c2pa"]["trust"] == "development identity"
    assert report.layers["watermark"]["state"] == "detected"
    assert report.layers["registry"]["state"] == "found"
    assert report.layers["metadata"]["state"] == "claims"


def test_verify_takes_bytes_too(shared: Press) -> None:
    result = shared.generate("a cat", seed=3, **FAST)[0]
    assert result.data is not None
    assert platemark.verify(result.data, home=shared.stamp.home).verdict == "intact-untrusted"


def test_native_size_is_the_native_picture(shared: Press) -> None:
    result = shared.generate("a red apple", seed=1, height=128, width=128)[0]
    assert result.image is not None
    assert result.image.size == (128, 128)
    assert result.provenance is not None
    assert result.provenance.watermark == "pixel"
    assert result.provenance.facts.resampled_from is None


def test_batches_are_the_single_pictures(shared: Press) -> None:
    batch = shared.pipeline.generate(_request(shared, n=3, seed=40))
    for k in range(3):
        single = shared.pipeline.generate(_request(shared, n=1, seed=40 + k))
        error = float(np.mean((batch.arrays[k] - single.arrays[0]) ** 2))
        assert error < 1e-6  # 60 dB


def _request(press: Press, **settings: Any) -> Any:
    from platemark.runtime.request import GenerationRequest

    return GenerationRequest.make(press.pipeline.bundle.manifest, **{"prompt": "a red apple", **FAST, **settings})


def test_seeds_are_reported_and_wrap(shared: Press) -> None:
    results = shared.generate("sun", n=2, seed=2**64 - 1, **FAST)
    assert [result.seed for result in results] == [2**64 - 1, 0]
    drawn = shared.generate("sun", seed=-1, **FAST)[0].seed
    assert 0 <= drawn < 2**64


def test_a_blocked_prompt_raises_before_any_work(shared: Press) -> None:
    stages: list[str] = []
    with pytest.raises(PolicyBlocked) as caught:
        shared.generate("a naked woman", watch=Watch(on_stage=stages.append))
    assert stages == []
    assert caught.value.decision.action is Action.BLOCK
    assert "naked" not in str(caught.value)


def test_a_blocked_picture_stays_in_the_results(shared: Press, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    verdicts = iter([Action.ALLOW, Action.BLOCK, Action.ALLOW])
    monkeypatch.setattr(shared.gate, "check_output_image", lambda picture, *earlier: decide(next(verdicts)))
    results = shared.generate("a cat", n=3, seed=5, **FAST)
    assert [result.status for result in results] == ["released", "withheld", "released"]
    assert results[1].image is results[1].data is results[1].provenance is None
    assert results[1].decision is not None
    assert results[1].decision.action is Action.BLOCK
    with pytest.raises(PolicyBlocked):
        results[1].save(tmp_path / "no.png")
    assert not (tmp_path / "no.png").exists()


def test_regenerate_uses_new_seeds_and_then_withholds(shared: Press, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def never(picture: np.ndarray, *earlier: Decision) -> Decision:
        seen.append(picture.copy())
        return decide(Action.REGENERATE)

    monkeypatch.setattr(shared.gate, "check_output_image", never)
    result = shared.generate("a cat", seed=5, **FAST)[0]
    assert (result.status, result.image) == ("withheld", None)
    assert len(seen) == shared.gate.policy.regenerate.max + 1
    assert len({picture.tobytes() for picture in seen}) == len(seen)
    logged = list(shared.log.search(lambda r: r["request_id"] == result.request_id and r["stage"] == "output_image"))
    assert [(r["image_index"], r["attempt"]) for r in logged] == [(0, 0), (0, 1), (0, 2)]
    assert [r["seed"] for r in logged] == ["5", str(5 + 0x9E3779B9), str(5 + 2 * 0x9E3779B9)]


def test_regenerate_stops_at_the_first_good_one(shared: Press, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replay: regenerate if filtered. The picture that comes out is the one of the seed that it says."""
    verdicts = iter([Action.REGENERATE, Action.ALLOW])
    with monkeypatch.context() as patch:
        patch.setattr(shared.gate, "check_output_image", lambda picture, *earlier: decide(next(verdicts)))
        result = shared.generate("a cat", seed=5, **FAST)[0]
    assert (result.status, result.seed) == ("released", 5 + 0x9E3779B9)
    again = shared.pipeline.generate(_request(shared, seed=result.seed, prompt="a cat"))
    assert result.image is not None
    released = np.asarray(result.image, np.float64)
    assert float(np.mean((released - again.images[0]) ** 2)) < 10  # the mark is all that differs


@pytest.mark.parametrize(
    ("part", "method", "error"),
    [
        ("gate", "check_prompt", SafetyUnavailable),
        ("gate", "check_output_image", SafetyUnavailable),
        ("stamp", "reserve", ProvenanceUnavailable),
        ("stamp", "apply", ProvenanceUnavailable),
    ],
)
def test_a_failing_stage_releases_nothing(
    shared: Press, monkeypatch: pytest.MonkeyPatch, part: str, method: str, error: type[Exception]
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise error("broken for the test", "mend it")

    monkeypatch.setattr(getattr(shared, part), method, broken)
    with pytest.raises(error):
        shared.generate("a cat", seed=5, **FAST)


@pytest.mark.parametrize(("value", "said"), [(np.nan, "NaN"), (np.inf, "infinite"), (0.5, "flat"), (-1.0, "flat")])
def test_a_broken_render_is_a_render_error_of_its_picture_alone(
    shared: Press, monkeypatch: pytest.MonkeyPatch, value: float, said: str
) -> None:
    """Per picture and never per batch: NaN, flat and black are no pictures, the others come out."""
    real, calls = shared.pipeline.engine("vae_decoder"), []

    class Broken:
        inputs, outputs = real.inputs, real.outputs

        def run(self, inputs: Any) -> dict[str, Any]:
            sample = real.run(inputs)["sample"]
            calls.append(float(inputs["latent_sample"].mean()))
            return {"sample": np.full_like(sample, value) if calls[-1] == calls[0] else sample}

    monkeypatch.setitem(shared.pipeline.engines, "vae_decoder", Broken())
    results = shared.generate("a cat", seed=5, n=3, **FAST)
    assert [result.status for result in results] == ["render_error", "released", "released"]
    broken = results[0]
    assert broken.decision is broken.data is broken.image is broken.provenance is None
    assert isinstance(broken.error, RenderError)
    assert said in broken.error.message
    assert broken.as_dict()["error"]["code"] == "render_error"
    logged = list(shared.log.search(lambda r: r["request_id"] == broken.request_id and r["image_index"] == 0))
    assert [(r["kind"], r["reason_code"]) for r in logged] == [("failure", "render_error")]
    with pytest.raises(RenderError):
        broken.save("no.png")


@pytest.mark.parametrize(
    "bad",
    [
        {"prompt": ""}, {"prompt": "  "}, {"prompt": "x" * 100_000}, {"height": 0}, {"width": -1}, {"height": 7}, {"width": 100_000},
        {"guidance_scale": float("nan")}, {"guidance_scale": float("inf")}, {"num_inference_steps": 0}, {"num_inference_steps": 10_000},
        {"seed": -2}, {"seed": 2**64}, {"n": 0}, {"scheduler": "magic"},
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_a_remedy(shared: Press, bad: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        shared.generate(**{"prompt": "a cat", **bad})
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


STAGES = ("check_prompt", "reserved", "render", "check_image", "stamp", "marked", "signed", "recorded", "release", "written")


@pytest.mark.parametrize("stage", STAGES)
def test_a_kill_at_any_stage_leaves_no_half_file_and_no_unrecorded_picture(shared: Press, stage: str, tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import os, signal, sys, platemark
        stage, home, out = sys.argv[1:]
        def observe(name):
            if name == stage:
                os.kill(os.getpid(), signal.SIGKILL)
        press = platemark.load(home=home)
        press.generate("a cat", seed=5, height=128, width=128, num_inference_steps=2, watch=platemark.Watch(on_stage=observe))[0].save(out)
        observe("written")
    """)
    home, out = tmp_path / "home", tmp_path / "cat.png"
    done = subprocess.run(
        [sys.executable, "-c", code, stage, str(home), str(out)], capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "2"}
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    if stage == "written":
        report = platemark.verify(out, home=home)
        assert report.verdict == "intact-untrusted"
        assert report.layers["registry"]["state"] == "found"
    else:
        assert not out.exists()
    assert not [path for path in tmp_path.iterdir() if path.name not in {"home", "cat.png"}]
    with Registry.open(home) as registry:
        expected = 1 if STAGES.index(stage) >= STAGES.index("recorded") else 0
        assert registry.count() == expected
        used = {entry.content_id for entry in registry.all()}
    again = Press(shared.pipeline, shared.gate, open_stamp(home)).generate("a cat", seed=5, **FAST)[0]
    assert again.provenance is not None
    assert again.provenance.content_id not in used


def test_facts_hold_no_prompt(shared: Press) -> None:
    result = shared.generate("a very secret unicorn", seed=5, **FAST)[0]
    assert result.provenance is not None
    assert "secret" not in json.dumps(result.provenance.as_dict())
    assert result.data is not None
    assert b"secret" not in result.data


def test_a_prompt_that_does_not_fit_says_so(shared: Press) -> None:
    assert shared.generate("a red apple", seed=5, **FAST)[0].notes == ()
    (note,) = shared.generate("apple " * 1100, seed=5, **FAST)[0].notes
    assert re.fullmatch(r"the last \d+ tokens of the prompt did not fit the text encoder and were not used", note)


def test_a_failure_at_the_second_picture_releases_the_first_and_nothing_after(
    shared: Press, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real, calls = shared.stamp.apply, []

    def second_fails(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise ProvenanceUnavailable("broken for the test", "mend it")
        return real(*args, **kwargs)

    monkeypatch.setattr(shared.stamp, "apply", second_fails)
    before = shared.stamp.registry.count()
    results = shared.run(shared.admit("a cat", n=3, seed=5, **FAST))
    assert next(results).data is not None
    with pytest.raises(ProvenanceUnavailable):
        next(results)
    assert next(results, None) is None
    assert shared.stamp.registry.count() == before + 1


def test_save_refuses_a_suffix_that_lies(shared: Press, tmp_path: Path) -> None:
    result = shared.generate("a cat", seed=5, **FAST)[0]
    with pytest.raises(InputError, match="PNG"):
        result.save(tmp_path / "cat.jpg")
    with pytest.raises(InputError):
        shared.generate("a cat", file_format="bmp")
    assert list(tmp_path.iterdir()) == []


def test_a_negative_prompt_that_cannot_work_says_so(shared: Press) -> None:
    (note,) = shared.generate("a cat", seed=5, negative_prompt="dog", guidance_scale=1.0, **FAST)[0].notes
    assert "negative prompt" in note
