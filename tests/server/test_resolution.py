"""The C2PA Soft Binding Resolution API: its shapes, its errors, its limits, and what it keeps to itself."""

from __future__ import annotations

import asyncio
import base64
import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from platemark.imaging import decode
from platemark.provenance import credentials, png
from platemark.provenance.keyring import held_keys
from platemark.provenance.record import WATERMARK_ALGORITHM
from platemark.provenance.registry import Registry
from platemark.provenance.softbinding import FINGERPRINT_ALGORITHM, active_manifest
from platemark.server.limits import Limits
from platemark.server.resolution import create_app

PNG = {"content-type": "image/png"}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def jpeg(data: bytes, quality: int = 85) -> bytes:
    out = io.BytesIO()
    Image.fromarray(decode(data).array).save(out, "JPEG", quality=quality)
    return out.getvalue()


@pytest.fixture
def ask(released: Any, generous: Limits) -> Callable[..., httpx.Response]:
    """`ask(method, path, limits=..., registry=..., **options of httpx)`: one request to a fresh service."""

    def call(method: str, path: str, *, limits: Limits = generous, registry: Registry | None = None, **options: Any) -> httpx.Response:
        async def go(opened: Registry) -> httpx.Response:
            transport = httpx.ASGITransport(create_app(released.home, opened, limits), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://registry.test") as client:
                return await client.request(method, path, **options)

        if registry is not None:
            return asyncio.run(go(registry))
        with Registry.open(released.home) as opened:
            return asyncio.run(go(opened))

    return call


def test_supported_algorithms(ask: Callable[..., httpx.Response]) -> None:
    answer = ask("GET", "/services/supportedAlgorithms")
    assert answer.status_code == 200
    assert answer.json() == {"watermarks": [{"alg": WATERMARK_ALGORITHM}], "fingerprints": [{"alg": FINGERPRINT_ALGORITHM}]}


def test_a_watermark_value_leads_to_its_manifest(ask: Callable[..., httpx.Response], released: Any) -> None:
    record = released.one.record
    payload = bytes.fromhex(record.watermark_payload)
    expected = {"matches": [{"manifestId": record.manifest_label}]}
    for value in (b64(payload), b64(record.watermark_payload.encode()), base64.urlsafe_b64encode(payload).decode().rstrip("=")):
        got = ask("GET", "/matches/byBinding", params={"alg": WATERMARK_ALGORITHM, "value": value})
        posted = ask("POST", "/matches/byBinding", json={"alg": WATERMARK_ALGORITHM, "value": value})
        assert (got.status_code, posted.status_code) == (200, 200)
        assert got.json() == posted.json() == expected
    unknown = ask("GET", "/matches/byBinding", params={"alg": WATERMARK_ALGORITHM, "value": b64(b"\x10" + b"\0" * 7)})
    assert (unknown.status_code, unknown.json()) == (200, {"matches": []})
    flags = b64(payload[:-1] + bytes([payload[-1] ^ 1]))  # another payload of the same id is another binding
    assert ask("GET", "/matches/byBinding", params={"alg": WATERMARK_ALGORITHM, "value": flags}).json() == {"matches": []}


def test_a_fingerprint_leads_to_those_near_it_with_a_score(ask: Callable[..., httpx.Response], released: Any) -> None:
    record = released.two.record
    near = int(record.perceptual_hash, 16) ^ 0b111
    for value in (b64(near.to_bytes(32, "big")), b64(f"{near:064x}".encode())):
        answer = ask("GET", "/matches/byBinding", params={"alg": FINGERPRINT_ALGORITHM, "value": value, "maxResults": 5})
        assert answer.json() == {"matches": [{"manifestId": record.manifest_label, "similarityScore": 99}]}


def test_a_picture_leads_to_its_manifest(ask: Callable[..., httpx.Response], released: Any) -> None:
    copy = jpeg(released.one.data)
    both = ask("POST", "/matches/byContent", content=copy, headers={"content-type": "image/jpeg"})
    assert both.status_code == 200
    assert both.json() == {"matches": [{"manifestId": released.one.record.manifest_label}]}
    looks = ask("POST", "/matches/byContent", params={"alg": FINGERPRINT_ALGORITHM}, content=copy, headers=PNG)
    (match,) = looks.json()["matches"]
    assert match["manifestId"] == released.one.record.manifest_label
    assert 88 <= match["similarityScore"] <= 100


def test_the_watermark_is_read_where_looks_say_nothing(ask: Callable[..., httpx.Response], released: Any) -> None:
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(decode(released.two.data).array[:, ::-1])).save(out, "PNG")
    for algorithm, expected in ((WATERMARK_ALGORITHM, [{"manifestId": released.two.record.manifest_label}]), (FINGERPRINT_ALGORITHM, [])):
        answer = ask("POST", "/matches/byContent", params={"alg": algorithm}, content=out.getvalue(), headers=PNG)
        assert answer.json() == {"matches": expected}


