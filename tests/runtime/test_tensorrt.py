"""Plans for NVIDIA GPUs: real ones, built with no GPU or driver, and checked as far as that goes. Nothing here runs a plan but `gpu`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from platemark.errors import EngineError, InputError, MissingExtra
from platemark.models import embedded
from platemark.runtime import devices
from platemark.runtime.backends import tensorrt, tensorrt_rtx
from platemark.runtime.backends.tensorrt import Plan, Range

PROFILE: dict[str, Range] = {"batch": (1, 2, 4), "height": (8, 16, 32), "width": (8, 16, 24), "tokens": (1, 32, 32)}


@pytest.fixture
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="needs the extra 'tensorrt-rtx'")


def build(folder: Path, graph: str, targets: tuple[str, ...] = ("sm_89",), **changed: Range) -> Plan:
    return tensorrt_rtx.build_plan("net", (folder / graph).read_bytes(), folder, targets, PROFILE | changed)


@pytest.fixture(scope="module")
def decoder() -> Plan:
    """The embedded model's VAE decoder, for two GPUs."""
    pytest.importorskip("tensorrt_rtx", reason="needs the extra 'tensorrt-rtx'")
    return build(embedded() / "vae", "decoder.onnx", ("sm_120", "sm_89", "sm_89"))


def test_a_plan_of_the_embedded_decoder(decoder: Plan) -> None:
    weights = (embedded() / "vae" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert len(decoder.data) > weights
    tensorrt_rtx.check_plan("vae_decoder", decoder.data, tensorrt_rtx.version())
    report = decoder.report()
    assert report["state"] == "plan built"
    assert report["inputs"] == {"latent_sample": {"dtype": "float32", "shape": ["batch", 4, "height", "width"]}}
    assert report["profile"] == {name: PROFILE[name] for name in ("batch", "height", "width")}
    assert report["layers_by_type"]["CONVOLUTION"] >= 29
    assert ["decoder.conv_in/Conv", "CONVOLUTION"] in report["layers"]
    assert b"latent_sample" in decoder.data


def test_a_text_encoder_builds_in_float32_although_its_attention_has_no_such_kernel(rtx: Any) -> None:
    plan = build(embedded() / "text_encoder", "model.onnx")
    assert sum(kind == "ATTENTION_INPUT" for _, kind in plan.layers) == 4
    assert plan.inputs == {"input_ids": {"dtype": "int64", "shape": ["batch", "tokens"]}}
    assert plan.profile == {"batch": (1, 2, 4), "tokens": (1, 32, 32)}


def test_a_plan_holds_these_weights_and_no_others(rtx: Any, copy: Path) -> None:
    """Two plans of one graph need not be equal byte for byte, so a value is looked for that only one of them can hold."""
    weights, marks = copy / "vae" / "model.safetensors", np.full(8, 0.7123, np.float32).tobytes()
    assert marks[:4] not in build(copy / "vae", "model.onnx").data
    data = bytearray(weights.read_bytes())
    data[-32:] = marks
    weights.write_bytes(data)
    assert marks[:4] in build(copy / "vae", "model.onnx").data


def test_the_targets_are_in_the_plan(rtx: Any, miniature: Path) -> None:
    one, other = build(miniature / "vae", "model.onnx"), build(miniature / "vae", "model.onnx", ("sm_120",))
    assert one.data != other.data


def test_weights_are_found_from_any_working_directory(rtx: Any, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "link"
    link.symlink_to(copy / "vae")
    monkeypatch.chdir("/")
    assert build(link, "model.onnx").data


def test_sm_90_is_refused_and_the_native_backend_named(rtx: Any) -> None:
    with pytest.raises(InputError, match=r"no engines for SM 9\.0") as caught:
        tensorrt_rtx.check_targets(["sm_89", "sm_90"])
    assert "--backend tensorrt" in caught.value.remedy
    assert tensorrt_rtx.check_targets(["sm_120", "sm_89", "sm_120"]) == ("sm_89", "sm_120")
    with pytest.raises(InputError, match="named"):
        tensorrt_rtx.check_targets([])


@pytest.mark.parametrize("feature", ["refit", "weight-streaming"])
def test_features_are_built_into_the_plan_and_reported(rtx: Any, miniature: Path, feature: str) -> None:
    graph = (miniature / "vae" / "model.onnx").read_bytes()
    plans = [tensorrt_rtx.build_plan("net", graph, miniature / "vae", ("sm_89",), PROFILE, wanted) for wanted in ((), (feature,))]
    assert [plan.report()["features"] for plan in plans] == [[], [feature]]
    assert (len(plans[1].data) > len(plans[0].data)) == (feature == "refit")  # names of weights; streaming changes how they are loaded
    tensorrt_rtx.check_plan("net", plans[1].data, plans[1].version)


def test_features_that_a_library_does_not_have_are_refused(rtx: Any) -> None:
    assert tensorrt.check_features(["hardware-compatible", "refit", "refit"]) == ("refit", "hardware-compatible")
    with pytest.raises(InputError, match="TensorRT plans cannot be 'magic'"):
        tensorrt.check_features(["magic"])
    with pytest.raises(InputError, match="TensorRT-RTX plans cannot be 'version-compatible'") as caught:
        tensorrt_rtx.check_features(["version-compatible"])
    assert "refit, weight-streaming" in caught.value.remedy


def test_the_shared_code_takes_a_timing_cache_and_gives_it_back(rtx: Any, miniature: Path) -> None:
    """Through the RTX library, which has the calls and does nothing in them; what they bring shows with the native one alone."""
    import warnings

    timings = bytearray()
    graph = (miniature / "vae" / "model.onnx").read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it says that they are no-ops
        wanted = tensorrt.Wanted(("sm_89",), PROFILE, (), timings)
        assert tensorrt.build_with(rtx, "RTX", "net", graph, miniature / "vae", wanted).data
        assert len(timings) > 0
        assert tensorrt.build_with(rtx, "RTX", "net", graph, miniature / "vae", wanted).data


def test_missing_and_disordered_sizes_name_the_dim(rtx: Any, miniature: Path) -> None:
    graph = (miniature / "vae" / "model.onnx").read_bytes()
    with pytest.raises(InputError, match="'height'"):
        tensorrt_rtx.build_plan("net", graph, miniature / "vae", ("sm_89",), {"batch": (1, 1, 1), "width": (8, 8, 8)})
    with pytest.raises(InputError, match="not in order"):
        build(miniature / "vae", "model.onnx", width=(16, 8, 32))


def test_an_operator_that_it_does_not_know_is_named_with_its_node(rtx: Any, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    ports = [helper.make_tensor_value_info(name, kind, ["batch", 4]) for name in ("x", "y")]
    node = helper.make_node("Mystery", ["x"], ["y"], "blocks.7/Mystery", domain="somewhere.else")
    model = helper.make_model(helper.make_graph([node], "g", ports[:1], ports[1:]), opset_imports=[helper.make_opsetid("", 23)])
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match="Mystery") as caught:
        build(tmp_path, "model.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["garbage", "no weights"])
def test_what_does_not_build_is_one_line(rtx: Any, damage: str, copy: Path) -> None:
    if damage == "garbage":
        (copy / "vae" / "model.onnx").write_bytes(b"xx")
    else:
        (copy / "vae" / "model.safetensors").unlink()
    with pytest.raises(EngineError, match="net") as caught:
        build(copy / "vae", "model.onnx")
    assert "\n" not in str(caught.value)


def test_a_header_that_is_not_whole_or_of_another_version(decoder: Plan) -> None:
    for data, version, said in (
        (decoder.data[:-1], decoder.version, "cut short"),
        (b"", decoder.version, "no TensorRT-RTX plan"),
        (b"ftrt" + decoder.data[4:], decoder.version, "no TensorRT-RTX plan"),
        (decoder.data, "1.8.0.1", "this is 1.8.0.1"),
    ):
        with pytest.raises(EngineError, match=said):
            tensorrt_rtx.check_plan("vae_decoder", data, version)


def test_the_native_backend_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpu", lambda: None)
    with pytest.raises(InputError, match="no NVIDIA driver") as caught:
        tensorrt.check_targets(["sm_90"])
    assert "tensorrt-rtx" in caught.value.remedy
    monkeypatch.setattr(devices, "gpu", lambda: devices.Gpu("sm_90", "13.0"))
    assert tensorrt.check_targets([]) == ("sm_90",)
    with pytest.raises(InputError, match=r"SM 9\.0, not SM 8\.9"):
        tensorrt.check_targets(["sm_89"])


@pytest.mark.parametrize(("module", "extra"), [(tensorrt, "tensorrt"), (tensorrt_rtx, "tensorrt-rtx")])
def test_without_the_library_the_extra_is_named(module: Any, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(tensorrt.importlib, "import_module", missing)
    with pytest.raises(MissingExtra, match=f"'{extra}'"):
        module.version()


@pytest.mark.gpu
@pytest.mark.skipif(devices.gpu() is None, reason="no NVIDIA driver or GPU here: native plans are built on the GPU that they are for")
def test_a_native_plan_for_the_gpu_present(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt", reason="needs the extra 'tensorrt'")
    folder = Path(shutil.copytree(embedded() / "vae", tmp_path / "vae"))
    plan = tensorrt.build_plan("vae_decoder", (folder / "decoder.onnx").read_bytes(), folder, (), PROFILE)
    assert plan.version == tensorrt.version()
    assert len(plan.data) > (folder / "diffusion_pytorch_model.safetensors").stat().st_size
