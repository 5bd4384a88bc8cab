"""Engines of other backends, opened from a bundle: OpenVINO through the user's cache, held to the portable engine."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from platemark.errors import EngineError, InputError, MissingExtra, ParityError
from platemark.runtime import devices
from platemark.runtime.backends import onnxruntime as portable
from platemark.runtime.backends import openvino
from platemark.runtime.bundle import Bundle, open_bundle
from platemark.runtime.engines import key_for, open_engine, recorded_precision, states
from platemark.runtime.manifest import BuiltEngine
from platemark.runtime.pipeline import Pipeline
from platemark.runtime.request import GenerationRequest

if importlib.util.find_spec("openvino") is None:  # not imported here: only the backend keeps its telemetry out
    pytest.skip("needs the extra 'openvino'", allow_module_level=True)
COMPONENTS = ("text_encoder", "unet", "vae_decoder")


@pytest.fixture
def bundle(miniature: Path) -> Bundle:
    return open_bundle(miniature)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "engines"


def inputs_of(component: str, rows: int = 2, side: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    latents = rng.standard_normal((rows, 4, side, side)).astype(np.float32)
    if component == "text_encoder":
        return {"input_ids": rng.integers(0, 200, (rows, 5))}
    if component == "vae_decoder":
        return {"latent_sample": latents}
    states = rng.standard_normal((rows, 5, 8)).astype(np.float32)
    return {"sample": latents, "timestep": np.full(rows, 500, np.float32), "encoder_hidden_states": states}


@pytest.mark.parametrize("component", COMPONENTS)
def test_it_computes_what_onnx_runtime_does_at_every_size(component: str, bundle: Bundle, cache: Path) -> None:
    ours = open_engine(bundle, component, "openvino", cache=cache, threads=1)
    theirs = open_engine(bundle, component, "onnxruntime", threads=1)
    for rows, side in ((2, 8), (1, 16)):
        inputs = inputs_of(component, rows, side)
        for name, expected in theirs.run(inputs).items():
            np.testing.assert_allclose(ours.run(inputs)[name], expected, rtol=1e-4, atol=1e-5)
    assert [(spec.name, spec.dtype, len(spec.shape)) for spec in ours.inputs] == [(s.name, s.dtype, len(s.shape)) for s in theirs.inputs]


def test_the_second_time_it_comes_from_the_cache(bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = inputs_of("unet")
    first = open_engine(bundle, "unet", "openvino", cache=cache, threads=1).run(inputs)
    monkeypatch.setattr(openvino, "compile_graph", lambda *rest, **settings: pytest.fail("compiled again"))
    again = open_engine(bundle, "unet", "openvino", cache=cache, threads=1).run(inputs)
    assert np.array_equal(first["out_sample"], again["out_sample"])


def test_what_the_cache_holds_was_compared(bundle: Bundle, cache: Path) -> None:
    open_engine(bundle, "unet", "openvino", cache=cache, threads=1)
    (path,) = cache.rglob("*.engine")
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert [one["rel_l2_error"] <= header["parity"]["bound_rel_l2"] for one in header["parity"]["comparisons"]] == [True, True]
    assert header["parity"]["reference"] == portable.label()


def test_an_engine_with_other_weights_is_refused_and_not_kept(
    bundle: Bundle, copy: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One weight of the compiled engine is not the bundle's."""
    weights = copy / "unet" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-64:] = b"\x40" * 64
    weights.write_bytes(data)
    right = openvino.compile_graph
    monkeypatch.setattr(openvino, "compile_graph", lambda path, **settings: right(copy / "unet" / "model.onnx", **settings))
    with pytest.raises(ParityError, match="unet differs"):
        open_engine(bundle, "unet", "openvino", cache=cache, threads=1)
    assert not list(cache.rglob("*.engine"))


def test_a_damaged_engine_is_compiled_anew(bundle: Bundle, cache: Path) -> None:
    open_engine(bundle, "unet", "openvino", cache=cache, threads=1)
    (path,) = cache.rglob("*.engine")
    path.write_bytes(path.read_bytes()[:-100])
    open_engine(bundle, "unet", "openvino", cache=cache, threads=1)
    assert len(path.read_bytes()) > 100
    assert open_engine(bundle, "unet", "openvino", cache=cache, threads=1).run(inputs_of("unet"))["out_sample"].shape == (2, 4, 8, 8)


