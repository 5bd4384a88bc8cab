"""Content Credentials: what is signed is read back; every change is seen; nobody is trusted by accident."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import c2pa
import numpy as np
import pytest
from PIL import Image

from platemark.errors import ProvenanceUnavailable
from platemark.imaging import decode, encode
from platemark.provenance import manifest_store
from platemark.provenance.credentials import CredentialReport, read
from platemark.provenance.identity import Identity, authorities, init_keys
from platemark.provenance.record import DIGITAL_SOURCE_TYPE, WATERMARK_ALGORITHM, Facts
from platemark.provenance.signing import Signed, sign

Make = Callable[..., Facts]
FORMATS = ("png", "jpeg", "webp")
PAYLOAD = "0123456789abcdef"


@pytest.fixture(scope="session")
def do_sign(picture: np.ndarray, make_facts: Make) -> Callable[..., Signed]:
    def do(
        identity: Identity, file_format: str = "png", payload: str | None = PAYLOAD, image: np.ndarray = picture, **facts: Any
    ) -> Signed:
        common = {"created": "2026-08-02T00:00:00Z", "generator": "platemark/0.1.0", "content_id": 7, "payload": payload}
        return sign(encode(image, file_format), f"image/{file_format}", make_facts(**facts), identity, **common)

    return do


@pytest.fixture(scope="session")
def signed(do_sign: Callable[..., Signed], own: Identity) -> dict[str, Signed]:
    return {file_format: do_sign(own, file_format) for file_format in FORMATS}


@pytest.fixture(scope="session")
def anchors(own_home: Path) -> bytes:
    return authorities(own_home)


def raw(data: bytes, mime: str = "image/png") -> dict[str, Any]:
    """The library's own answer, without our reading of it."""
    with c2pa.Reader(mime, io.BytesIO(data)) as reader:
        parsed: dict[str, Any] = json.loads(reader.json())
    return parsed


@pytest.mark.parametrize("file_format", FORMATS)
def test_round_trip(signed: dict[str, Signed], anchors: bytes, picture: np.ndarray, file_format: str) -> None:
    one = signed[file_format]
    report = read(one.data, f"image/{file_format}", anchors)
    assert report.state == "valid"
    assert report.trust == "trusted"
    assert report.failures == report.trust_failures == ()
    assert report.signer == "Test Studio"
    assert report.claim_generator == "platemark/0.1.0"
    assert report.digital_source_type == DIGITAL_SOURCE_TYPE
    assert report.soft_bindings == ((WATERMARK_ALGORITHM, PAYLOAD),)
    assert report.actions == ("c2pa.created", "c2pa.watermarked.bound")
    assert report.label == one.label
    unsigned = encode(picture, file_format)
    assert np.array_equal(decode(one.data).array, decode(unsigned).array)
    assert len(one.data) - len(unsigned) < 6 * 1024


def test_the_claim_follows_the_2_4_rules(signed: dict[str, Signed]) -> None:
    (manifest,) = raw(signed["png"].data)["manifests"].values()
    assert manifest["claim_generator_info"][0]["specVersion"] == "2.4.0"
    assert all(assertion["created"] for assertion in manifest["assertions"])
    actions = next(a["data"] for a in manifest["assertions"] if a["label"] == "c2pa.actions.v2")
    assert actions["allActionsIncluded"] is True
    assert actions["actions"][0]["softwareAgent"] == {"name": "platemark", "version": "0.1.0"}
    assert actions["actions"][0]["when"] == "2026-08-02T00:00:00Z"
    assert "thumbnail" not in json.dumps(manifest)


def test_facts_are_in_the_manifest_with_the_seed_as_text(signed: dict[str, Signed]) -> None:
    (manifest,) = raw(signed["png"].data)["manifests"].values()
    record = next(a["data"] for a in manifest["assertions"] if a["label"] == "com.platemark.record")
    assert record["seed"] == str(2**64 - 1)
    assert record["contentId"] == "7"
    assert record["decision"] == {"action": "allow", "policy_id": "standard", "policy_sha256": "12" * 32}


