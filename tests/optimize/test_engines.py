"""Engines made by the build: compared where they run here, plans where they do not, and a record that says which."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra 'build'")
pytestmark = pytest.mark.torch

from platemark.errors import BundleError, InputError, ParityError  # noqa: E402
from platemark.optimize import engines  # noqa: E402
from platemark.optimize.engines import EngineRequest, checked, default_profile, make_engine, request_for, with_derived  # noqa: E402
from platemark.optimize.parity import make_cases, record  # noqa: E402
from platemark.optimize.specs import FLOAT, Spec, specs  # noqa: E402
from platemark.runtime import devices  # noqa: E402
from platemark.runtime.backends import openvino, tensorrt_rtx  # noqa: E402
from platemark.runtime.bundle import MANIFEST, open_bundle  # noqa: E402
from platemark.runtime.engine import TensorSpec  # noqa: E402
from platemark.runtime.parity import Recorded  # noqa: E402
from platemark.runtime.pipeline import Pipeline  # noqa: E402

# Not imported here: only the backend keeps its telemetry out.
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs the extra 'openvino'")
RTX = EngineRequest("tensorrt_rtx", "fp16", ("sm_89", "sm_120"))


@pytest.fixture
def decoder(opened: Any) -> Spec:
    return specs(opened)["vae_decoder"]


@pytest.fixture
def recorded(decoder: Spec, modules: dict[str, Any]) -> list[Recorded]:
    from platemark.optimize.components import reference

    return record(decoder, make_cases(decoder), reference(decoder, modules["vae_decoder"]))


@pytest.fixture
def stage(graph_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(graph_folder, tmp_path / "stage"))


@needs_openvino
def test_an_openvino_engine_is_compared_with_torch(decoder: Spec, recorded: list[Recorded], stage: Path) -> None:
    engine, files = make_engine(checked(EngineRequest("openvino")), decoder, recorded, stage, "torch")
    assert (engine.state, engine.file, files, engine.device) == ("compared", None, [], devices.cpu())
    assert engine.parity is not None
    assert engine.parity.reference == "torch"
    assert all(0 <= one.rel_l2_error <= 1e-4 for one in engine.parity.comparisons)


@needs_openvino
def test_an_engine_with_other_weights_is_refused(
    decoder: Spec, recorded: list[Recorded], stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (weights,) = (stage / "vae").glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    for at in range(len(data) // 2, len(data) - 4, 64):
        data[at : at + 4] = b"\x00\x00\x80\x3f"
    weights.write_bytes(data)
    with pytest.raises(ParityError, match="vae_decoder differs"):
        make_engine(EngineRequest("openvino"), decoder, recorded, stage, "torch")


def test_a_plan_says_that_it_was_only_built(decoder: Spec, recorded: list[Recorded], stage: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the extra 'tensorrt-rtx'")
    engine, files = make_engine(checked(RTX), decoder, recorded, stage, "torch")
    assert (engine.state, engine.parity, engine.precision, engine.device) == ("plan built", None, "fp16", "sm_89 sm_120")
    assert engine.graph_parity is not None
    assert engine.graph_parity.backend.startswith("onnxruntime")
    assert engine.profile == default_profile(decoder)
    assert engine.file in files
    tensorrt_rtx.check_plan("vae_decoder", (stage / str(engine.file)).read_bytes(), engine.version)
    report = json.loads((stage / files[1]).read_text(encoding="utf-8"))
    assert report["state"] == "plan built"
    assert report["bytes"] == (stage / files[0]).stat().st_size
    assert not list((stage / "vae").glob(".*"))


def test_a_half_graph_over_its_bound_falls_back_and_says_so(
    decoder: Spec, recorded: list[Recorded], stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the extra 'tensorrt-rtx'")
    monkeypatch.setitem(engines.BOUNDS, "fp16", 1e-9)
    profile = {"height": (8, 32, 32)}
    engine, _ = make_engine(EngineRequest("tensorrt_rtx", "fp16", ("sm_89",), {"vae_decoder": profile}), decoder, recorded, stage, "torch")
    assert (engine.precision, engine.graph_parity) == ("fp32", None)
    assert len(engine.tried) == 1
    assert engine.tried[0].startswith("fp16: vae_decoder differs")
    assert engine.profile["height"] == (8, 32, 32)


@needs_openvino
def test_a_bundle_for_openvino_renders_with_it_by_default(checkpoint_folder: Path, exported_before: None, tmp_path: Path) -> None:
    from platemark.optimize.build import build

    build(checkpoint_folder, tmp_path / "out", engines=EngineRequest("openvino"))
    bundle = open_bundle(tmp_path / "out")
    manifest = bundle.manifest
    assert manifest.default_backend == "openvino"
    assert {engine.component for engine in manifest.engines} == set(manifest.components)
    assert manifest.engines_end_to_end["openvino"].psnr >= 60
    assert isinstance(Pipeline.load(bundle, threads=1).engine("vae_decoder"), openvino.OpenVinoEngine)
    data = json.loads((tmp_path / "out" / MANIFEST).read_text(encoding="utf-8"))
    data["engines"][0]["parity"] = None
    (tmp_path / "out" / MANIFEST).write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(BundleError, match="recorded as compared without"):
        open_bundle(tmp_path / "out")


def test_a_users_words_become_a_request() -> None:
    found = request_for("tensorrt_rtx", "fp16", ["8.9", "SM120"], ["unet:height=32,64,128", "unet:batch=1,2,2"])
    profiles = {"unet": {"height": (32, 64, 128), "batch": (1, 2, 2)}}
    assert found == EngineRequest("tensorrt_rtx", "fp16", ("sm_89", "sm_120"), profiles)
    assert request_for(None, "fp32", [], []) is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("magic", "fp32", [], []), "unknown backend"),
        (("openvino", "fp64", [], []), "precision"),
        (("tensorrt_rtx", "fp32", ["ada"], []), "compute capability"),
        (("tensorrt_rtx", "fp32", ["sm_89"], ["unet"]), "no profile"),
        ((None, "fp32", ["sm_89"], []), "--backend"),
    ],
)
def test_words_that_make_no_request_are_refused(words: tuple[Any, ...], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        request_for(*words)
    assert "\n" not in str(caught.value)


def test_a_request_that_cannot_be_met_is_refused_before_any_work() -> None:
    for backend in ("onnxruntime", "torch"):
        with pytest.raises(InputError, match="no engines to build"):
            checked(EngineRequest(backend))
    with pytest.raises(InputError, match="every size"):
        checked(EngineRequest("openvino", targets=("sm_89",)))


def test_the_usual_profile_has_room_around_the_native_size(opened: Any) -> None:
    found = specs(opened)
    assert default_profile(found["unet"])["batch"] == (1, 2, 16)
    step, usual = found["unet"].limits["height"]
    low, opt, high = default_profile(found["unet"])["height"]
    assert (opt, high) == (usual, usual * 2)
    assert low % step == 0
    assert default_profile(found["text_encoder"])["tokens"][2] == found["text_encoder"].limits["tokens"][1]


def test_dims_made_of_others_have_ranges_too() -> None:
    sample = TensorSpec("sample", FLOAT, ("batch", 4, "height", "width"))
    ports = (
        sample,
        TensorSpec("cond", FLOAT, ("batch", 3, "8*height", "8*width")),
        TensorSpec("residual_0", FLOAT, ("batch", 8, "height/2", 1)),
    )
    spec = Spec("controlnet", "controlnet", "c", ports, (sample,), {"height": (8, 64), "width": (8, 64)})
    found = with_derived(spec, default_profile(spec) | {"width": (8, 16, 24)})
    assert found["8*height"] == (256, 512, 1024)
    assert found["8*width"] == (64, 128, 192)
    assert found["height/2"] == (16, 32, 64)