def test_bytes_that_are_no_engine_are_refused() -> None:
    with pytest.raises(ValueError, match="OpenVINO refuses"):
        openvino.load_blob("x", b"not an engine" * 10)


def test_threads_share_an_engine(bundle: Bundle, cache: Path) -> None:
    engine = open_engine(bundle, "unet", "openvino", cache=cache, threads=1)
    alone = [engine.run(inputs_of("unet", rows))["out_sample"] for rows in (1, 2, 3, 4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda rows: engine.run(inputs_of("unet", rows))["out_sample"], (1, 2, 3, 4) * 4))
    assert all(np.array_equal(a, b) for a, b in zip(alone * 4, together, strict=True))


def test_threads_open_engines_of_a_warm_cache_at_once(bundle: Bundle, cache: Path) -> None:
    """In a fresh process: the library's own first-time set-up must not lock threads against each other."""
    for component in COMPONENTS:
        open_engine(bundle, component, "openvino", cache=cache, threads=1)
    code = (
        "import sys; from pathlib import Path; from concurrent.futures import ThreadPoolExecutor\n"
        "from platemark.runtime.bundle import open_bundle; from platemark.runtime.engines import open_engine\n"
        "bundle, names = open_bundle(Path(sys.argv[1])), sys.argv[3:] * 4\n"
        "with ThreadPoolExecutor(12) as pool:\n"
        "    opened = pool.map(lambda name: open_engine(bundle, name, 'openvino', cache=Path(sys.argv[2]), threads=1), names)\n"
        "    print(len(list(opened)))"
    )
    command = [sys.executable, "-c", code, str(bundle.root), str(cache), *COMPONENTS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == "12"


def test_the_library_reports_nothing_and_leaves_no_traces(tmp_path: Path) -> None:
    """Left alone, OpenVINO sends an event over the network when it is imported, and writes a client id into the home folder."""
    code = (
        "import sys; calls = []\n"
        "sys.addaudithook(lambda event, _: calls.append(event) if event.startswith(('socket.', 'subprocess.', 'os.fork')) else None)\n"
        "from platemark.runtime.backends import openvino; openvino.version(); openvino.check_precision('fp32'); openvino._core()\n"
        "print(calls, sorted(name for name in sys.modules if name.startswith('openvino_telemetry')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | {"HOME": str(tmp_path)}
    )
    assert done.stdout.strip() == "[] []"
    assert not list(tmp_path.iterdir())


def test_results_do_not_change_under_later_runs(bundle: Bundle) -> None:
    engine = open_engine(bundle, "unet", "openvino", threads=1)
    first = engine.run(inputs_of("unet"))["out_sample"]
    kept = first.copy()
    engine.run({**inputs_of("unet"), "timestep": np.full(2, 3, np.float32)})
    assert np.array_equal(first, kept)


def test_wrong_inputs_are_engine_errors_that_name_them(bundle: Bundle) -> None:
    engine, good = open_engine(bundle, "unet", "openvino", threads=1), inputs_of("unet")
    for bad, said in (
        ({**good, "surprise": good["timestep"]}, "surprise"),
        ({**good, "timestep": good["timestep"].astype(np.int64)}, "timestep"),
        ({**good, "sample": good["sample"][:, :3]}, r"model\.onnx"),
    ):
        with pytest.raises(EngineError, match=said) as caught:
            engine.run(bad)
        assert "\n" not in str(caught.value)


def test_a_graph_that_does_not_load_is_an_engine_error(copy: Path) -> None:
    (copy / "unet" / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"OpenVINO cannot load model\.onnx"):
        openvino.compile_graph(copy / "unet" / "model.onnx")


def test_pictures_are_those_of_onnx_runtime(bundle: Bundle, cache: Path) -> None:
    request = GenerationRequest.make(bundle.manifest, prompt="red cat", seed=1, num_inference_steps=2)
    ours, theirs = (Pipeline.load(bundle, name, cache=cache, threads=1).generate(request).arrays for name in ("openvino", "onnxruntime"))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_no_bf16_on_a_cpu_without(monkeypatch: pytest.MonkeyPatch) -> None:
    class Core:
        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32", "INT8"]

    monkeypatch.setattr(openvino, "_core", Core)
    with pytest.raises(InputError, match="no bfloat16"):
        openvino.check_precision("bf16")
    with pytest.raises(InputError, match="fp32, bf16 or int8"):
        openvino.check_precision("fp16")


def test_without_the_library_the_extra_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    openvino._made_core.cache_clear()
    monkeypatch.setattr(openvino.importlib, "import_module", missing)
    with pytest.raises(MissingExtra, match="openvino"):
        open_engine(bundle, "unet", "openvino")


@pytest.fixture
def recorded(bundle: Bundle) -> Bundle:
    """The bundle with one engine of each kind in its manifest."""
    parity = bundle.manifest.components["unet"].parity
    common: dict[str, Any] = {"component": "unet"}
    built = BuiltEngine(
        **common, backend="tensorrt_rtx", version="1.7.1.116", precision="fp16", device="sm_89 sm_120", file="unet.plan", state="plan built"
    )
    compared = BuiltEngine(
        **common, backend="openvino", version=openvino.version(), precision="fp32", device=devices.cpu(), state="compared", parity=parity
    )
    return Bundle(bundle.root, bundle.manifest.model_copy(update={"engines": [built, compared]}), "")


def test_inspection_says_why_for_every_engine(recorded: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpu", lambda: None)
    plan, other = states(recorded, cache)
    assert (plan.usable, other.usable) == (False, True)
    assert "plan built for SM 8.9, SM 12.0" in plan.why
    assert "no NVIDIA driver" in plan.why
    assert other.why == "will be compiled at first use"
    open_engine(recorded, "unet", "openvino", cache=cache, threads=1)
    assert states(recorded, cache)[1].why == "in the cache"


def test_another_gpu_is_named(recorded: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpu", lambda: devices.Gpu("sm_90", "13.0"))
    assert "this is SM 9.0: build with --target sm_90" in states(recorded, cache)[0].why


def test_an_engine_of_another_version_is_named(recorded: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_engine(recorded, "unet", "openvino", cache=cache, threads=1)
    monkeypatch.setattr(openvino, "version", lambda: "2099.1")
    why = states(recorded, cache)[1].why
    assert "here 2099.1: it will be compiled anew" in why


def test_the_proven_precision_is_used(recorded: Bundle) -> None:
    assert recorded_precision(recorded, "unet", "openvino") == "fp32"
    assert recorded_precision(recorded, "unet", "tensorrt_rtx") == "fp32"  # a plan proves nothing
    assert key_for(recorded, "unet", "openvino", "fp32").network != key_for(recorded, "vae_decoder", "openvino", "fp32").network


@pytest.mark.parametrize("backend", ["tensorrt_rtx", "tensorrt", "torch"])
def test_a_backend_that_renders_nothing_is_refused(backend: str, bundle: Bundle) -> None:
    with pytest.raises(InputError, match="renders no pictures"):
        Pipeline.load(bundle, backend)


def test_outputs_are_written_where_the_caller_says(bundle: Bundle) -> None:
    engine = open_engine(bundle, "unet", "openvino", threads=1)
    for rows, side in ((2, 8), (1, 16), (2, 8)):
        inputs = inputs_of("unet", rows, side)
        room = np.full_like(inputs["sample"], np.nan)
        engine.run_into(inputs, {"out_sample": room})  # type: ignore[attr-defined]
        kept = room.copy()
        assert np.array_equal(kept, engine.run(inputs)["out_sample"])
        engine.run({**inputs, "sample": inputs["sample"] * 2})
        assert np.array_equal(kept, room)  # the caller's array stays the caller's
    with pytest.raises(EngineError, match=r"model\.onnx"):
        engine.run_into(inputs, {"out_sample": room[:1]})  # type: ignore[attr-defined]