def test_resampling_is_an_action_of_its_own(do_sign: Callable[..., Signed], own: Identity, anchors: bytes) -> None:
    one = do_sign(own, resampled_from=(128, 160))
    report = read(one.data, "image/png", anchors)
    assert report.state == "valid"
    assert report.actions == ("c2pa.created", "c2pa.resized", "c2pa.watermarked.bound")
    actions = next(iter(raw(one.data)["manifests"].values()))["assertions"][0]["data"]["actions"]
    assert actions[1]["parameters"] == {"com.platemark.filter": "lanczos", "com.platemark.from": "160x128"}


@pytest.mark.parametrize(
    ("rendered", "action", "done"),
    [
        ((320, 320), "allow", ("c2pa.cropped", "c2pa.resized")),
        ((640, 768), "allow", ("c2pa.resized",)),
        ((320, 640), "flag", ("c2pa.cropped",)),  # a cut alone: nothing was resampled
        (None, "blur", ("c2pa.filtered",)),
        ((320, 320), "blur", ("c2pa.cropped", "c2pa.resized", "c2pa.filtered")),
        (None, "allow", ()),
    ],
)
def test_every_edit_is_an_action_in_its_order(
    do_sign: Callable[..., Signed], own: Identity, anchors: bytes, rendered: Any, action: str, done: tuple[str, ...]
) -> None:
    decision = {"action": action, "policy_id": "standard", "policy_sha256": "12" * 32}
    one = do_sign(own, resampled_from=rendered, delivered_size=(320, 384), decision=decision)
    report = read(one.data, "image/png", anchors)
    assert report.state == "valid"
    assert report.failures == ()
    assert report.actions == ("c2pa.created", *done, "c2pa.watermarked.bound")
    assert report.digital_source_type == DIGITAL_SOURCE_TYPE
    (manifest,) = raw(one.data)["manifests"].values()
    claimed = next(a["data"] for a in manifest["assertions"] if a["label"] == "c2pa.actions.v2")
    assert claimed["allActionsIncluded"] is True
    for entry in claimed["actions"][1:-1]:
        assert entry["digitalSourceType"].endswith("/algorithmicallyEnhanced")
        assert entry["parameters"].get("com.platemark.filter") == {"c2pa.resized": "lanczos", "c2pa.filtered": "blur"}.get(entry["action"])


def test_without_a_watermark_none_is_claimed(do_sign: Callable[..., Signed], own: Identity, anchors: bytes) -> None:
    report = read(do_sign(own, payload=None).data, "image/png", anchors)
    assert report.actions == ("c2pa.created",)
    assert report.soft_bindings == ()