def test_a_hint_saves_the_search_but_must_fit_the_picture(
    ask: Callable[..., httpx.Response], released: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from platemark.provenance import softbinding

    def hinted(stamped: Any) -> dict[str, Any]:
        hint = {"hintAlg": WATERMARK_ALGORITHM, "hintValue": b64(bytes.fromhex(stamped.record.watermark_payload))}
        return dict(ask("POST", "/matches/byContent", params=hint, content=released.one.data, headers=PNG).json())

    right = {"matches": [{"manifestId": released.one.record.manifest_label}]}
    assert hinted(released.two) == right  # a wrong hint leads nowhere
    monkeypatch.setattr(softbinding, "detect", None)
    assert hinted(released.one) == right  # without looking for a watermark
    lone = ask("POST", "/matches/byContent", params={"hintAlg": WATERMARK_ALGORITHM}, content=released.one.data, headers=PNG)
    assert lone.status_code == 400


def test_manifests_come_back_byte_for_byte(ask: Callable[..., httpx.Response], released: Any) -> None:
    stored = next(chunk.data for chunk in png.chunks(released.one.data) if chunk.kind == png.CREDENTIALS)
    label = released.one.record.manifest_label
    for path in (f"/manifests/{label}", f"/manifests/{label.replace(':', '%3A')}", f"/manifests/{label}?returnActiveManifest=false"):
        answer = ask("GET", path)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/c2pa"
        assert answer.content == stored
    whole = png.with_credentials(png.without_credentials(released.one.data), answer.content)
    assert credentials.read(whole, "image/png", b"").state == "valid"
    active = ask("GET", f"/manifests/{label}?returnActiveManifest=true")
    assert active.content == stored  # there is one manifest in it


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content) + 8) + kind + content


