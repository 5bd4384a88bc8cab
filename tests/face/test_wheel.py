"""The wheel holds every tracked file of the five packages, the embedded model where there is one, and nothing else."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"src/platemark": "platemark", "optimize": "platemark/optimize", "runtime": "platemark/runtime",
           "safety": "platemark/safety", "provenance": "platemark/provenance"}  # fmt: skip
MODEL = "src/platemark/models/emoji"
WEIGHTS = "safety/models"


def tracked() -> list[str]:
    program = shutil.which("git")
    if program is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout")
    done = subprocess.run([program, "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"git cannot read this checkout: {done.stderr.strip()[:100]}")
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def in_wheel(name: str) -> str | None:
    """Where a file of the repository lies in the wheel; None for files outside of the five packages."""
    for folder, package in FOLDERS.items():
        if name.startswith(f"{folder}/"):
            return package + name.removeprefix(folder)
    return None


def require_builder() -> None:
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("setuptools is not installed here")
    if int(version.split(".")[0]) < 84:
        pytest.skip(f"setuptools {version} is older than the 84 that pyproject.toml asks for")
    if importlib.util.find_spec("pip") is None:
        pytest.skip("pip is not installed here")


@pytest.fixture(scope="module")
def source() -> list[str]:
    """POSIX paths of what a wheel is built from: tracked files, and models whether tracked or just built."""
    require_builder()
    model = (path.relative_to(ROOT).as_posix() for name in (MODEL, WEIGHTS) for path in (ROOT / name).rglob("*") if path.is_file())
    return sorted({*tracked(), *model})


@pytest.fixture(scope="module")
def wheel(source: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names in a wheel built offline from a clean copy, so that no leftover of another build can stand in for a listed file."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in source:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir", "-w", str(out)]
    done = subprocess.run([*command, str(copy)], cwd=out, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (built,) = out.glob("platemark-*.whl")
    with zipfile.ZipFile(built) as archive:
        return [name for name in archive.namelist() if not name.endswith("/")]


def test_every_runtime_file_is_in_the_wheel(source: list[str], wheel: list[str]) -> None:
    expected = {place for name in source if (place := in_wheel(name)) is not None}
    for must in (
        "safety/presets/",
        "safety/data/",
        "safety/models/",
        "provenance/migrations/versions/",
        "provenance/migrations/script.py.mako",
        "optimize/",
    ):
        assert any(name.startswith(f"platemark/{must}") for name in expected), must
    assert sorted(expected - set(wheel)) == []


def test_the_embedded_model_is_whole_in_the_wheel(wheel: list[str]) -> None:
    if not (ROOT / MODEL).is_dir():
        pytest.skip("the embedded model is not here")
    model = {path.relative_to(ROOT / MODEL).as_posix() for path in (ROOT / MODEL).rglob("*") if path.is_file()}
    assert {"bundle.json", "unet/diffusion_pytorch_model.safetensors"} <= model
    assert {name.removeprefix("platemark/models/emoji/") for name in wheel if name.startswith("platemark/models/emoji/")} == model


def test_every_detectors_weights_come_with_their_licence(wheel: list[str]) -> None:
    inside = {name.removeprefix("platemark/safety/models/") for name in wheel if name.startswith("platemark/safety/models/")}
    weights = {name for name in inside if name.endswith(".onnx")}
    assert len(weights) >= 2
    assert inside == weights | {name.replace(".onnx", ".LICENSE.txt") for name in weights}


def test_nothing_else_is_in_the_wheel(source: list[str], wheel: list[str]) -> None:
    packaged = {name for name in wheel if name.startswith("platemark/")}
    assert packaged <= {in_wheel(name) for name in source}
    rest = {name.split("/")[0] for name in wheel if name not in packaged}
    assert len(rest) == 1
    assert rest.pop().endswith(".dist-info")
    assert {Path(name).name for name in wheel if "/licenses/" in name} == {"LICENSE", "THIRD_PARTY.md"}