def test_trust_depends_on_who_looks(
    signed: dict[str, Signed], do_sign: Callable[..., Signed], dev: Identity, anchors: bytes, tmp_path: Path
) -> None:
    init_keys(tmp_path, name="Test Studio")  # the same name, another CA
    for strange in (b"", authorities(tmp_path)):
        report = read(signed["png"].data, "image/png", strange)
        assert (report.state, report.trust) == ("valid", "untrusted")
        assert "signingCredential.untrusted" in report.trust_failures
    development = do_sign(dev)
    own_authority = dev.chain_pem[dev.chain_pem.index(b"-----BEGIN", 1) :]
    for anchor in (anchors, b"", own_authority):  # even where its CA were an anchor
        assert read(development.data, "image/png", anchor).trust == "development identity"


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_changed_picture_is_seen(signed: dict[str, Signed], anchors: bytes, file_format: str) -> None:
    data = bytearray(signed[file_format].data)
    data[len(data) // 2] ^= 1
    report = read(bytes(data), f"image/{file_format}", anchors)
    assert report.state == "invalid"
    assert report.failures == ("assertion.dataHash.mismatch",)


def actions_of(*actions: dict[str, Any]) -> dict[str, Any]:
    return {"label": "c2pa.actions.v2", "created": True, "data": {"actions": list(actions)}}


def chunk_of(data: bytes) -> bytes:
    """The caBX chunk of a PNG."""
    at = data.index(b"caBX") - 4
    return data[at : at + 12 + int.from_bytes(data[at : at + 4], "big")]


def test_a_transplanted_manifest_is_seen(signed: dict[str, Signed], anchors: bytes, make_picture: Callable[..., np.ndarray]) -> None:
    other = encode(make_picture(1), "png")
    report = read(other[:33] + chunk_of(signed["png"].data) + other[33:], "image/png", anchors)
    assert report.state == "invalid"
    assert "assertion.dataHash.mismatch" in report.failures


@pytest.mark.parametrize(("old", "new"), [(b"trainedAlgorithmicMedia", b"digitalCreationInPieces"), (PAYLOAD.encode(), b"f" * 16)])
def test_edited_assertions_are_seen(signed: dict[str, Signed], anchors: bytes, old: bytes, new: bytes) -> None:
    import zlib

    chunk = chunk_of(signed["png"].data)
    body = chunk[4:-4].replace(old, new)
    assert body != chunk[4:-4]
    forged = chunk[:4] + body + zlib.crc32(body).to_bytes(4, "big")
    report = read(signed["png"].data.replace(chunk, forged), "image/png", anchors)
    assert report.state == "invalid"
    assert "assertion.hashedURI.mismatch" in report.failures


def test_a_chunk_added_later_is_seen(signed: dict[str, Signed], anchors: bytes) -> None:
    data = signed["png"].data
    text = bytes.fromhex("00000003744558746100627b2e1e01")  # tEXt "a" = "b"
    report = read(data[:33] + chunk_of(data) + text + data[33 + len(chunk_of(data)) :], "image/png", anchors)
    assert report.state == "invalid"


def test_stripped_and_resaved_files_have_none(signed: dict[str, Signed], anchors: bytes) -> None:
    data = signed["png"].data
    assert read(data.replace(chunk_of(data), b""), "image/png", anchors) == CredentialReport("absent")
    resaved = io.BytesIO()
    Image.open(io.BytesIO(data)).save(resaved, "png")
    assert read(resaved.getvalue(), "image/png", anchors) == CredentialReport("absent")


def test_the_stored_manifest_puts_the_file_together_again(signed: dict[str, Signed], picture: np.ndarray) -> None:
    one = signed["png"]
    assert one.manifest in chunk_of(one.data)
    stripped = one.data.replace(chunk_of(one.data), b"")
    assert stripped == encode(picture, "png")


@pytest.mark.parametrize("damage", ["cut", "noise", "twice"])
def test_broken_manifests_are_corrupt(signed: dict[str, Signed], anchors: bytes, damage: str) -> None:
    import zlib

    data, chunk = signed["png"].data, chunk_of(signed["png"].data)

    def with_body(body: bytes) -> bytes:
        framed = len(body).to_bytes(4, "big") + b"caBX" + body + zlib.crc32(b"caBX" + body).to_bytes(4, "big")
        return data.replace(chunk, framed)

    body = chunk[8:-4]
    broken = {"cut": with_body(body[: len(body) // 2]), "noise": with_body(b"\x01" * 200), "twice": data.replace(chunk, chunk * 2)}[damage]
    report = read(broken, "image/png", anchors)
    assert report.state == "corrupt"
    assert report.detail
    assert "\n" not in report.detail


@pytest.mark.parametrize("file_format", FORMATS)
def test_plain_and_damaged_files_without_credentials(picture: np.ndarray, file_format: str) -> None:
    data = encode(picture, file_format)
    for part in (data, data[: len(data) // 2], data[:40], b""):
        assert read(part, f"image/{file_format}", b"").state == "absent"


def test_a_tampered_ingredient_is_seen_though_the_library_says_trusted(signed: dict[str, Signed], own: Identity, anchors: bytes) -> None:
    tampered = bytearray(signed["jpeg"].data)
    tampered[-500] ^= 1
    manifest = {
        "claim_generator_info": [{"name": "other", "version": "1"}],
        "assertions": [actions_of({"action": "c2pa.opened", "parameters": {"ingredientIds": ["it"]}})],
    }
    out = io.BytesIO()
    info = c2pa.C2paSignerInfo(b"es256", own.chain_pem, own.private_key_pem, None)
    settings = c2pa.Settings.from_dict({"trust": {"trust_anchors": anchors.decode()}, "builder": {"thumbnail": {"enabled": False}}})
    with c2pa.Context(settings) as context, c2pa.Signer.from_info(info) as signer, c2pa.Builder(manifest, context=context) as builder:
        ingredient = {"title": "it", "relationship": "parentOf", "instance_id": "it", "label": "it"}
        builder.add_ingredient(ingredient, "image/jpeg", io.BytesIO(bytes(tampered)))
        builder.sign(signer, "image/jpeg", io.BytesIO(bytes(tampered)), out)
        with c2pa.Reader("image/jpeg", io.BytesIO(out.getvalue()), context=context) as reader:
            assert reader.get_validation_state() == "Trusted"
    report = read(out.getvalue(), "image/jpeg", anchors)
    assert report.state == "invalid"
    assert report.failures == ()
    assert "assertion.dataHash.mismatch" in report.ingredient_failures


@pytest.mark.parametrize("stored", ["abcd", "dcba", "cadb"])
def test_ingredients_come_from_the_active_manifest_down_in_whatever_order_they_are_stored(stored: str) -> None:
    """c is active and was made from a and, through it, b; nothing leads to d; b names c again."""
    below = {"a": ["b"], "b": ["c"], "c": ["a", ""], "d": [""]}
    manifests = {label: {"ingredients": [{"title": f"{label}{to}", "active_manifest": to} for to in below[label]]} for label in stored}
    found = manifest_store.ingredients({"active_manifest": "c", "manifests": manifests}, ())
    assert [one.title for one in found] == ["ca", "c", "ab", "bc", "d"]


def test_a_remote_manifest_is_named_and_not_fetched(own: Identity, picture: np.ndarray) -> None:
    manifest = {
        "claim_generator_info": [{"name": "other", "version": "1"}],
        "assertions": [actions_of({"action": "c2pa.created", "digitalSourceType": DIGITAL_SOURCE_TYPE})],
    }
    out = io.BytesIO()
    info = c2pa.C2paSignerInfo(b"es256", own.chain_pem, own.private_key_pem, None)
    with c2pa.Signer.from_info(info) as signer, c2pa.Builder(manifest) as builder:
        builder.set_no_embed()
        builder.set_remote_url("http://127.0.0.1:9/manifest.c2pa")
        builder.sign(signer, "image/jpeg", io.BytesIO(encode(picture, "jpeg")), out)
    report = read(out.getvalue(), "image/jpeg", b"")
    assert report.state == "remote"
    assert report.detail.startswith("http://127.0.0.1:9/manifest.c2pa")


def test_failures_to_sign_are_ours_and_one_line(do_sign: Callable[..., Signed], own: Identity, dev: Identity) -> None:
    from dataclasses import replace

    for broken in (
        replace(own, private_key_pem=dev.private_key_pem),
        replace(own, chain_pem=b"rubbish"),
        replace(own, private_key_pem=b""),
    ):
        with pytest.raises(ProvenanceUnavailable) as caught:
            do_sign(broken)
        assert "\n" not in str(caught.value)
        assert "PRIVATE" not in str(caught.value)


FORKED = """
import os, sys
import numpy as np
from pathlib import Path
from platemark.imaging import encode
from platemark.provenance.credentials import read
from platemark.provenance.signing import sign
from platemark.provenance.identity import load_identity
from platemark.provenance.record import Facts

identity = load_identity(Path(sys.argv[1]))
picture = encode(np.zeros((64, 64, 3), np.uint8))
facts = Facts(model_name="m", model_sha256="", bundle_sha256="", seed=1, request_hmac="", settings={}, resampled_from=None, decision={})

def go():
    return sign(picture, "image/png", facts, identity, created="2026-08-02T00:00:00Z", generator="p/1", content_id=1, payload=None)

go()
if (child := os.fork()) == 0:
    go()
    os._exit(0)
sys.exit(os.waitpid(child, 0)[1] or read(go().data, "image/png", b"").state != "valid")
"""


def test_signing_works_in_a_forked_child(own_home: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FORKED, str(own_home)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