def test_the_active_manifest_is_the_last_one() -> None:
    head, first, second = box(b"jumd", b"c2pa"), box(b"jumb", b"first"), box(b"jumb", b"second!")
    assert active_manifest(box(b"jumb", head + first + second)) == box(b"jumb", head + second)
    assert active_manifest(box(b"jumb", head + second)) == box(b"jumb", head + second)
    for damaged in (b"", box(b"jumb", head), box(b"jumb", first + second), box(b"jumb", head + first)[:-1], box(b"free", head + first)):
        with pytest.raises(Exception, match="damaged"):
            active_manifest(damaged)


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("GET", "/matches/byBinding", {}, 400),
        ("GET", "/matches/byBinding", {"params": {"alg": WATERMARK_ALGORITHM}}, 400),
        ("GET", "/matches/byBinding", {"params": {"alg": "com.example.other", "value": "AAAA"}}, 400),
        ("GET", "/matches/byBinding", {"params": {"alg": WATERMARK_ALGORITHM, "value": "no base64!"}}, 400),
        ("GET", "/matches/byBinding", {"params": {"alg": WATERMARK_ALGORITHM, "value": "AAAA"}}, 400),
        ("GET", "/matches/byBinding", {"params": {"alg": WATERMARK_ALGORITHM, "value": "A" * 3000}}, 400),
        ("GET", "/matches/byBinding", {"params": {"alg": WATERMARK_ALGORITHM, "value": "A" * 5000}}, 414),
        ("GET", "/matches/byBinding", {"params": {"alg": WATERMARK_ALGORITHM, "value": "AAAAAAAAAAA=", "maxResults": "0"}}, 400),
        ("GET", "/matches/byBinding", {"params": {"alg": WATERMARK_ALGORITHM, "value": "AAAAAAAAAAA=", "maxResults": "x"}}, 400),
        ("GET", "/matches/byBinding", {"params": {"alg": WATERMARK_ALGORITHM, "value": "AAAAAAAAAAA=", "maxResults": "9" * 50}}, 400),
        ("POST", "/matches/byBinding", {"content": b"{"}, 400),
        ("POST", "/matches/byBinding", {"content": b"[" * 60_000}, 400),
        ("POST", "/matches/byBinding", {"json": [1]}, 400),
        ("POST", "/matches/byBinding", {"json": {"alg": WATERMARK_ALGORITHM, "value": 3}}, 400),
        ("POST", "/matches/byBinding", {"content": b" " * 70_000}, 413),
        ("POST", "/matches/byContent", {"content": b"x", "headers": {"content-type": "text/plain"}}, 415),
        ("POST", "/matches/byContent", {"content": b"no picture", "headers": PNG}, 415),
        ("POST", "/matches/byContent", {"content": b"", "headers": PNG}, 415),
        ("POST", "/matches/byContent", {"content": png.SIGNATURE + b"\0\0\0\rIHDR", "headers": PNG}, 400),
        ("POST", "/matches/byContent", {"params": {"alg": "x"}, "content": b"", "headers": PNG}, 400),
        ("GET", "/manifests/urn:c2pa:unknown", {}, 404),
        ("GET", "/manifests/" + "x" * 600, {}, 400),
        ("GET", "/manifests/a%00b", {}, 400),
        ("GET", "/manifests/x?returnActiveManifest=perhaps", {}, 400),
        ("GET", "/manifests", {}, 404),
        ("GET", "/nowhere", {}, 404),
        ("DELETE", "/matches/byBinding", {}, 405),
        ("POST", "/manifests/x", {}, 405),
    ],
)  # fmt: skip
def test_errors_are_json(ask: Callable[..., httpx.Response], method: str, path: str, options: dict[str, Any], status: int) -> None:
    answer = ask(method, path, **options)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"code", "message", "remedy"}


