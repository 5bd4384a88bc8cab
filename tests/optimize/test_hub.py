"""Hub ids: what is fetched, the cache first, one clear line offline; the real client against a hub of this process."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.torch

from platemark.errors import CheckpointError, InputError  # noqa: E402
from platemark.optimize.hub import locate, needed  # noqa: E402

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "studio/tiny"
PIPELINE = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    *(f"{name}/config.json" for name in ("unet", "vae", "text_encoder")),
]
WHOLE = ["unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]
HALF = [name.replace(".safetensors", ".fp16.safetensors") for name in WHOLE]
PICKLED = [name.replace(".safetensors", ".bin") for name in WHOLE]


def test_one_precision_is_taken_and_no_pickles() -> None:
    other = ["README.md", "x.png", "unet/deep/config.json", "onnx/model.onnx", "v1-5-pruned.safetensors", "v1-5-pruned.ckpt"]
    assert set(needed(REPO, [*PIPELINE, *WHOLE, *HALF, *PICKLED, *other])) == {*PIPELINE, *WHOLE}
    assert set(needed(REPO, [*PIPELINE, *HALF, *PICKLED])) == {*PIPELINE, *HALF}
    shards = [f"unet/diffusion_pytorch_model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    assert set(needed(REPO, [*PIPELINE, *WHOLE[1:], *shards, index, HALF[0]])) == {*PIPELINE, *WHOLE[1:], *shards, index}


def test_repositories_without_safetensors_are_refused() -> None:
    with pytest.raises(CheckpointError, match="no safetensors weights of its unet"):
        needed(REPO, [*PIPELINE, *WHOLE[1:], *PICKLED])
    with pytest.raises(CheckpointError, match="no safetensors weights of its safety_checker"):
        needed(REPO, [*PIPELINE, *WHOLE, "safety_checker/config.json", "safety_checker/pytorch_model.bin"])
    with pytest.raises(CheckpointError, match="neither"):
        needed(REPO, ["README.md", "model.ckpt"])
    with pytest.raises(CheckpointError, match="2 single files"):
        needed(REPO, ["a.safetensors", "b.safetensors"])
    assert needed(REPO, ["README.md", "a.safetensors", "loras/b.safetensors"]) == ["a.safetensors"]


def fabricate(cache: Path, folder: Path, repo: str = REPO, ref: str = "main") -> Path:
    """A snapshot as the client lays it out: links into a folder of blobs."""
    root = cache / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    (root / "blobs").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / ref).write_text(COMMIT)
    for path in folder.rglob("*"):
        if path.is_file() and path.parts[-2] != "clip":
            blob = root / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
            shutil.copy(path, blob)
            link = snapshot / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
    return snapshot


def test_paths_stay_paths(tmp_path: Path, checkpoint_folder: Path) -> None:
    assert locate(checkpoint_folder).path == checkpoint_folder
    assert locate(Path("a/model.safetensors"), cache=tmp_path).path == Path("a/model.safetensors")
    assert locate(Path("no/such/folder"), cache=tmp_path) == locate(Path("no/such/folder"))
    assert locate(Path("/x/y"), cache=tmp_path).origin is None


def test_a_snapshot_in_the_cache_is_taken_without_the_network(tmp_path: Path, checkpoint_folder: Path) -> None:
    snapshot = fabricate(tmp_path, checkpoint_folder)
    for name in (REPO, f"{REPO}@main", f"{REPO}@{COMMIT}"):
        found = locate(Path(name), cache=tmp_path, endpoint="http://127.0.0.1:9")
        assert found.path == snapshot
        assert found.origin is not None
        assert (found.origin.kind, found.origin.name, found.origin.revision) == ("hub", REPO, COMMIT)


def test_offline_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="cannot be reached") as caught:
        locate(Path(REPO), cache=tmp_path, endpoint="http://127.0.0.1:9")
    assert "hf download studio/tiny" in caught.value.remedy
    assert "\n" not in str(caught.value)
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        locate(Path(REPO), cache=tmp_path, endpoint="http://127.0.0.1:9")
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        locate(Path(REPO), cache=tmp_path)


def test_a_part_of_a_snapshot_is_not_taken_for_the_whole(tmp_path: Path, checkpoint_folder: Path) -> None:
    snapshot = fabricate(tmp_path, checkpoint_folder)
    shutil.rmtree(snapshot / "tokenizer")
    with pytest.raises(InputError, match="cannot be reached"):
        locate(Path(REPO), cache=tmp_path, endpoint="http://127.0.0.1:9")


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub as the client asks for: what a repository holds, and its files. Notes the paths that are asked for."""

    folder: Path
    asked: list[str]
    status = 200
    error = ""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.asked.append(path)
        if self.status != 200:
            return self.answer(self.status, b"{}", {"X-Error-Code": self.error, "X-Error-Message": "no"})
        files = sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())
        if path.startswith(f"/api/models/{REPO}/tree/"):
            rows = [{"type": "file", "path": f, "size": (self.folder / f).stat().st_size, "oid": self.oid(f)} for f in files]
            return self.answer(200, json.dumps(rows).encode())
        if path.startswith(f"/api/models/{REPO}"):
            return self.answer(200, json.dumps({"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]}).encode())
        name = path.removeprefix(f"/{REPO}/resolve/{COMMIT}/")
        return self.answer(200, (self.folder / name).read_bytes(), {"ETag": f'"{self.oid(name)}"', "X-Repo-Commit": COMMIT})

    def oid(self, name: str) -> str:
        return hashlib.sha1((self.folder / name).read_bytes()).hexdigest()

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return


@contextmanager
def hub(folder: Path, status: int = 200, error: str = "") -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    kind = type("Hub", (_Hub,), {"folder": folder, "asked": asked, "status": status, "error": error})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_only_what_a_build_reads_is_fetched_and_kept(tmp_path: Path, checkpoint_copy: Path) -> None:
    for name in ("README.md", "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors", "extra.safetensors"):
        (checkpoint_copy / name).write_bytes(b"not wanted")
    with hub(checkpoint_copy) as (endpoint, asked):
        found = locate(Path(REPO), cache=tmp_path / "cache", endpoint=endpoint)
    got = {path.relative_to(found.path).as_posix() for path in found.path.rglob("*") if path.is_file()}
    assert got == {
        path.relative_to(checkpoint_copy).as_posix()
        for path in checkpoint_copy.rglob("*")
        if path.is_file()
        and path.read_bytes() != b"not wanted"
        and path.name not in ("open_clip_model.safetensors", "special_tokens_map.json")
    } | {"clip/open_clip_model.safetensors"}
    assert all((found.path / name).read_bytes() == (checkpoint_copy / name).read_bytes() for name in got)
    assert not any(name.endswith((".bin", ".md", ".fp16.safetensors")) for name in asked)
    again = locate(Path(REPO), cache=tmp_path / "cache", endpoint=endpoint)  # the hub is gone by now
    assert again == found


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [
        (404, "RepoNotFound", "no repository"),
        (403, "GatedRepo", "accepted its terms"),
        (404, "RevisionNotFound", "no revision"),
        (500, "", "reached"),
    ],
)
def test_what_the_hub_refuses_is_said(tmp_path: Path, status: int, error: str, said: str) -> None:
    with hub(tmp_path, status, error) as (endpoint, _), pytest.raises(InputError, match=said):
        locate(Path(REPO), cache=tmp_path / "cache", endpoint=endpoint)


def test_the_command_line_builds_nothing_offline(tmp_path: Path) -> None:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PYTHONWARNINGS": "ignore"}
    run = [sys.executable, "-m", "platemark", "build", REPO, "-o", str(tmp_path / "out")]
    done = subprocess.run(run, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 2
    assert "HF_HUB_OFFLINE" in done.stderr
    assert not (tmp_path / "out").exists()
