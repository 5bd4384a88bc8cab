"""The service as a process of its own, on uvicorn."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest


def start(home: Any, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-m", "platemark", "registry", "serve", *options]
    environment = {name: value for name, value in os.environ.items() if name != "PLATEMARK_REGISTRY"} | {"PLATEMARK_HOME": str(home)}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.fixture
def service(released: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = start(released.home, "--port", "0", "--rate", "40")
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.search(r"serving .*registry\.sqlite on (http://127\.0\.0\.1:\d+)$", line.strip())
        assert found, line + process.stderr.read()
        yield process, found[1]
    finally:
        process.kill()
        process.communicate()


def test_a_real_process_answers_limits_and_stops(service: tuple[subprocess.Popen[str], str], released: Any) -> None:
    process, url = service
    with httpx.Client(base_url=url, trust_env=False) as client:
        answer = client.post("/matches/byContent", content=released.one.data, headers={"content-type": "image/png"})
        assert answer.json() == {"matches": [{"manifestId": released.one.record.manifest_label}]}
        manifest = client.get(f"/manifests/{released.one.record.manifest_label}")
        assert manifest.headers["content-type"] == "application/c2pa"
        assert manifest.content in released.one.data
        assert "server" not in manifest.headers
        spoofed = [client.get("/services/supportedAlgorithms", headers={"x-forwarded-for": f"10.0.0.{k}"}).status_code for k in range(60)]
        assert spoofed[0] == 200
        assert spoofed.count(429) > 20  # whoever is not a trusted proxy cannot pass as somebody else
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) in (0, -signal.SIGTERM)
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()


def test_an_address_that_is_taken_is_named(released: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start(released.home, "--port", str(taken.getsockname()[1]))
        _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said.startswith("error: cannot listen on 127.0.0.1:")
    assert said.count("\n") == 1


def test_without_the_extra_the_remedy_is_named(released: Any) -> None:
    code = (
        "import sys; sys.modules['uvicorn'] = None\n"
        "from platemark.cli import main; main(['registry', 'serve', '--port', '0'])"
    )  # fmt: skip
    environment = os.environ | {"PLATEMARK_HOME": str(released.home)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert "extra 'serve'" in done.stderr