def bomb(width: int, height: int) -> bytes:
    """A PNG of so many pixels, all black: small as a file."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * (width + 1) * min(height, 200))
    parts = (png.Chunk(b"IHDR", header), png.Chunk(b"IDAT", data), png.Chunk(b"IEND", b""))
    return png.SIGNATURE + b"".join(part.pack() for part in parts)


def test_decompression_bombs_are_refused_by_their_header(ask: Callable[..., httpx.Response], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(Image.Image, "load", never)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    for width, height in ((60_000, 60_000), (10_000, 10_000)):
        answer = ask("POST", "/matches/byContent", content=bomb(width, height), headers=PNG)
        assert answer.status_code == 413
        assert "megapixels" in answer.json()["error"]["message"]


def test_large_files_are_cut_off(ask: Callable[..., httpx.Response], generous: Limits, released: Any) -> None:
    size = len(released.one.data)
    for bound, status in ((size - 1, 413), (size, 200)):
        limits = replace(generous, max_bytes=bound)
        assert ask("POST", "/matches/byContent", content=released.one.data, headers=PNG, limits=limits).status_code == status


def test_who_asks_too_often_is_told_when_to_come_back(released: Any) -> None:
    async def go(registry: Registry) -> list[httpx.Response]:
        transport = httpx.ASGITransport(create_app(released.home, registry, replace(Limits(), per_minute=12)))
        async with httpx.AsyncClient(transport=transport, base_url="http://registry.test") as client:
            answers = [await client.get("/services/supportedAlgorithms") for _ in range(3)]
            answers.append(await client.post("/matches/byContent", content=b"x", headers=PNG))  # ten at once
            answers += [await client.get("/services/supportedAlgorithms") for _ in range(12)]
            return answers

    with Registry.open(released.home) as registry:
        answers = asyncio.run(go(registry))
    assert [answer.status_code for answer in answers[:4]] == [200, 200, 200, 429]
    assert int(answers[3].headers["retry-after"]) >= 1
    assert answers[3].json()["error"]["code"] == "refused"
    assert 429 in [answer.status_code for answer in answers[4:]]


def test_nothing_secret_gets_out(ask: Callable[..., httpx.Response], released: Any) -> None:
    record = released.one.record
    label = record.manifest_label
    answers = [
        ask("POST", "/matches/byContent", content=released.one.data, headers=PNG),
        ask("GET", f"/manifests/{label}"),
        ask("GET", "/matches/byBinding", params={"alg": WATERMARK_ALGORITHM, "value": b64(bytes.fromhex(record.watermark_payload))}),
        ask("GET", "/services/supportedAlgorithms"),
        ask("GET", "/manifests/nothing"),
    ]
    with Registry.open(released.home) as registry:
        entry = registry.find(record.content_id, record.issuer)
    assert entry is not None
    assert entry.record is not None
    assert "SECRET-PROMPT" in str(entry.record.facts.prompt)  # so there would be something to leak
    (held,) = held_keys(released.home)
    said = b"".join(answer.content + str(answer.headers).encode() for answer in answers)
    for secret in (b"SECRET-PROMPT", held.secret, held.secret.hex().encode(), str(released.home).encode()):
        assert secret not in said
    assert b"server" not in str(answers[0].headers).lower().encode()


def test_a_pruned_manifest_is_no_match(ask: Callable[..., httpx.Response], released: Any, tmp_path: Any) -> None:
    record = released.one.record
    with Registry.open(tmp_path) as registry:
        registry.commit(record, b"manifest")
        value = b64(bytes.fromhex(record.watermark_payload))
        asked: dict[str, Any] = {"params": {"alg": WATERMARK_ALGORITHM, "value": value}, "registry": registry}
        assert len(ask("GET", "/matches/byBinding", **asked).json()["matches"]) == 1
        registry.prune(datetime(2100, 1, 1, tzinfo=UTC))
        assert ask("GET", "/matches/byBinding", **asked).json() == {"matches": []}
        assert ask("POST", "/matches/byContent", content=released.one.data, headers=PNG, registry=registry).json() == {"matches": []}
        assert ask("GET", f"/manifests/{record.manifest_label}", registry=registry).status_code == 404


def test_a_registry_out_of_reach_is_a_503_without_its_address(ask: Callable[..., httpx.Response], tmp_path: Any) -> None:
    with Registry.open(tmp_path) as registry:
        (tmp_path / "registry.sqlite").write_bytes(b"not a database " * 100)
        for side in ("-wal", "-shm"):
            (tmp_path / f"registry.sqlite{side}").unlink(missing_ok=True)
        for path in ("/manifests/x", "/healthz"):
            answer = ask("GET", path, registry=registry)
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "30"
            assert str(tmp_path) not in answer.text


def test_a_bug_is_a_500_in_json(ask: Callable[..., httpx.Response], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("SECRET")

    monkeypatch.setattr("platemark.provenance.softbinding.manifest", broken)
    answer = ask("GET", "/manifests/x")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "error"
    assert "SECRET" not in answer.text


def test_web_pages_may_ask(ask: Callable[..., httpx.Response]) -> None:
    answer = ask("GET", "/services/supportedAlgorithms", headers={"origin": "https://verify.example"})
    assert answer.headers["access-control-allow-origin"] == "*"
    asked = {"origin": "https://verify.example", "access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    assert ask("OPTIONS", "/matches/byContent", headers=asked).status_code == 200


def test_health(ask: Callable[..., httpx.Response]) -> None:
    assert ask("GET", "/healthz").json() == {"status": "ok"}
