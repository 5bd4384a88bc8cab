"""Signing: claims that pass the conformance rubric, files whose pixels stay, parents that are carried, and keys of every kind."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import c2pa
import numpy as np
import PIL.Image
import pytest

from platemark.errors import ImageError, InputError, ProvenanceUnavailable
from platemark.imaging import WRITABLE, encode
from platemark.provenance import signing
from platemark.provenance.c2pa_context import open_context
from platemark.provenance.certificates import ALGORITHMS, Algorithm
from platemark.provenance.credentials import read
from platemark.provenance.identity import Identity, authorities, init_keys
from platemark.provenance.metadata.rules import MetadataRules
from platemark.provenance.record import COMPOSITE_SOURCE_TYPE, DIGITAL_SOURCE_TYPE, Facts, Licence
from platemark.provenance.signing import Signed, SignOptions, sign, sign_bytes, sign_file, verified

Make = Callable[..., Facts]
PAYLOAD = "0123456789abcdef"
SIX_KIB = 6 * 1024


def crjson(data: bytes, mime: str = "image/png") -> dict[str, Any]:
    """The library's own JSON of all manifests, as conformance tools take it."""
    with open_context(b"") as context, c2pa.Reader(mime, io.BytesIO(data), context=context) as reader:
        found: dict[str, Any] = json.loads(reader.crjson())
    return found


def manifests(data: bytes, mime: str) -> dict[str, Any]:
    with open_context(b"") as context, c2pa.Reader(mime, io.BytesIO(data), context=context) as reader:
        found: dict[str, Any] = json.loads(reader.json())["manifests"]
    return found


# The checks of the C2PA asset rubric (conformance program 0.2, specification 2.4) that a generator can fail, in our own words.
INCEPTION = {"c2pa.created", "c2pa.opened"}
IMPERCEPTIBLE = {
    "c2pa.converted", "c2pa.published", "c2pa.repackaged", "c2pa.transcoded", "c2pa.resized.proportional", "c2pa.enhanced",
    "c2pa.edited.metadata", "c2pa.watermarked.bound", "c2pa.watermarked.unbound", "c2pa.redacted", "c2pa.placed",
}  # fmt: skip
KNOWN_ACTIONS = INCEPTION | IMPERCEPTIBLE | {"c2pa.edited", "c2pa.cropped", "c2pa.resized", "c2pa.filtered", "c2pa.removed", "c2pa.drawing"}
KNOWN_ASSERTIONS = {
    "c2pa.hash.data", "c2pa.hash.bmff.v3", "c2pa.actions.v2", "c2pa.ingredient.v3", "c2pa.soft-binding", "c2pa.metadata",
    "c2pa.ai-disclosure",
}  # fmt: skip
STANDARD_PARAMETERS = {"redacted", "ingredients", "description", "relatedAssertions"}


def rubric(report: dict[str, Any]) -> set[str]:
    """Names of the checks that the active manifest fails."""
    active = report["manifests"][0]
    claim, assertions = active["claim.v2"], active["assertions"]
    info = claim["claim_generator_info"]
    info = info[0] if isinstance(info, list) else info
    actions = [action for assertion in assertions.values() for action in assertion.get("actions", [])]
    names = [action["action"] for action in actions]
    created = [entry["url"].rpartition("/")[2] for entry in claim.get("created_assertions", [])]
    ingredients = [one for one in assertions.values() if "relationship" in one]
    parameters = [name for action in actions for name in action.get("parameters", {})]
    standard = [label.partition("__")[0] for label in assertions if label.startswith("c2pa.")]
    failing = {str(status["code"]) for status in active["validationResults"].get("failure", [])}
    opened = [action for action in actions if action["action"] == "c2pa.opened"]
    checks = {
        "source type on perceptible edits": all(
            "digitalSourceType" in action for action in actions if action["action"] not in INCEPTION | IMPERCEPTIBLE
        ),
        "specVersion": str(info.get("specVersion", "")).split(".")[:2] == ["2", "4"] and "specVersion" not in claim,
        "allActionsIncluded": all("allActionsIncluded" in one for one in assertions.values() if "actions" in one),
        "no source type on opened": not any("digitalSourceType" in action for action in opened),
        "source type on created": all("digitalSourceType" in one for one in actions if one["action"] == "c2pa.created"),
        "actions v2 created": any("c2pa.actions" in url for url in created) and created[0] == "c2pa.actions.v2",
        "begins with created or opened": names[0] in INCEPTION and len([name for name in names if name in INCEPTION]) == 1,
        "opened has one ingredient": all(len(action.get("parameters", {}).get("ingredients", [])) == 1 for action in opened),
        "known assertions": set(standard) <= KNOWN_ASSERTIONS,
        "known actions": all(name in KNOWN_ACTIONS for name in names if name.startswith("c2pa.")),
        "own names have a dot": all("." in name for name in [*assertions, *names]),
        "own parameters have a dot": all("." in name or name in STANDARD_PARAMETERS for name in parameters),
        "label is a C2PA URN": str(active["label"]).startswith("urn:c2pa:"),
        "ingredients": all(
            one["relationship"] in ("parentOf", "inputTo", "componentOf") and ("activeManifest" in one) == ("validationResults" in one)
            for one in ingredients
        ),
        "only opened means complete": names != ["c2pa.opened"] or assertions["c2pa.actions.v2"]["allActionsIncluded"] is True,
        "soft binding where watermarked": ("c2pa.watermarked.bound" in names) == ("c2pa.soft-binding" in assertions),
        "validates": failing <= {"signingCredential.untrusted"},
    }
    return {name for name, passed in checks.items() if not passed}


@pytest.fixture(scope="session")
def do_sign(picture: np.ndarray, make_facts: Make, own: Identity) -> Callable[..., Signed]:
    def do(
        file_format: str = "png",
        *,
        payload: str | None = PAYLOAD,
        options: SignOptions = signing.DEFAULT_OPTIONS,
        who: Identity = own,
        **facts: Any,
    ) -> Signed:
        common = {"created": "2026-08-02T00:00:00Z", "generator": "platemark/0.1.0", "content_id": 7, "payload": payload}
        return sign(encode(picture, file_format), f"image/{file_format}", make_facts(**facts), who, options=options, **common)

    return do


@pytest.fixture(scope="session")
def signed_jpeg(do_sign: Callable[..., Signed]) -> bytes:
    return do_sign("jpeg").data


BLUR = {"action": "blur", "policy_id": "standard", "policy_sha256": "12" * 32}
RIGHTS = MetadataRules(creator="Studio", rights="© 2026 Studio", rights_url="https://example.org/r", do_not_train=True)


@pytest.mark.parametrize("file_format", WRITABLE)
def test_a_generated_picture_passes_the_rubric(do_sign: Callable[..., Signed], file_format: str) -> None:
    one = do_sign(file_format, resampled_from=(320, 320), decision=BLUR, licences=(Licence(part="model", name="m", licence="MIT"),))
    assert rubric(crjson(one.data, f"image/{file_format}")) == set()


@pytest.mark.parametrize("operation", ["img2img", "inpaint"])
@pytest.mark.parametrize("signed_before", [True, False])
def test_pictures_made_from_pictures_pass_the_rubric(
    do_sign: Callable[..., Signed], signed_jpeg: bytes, picture: np.ndarray, operation: str, signed_before: bool
) -> None:
    parent = signed_jpeg if signed_before else encode(picture, "webp")
    one = do_sign(operation=operation, options=SignOptions(parent=parent, rules=RIGHTS))
    report = crjson(one.data)
    assert rubric(report) == set()
    actions = report["manifests"][0]["assertions"]["c2pa.actions.v2"]["actions"]
    assert [action["action"] for action in actions] == ["c2pa.opened", "c2pa.edited", "c2pa.watermarked.bound"]
    assert actions[1]["digitalSourceType"] == (COMPOSITE_SOURCE_TYPE if operation == "inpaint" else DIGITAL_SOURCE_TYPE)
    ingredient = report["manifests"][0]["assertions"]["c2pa.ingredient.v3"]
    assert ingredient["relationship"] == "parentOf"
    assert ("activeManifest" in ingredient) == signed_before
    assert len(report["manifests"]) == 1 + signed_before


@pytest.mark.parametrize("source_type", [None, "digitalCapture"])
def test_an_existing_file_passes_the_rubric(own: Identity, picture: np.ndarray, source_type: str | None) -> None:
    one = sign_bytes(encode(picture, "png"), own, source_type=source_type, options=SignOptions(rules=RIGHTS))
    assert rubric(crjson(one.data)) == set()
    assert read(one.data, "image/png", b"").actions == ("c2pa.opened" if source_type is None else "c2pa.created",)


def test_the_rubric_can_fail(own: Identity, picture: np.ndarray) -> None:
    """A manifest as one would write it without knowing the rules."""
    actions = [
        {"action": "c2pa.created", "digitalSourceType": DIGITAL_SOURCE_TYPE},
        {"action": "c2pa.cropped", "parameters": {"from": "1x1"}},
    ]
    naive = {
        "claim_generator_info": [{"name": "p", "version": "1"}],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}],
    }
    out = io.BytesIO()
    info = c2pa.C2paSignerInfo(b"es256", own.chain_pem, own.private_key_pem, None)
    with open_context(b"") as context, c2pa.Signer.from_info(info) as signer, c2pa.Builder(naive, context=context) as builder:
        builder.sign(signer, "image/png", io.BytesIO(encode(picture, "png")), out)
    assert rubric(crjson(out.getvalue())) == {
        "specVersion", "allActionsIncluded", "actions v2 created", "source type on perceptible edits", "own parameters have a dot",
    }  # fmt: skip


def test_inpainting_without_a_parent_is_created_as_a_composite(do_sign: Callable[..., Signed]) -> None:
    report = read(do_sign(operation="inpaint").data, "image/png", b"")
    assert report.actions == ("c2pa.created", "c2pa.watermarked.bound")
    assert report.digital_source_type == COMPOSITE_SOURCE_TYPE


def test_the_record_holds_what_is_known_and_no_prompt(do_sign: Callable[..., Signed]) -> None:
    def record(one: Signed) -> dict[str, Any]:
        (manifest,) = manifests(one.data, "image/png").values()
        found: dict[str, Any] = next(a["data"] for a in manifest["assertions"] if a["label"] == "com.platemark.record")
        return found

    plain = record(do_sign())
    assert not {"faceCount", "consentRef", "licences", "prompt", "negativePrompt"} & set(plain)
    assert (plain["operation"], plain["latentMark"]) == ("text2img", False)
    full = record(
        do_sign(
            face_count=2,
            consent_ref="case 7",
            latent_mark=True,
            prompt="a cat",
            licences=(Licence(part="lora", name="ink", licence="MIT"),),
        )
    )
    assert (full["faceCount"], full["consentRef"], full["latentMark"], full["prompt"]) == (2, "case 7", True, "a cat")
    assert full["licences"] == [{"part": "lora", "name": "ink", "licence": "MIT"}]


def test_rights_and_do_not_train_are_assertions_by_policy(do_sign: Callable[..., Signed]) -> None:
    with_rules = crjson(do_sign(options=SignOptions(rules=RIGHTS)).data)["manifests"][0]["assertions"]
    entries = with_rules["cawg.training-mining"]["entries"]
    assert entries == {"cawg.ai_generative_training": {"use": "notAllowed"}, "cawg.ai_training": {"use": "notAllowed"}}
    assert with_rules["cawg.metadata"]["dc:creator"] == ["Studio"]
    assert with_rules["cawg.metadata"]["xmpRights:WebStatement"] == "https://example.org/r"
    without = crjson(do_sign().data)["manifests"][0]["assertions"]
    assert not {"cawg.training-mining", "cawg.metadata"} & set(without)


def png16(colour: int) -> bytes:
    """A 16-bit PNG, gray (0) or RGB (2), which Pillow cannot write."""
    samples = np.random.default_rng(1).integers(0, 65536, (40, 50 * (3 if colour == 2 else 1)), dtype=np.uint16).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in samples)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 50, 40, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def saved(mode: str, file_format: str, frames: int = 1, **options: Any) -> bytes:
    rng = np.random.default_rng(2)
    images = [PIL.Image.fromarray(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)).convert(mode) for _ in range(frames)]
    more = {"save_all": True, "append_images": images[1:], "duration": 100} if frames > 1 else {}
    out = io.BytesIO()
    images[0].save(out, file_format, **more, **options)
    return out.getvalue()


FILES: dict[str, Callable[[], bytes]] = {
    "png RGB": lambda: saved("RGB", "png"),
    "png RGBA": lambda: saved("RGBA", "png"),
    "png palette": lambda: saved("P", "png"),
    "png gray": lambda: saved("L", "png"),
    "png 16-bit gray": lambda: png16(0),
    "png 16-bit RGB": lambda: png16(2),
    "apng": lambda: saved("RGB", "png", 3),
    "jpeg": lambda: saved("RGB", "jpeg"),
    "jpeg progressive": lambda: saved("RGB", "jpeg", progressive=True),
    "jpeg CMYK": lambda: saved("CMYK", "jpeg"),
    "jpeg gray": lambda: saved("L", "jpeg"),
    "webp": lambda: saved("RGB", "webp"),
    "webp lossless alpha": lambda: saved("RGBA", "webp", lossless=True),
    "webp animated": lambda: saved("RGB", "webp", 3),
    "avif": lambda: saved("RGB", "avif"),
    "tiff": lambda: saved("RGB", "tiff"),
    "tiff 16-bit": lambda: saved("I;16", "tiff"),
    "tiff deflate": lambda: saved("RGB", "tiff", compression="tiff_adobe_deflate"),
    "gif": lambda: saved("P", "gif"),
    "gif animated": lambda: saved("P", "gif", 3),
}


def frames(data: bytes) -> list[bytes]:
    """The pixels of every frame, as the file has them."""
    with PIL.Image.open(io.BytesIO(data)) as image:
        found = []
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            found.append(image.mode.encode() + image.tobytes())
    return found


@pytest.mark.parametrize("kind", FILES)
def test_files_are_signed_as_they_are(own: Identity, own_home: Path, kind: str) -> None:
    data = FILES[kind]()
    mime = f"image/{kind.split()[0].replace('apng', 'png')}"
    one = sign_bytes(data, own)
    report = read(one.data, mime, authorities(own_home))
    assert (report.state, report.trust, report.label) == ("valid", "trusted", one.label)
    assert frames(one.data) == frames(data)
    assert len(one.data) - len(data) < SIX_KIB
    if "16-bit RGB" in kind:  # Pillow reads 8 of the 16 bits: compare the coded pixels
        assert data[data.index(b"IDAT") - 4 :] in one.data
    again = sign_bytes(one.data, own)
    assert frames(again.data) == frames(data)
    held = manifests(again.data, mime)
    assert set(held) == {one.label, again.label}  # the first manifest is still there
    assert verified(again, mime).label == again.label


def test_a_picture_that_carries_credentials_becomes_its_own_parent(own: Identity, signed_jpeg: bytes, make_facts: Make) -> None:
    common = {"created": "2026-08-02T00:00:00Z", "generator": "platemark/0.1.0", "content_id": 8, "payload": None}
    one = sign(signed_jpeg, "image/jpeg", make_facts(operation="img2img"), own, **common)
    assert read(one.data, "image/jpeg", b"").actions[0] == "c2pa.opened"
    assert len(manifests(one.data, "image/jpeg")) == 2
    with pytest.raises(InputError, match="a parent too"):
        sign(signed_jpeg, "image/jpeg", make_facts(), own, options=SignOptions(parent=signed_jpeg), **common)


def test_a_parent_whose_credentials_are_broken_is_refused(do_sign: Callable[..., Signed], own: Identity, signed_jpeg: bytes) -> None:
    tampered = bytearray(signed_jpeg)
    tampered[-500] ^= 1
    with pytest.raises(InputError, match=r"do not hold: assertion\.dataHash\.mismatch"):
        do_sign(operation="img2img", options=SignOptions(parent=bytes(tampered)))
    with pytest.raises(InputError, match="do not hold"):
        sign_bytes(bytes(tampered), own)
    with pytest.raises(ImageError):
        do_sign(operation="img2img", options=SignOptions(parent=b"no picture"))


def test_a_remote_manifest_is_not_dropped_in_silence(own: Identity, picture: np.ndarray) -> None:
    out = io.BytesIO()
    manifest = {
        "claim_generator_info": [{"name": "other", "version": "1"}],
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": DIGITAL_SOURCE_TYPE}]}}
        ],
    }
    info = c2pa.C2paSignerInfo(b"es256", own.chain_pem, own.private_key_pem, None)
    with c2pa.Signer.from_info(info) as signer, c2pa.Builder(manifest) as builder:
        builder.set_no_embed()
        builder.set_remote_url("http://127.0.0.1:9/manifest.c2pa")
        builder.sign(signer, "image/jpeg", io.BytesIO(encode(picture, "jpeg")), out)
    with pytest.raises(InputError, match=r"elsewhere and are not fetched: http://127\.0\.0\.1:9"):
        sign_bytes(out.getvalue(), own)


def test_a_source_type_cannot_be_stated_over_credentials(own: Identity, signed_jpeg: bytes) -> None:
    with pytest.raises(InputError, match="how it was made"):
        sign_bytes(signed_jpeg, own, source_type="digitalCapture")


def test_a_file_may_be_signed_onto_itself(own: Identity, picture: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(encode(picture, "png"))
    before = frames(path.read_bytes())
    one = sign_file(path, path, own)
    assert path.read_bytes() == one.data
    assert frames(one.data) == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]


def test_a_failed_signature_leaves_every_file_as_it_was(own: Identity, dev: Identity, picture: np.ndarray, tmp_path: Path) -> None:
    data = encode(picture, "png")
    source, target = tmp_path / "x.png", tmp_path / "y.png"
    source.write_bytes(data)
    target.write_bytes(b"precious")
    broken = replace(own, private_key_pem=dev.private_key_pem)
    for to in (source, target, tmp_path / "new.png"):
        with pytest.raises(ProvenanceUnavailable):
            sign_file(source, to, broken)
    with pytest.raises(InputError, match="says otherwise"):
        sign_file(source, tmp_path / "x.jpg", own)
    with pytest.raises(InputError, match="cannot write"):
        sign_file(source, tmp_path / "no" / "x.png", own)
    with pytest.raises(InputError, match="cannot read"):
        sign_file(tmp_path / "none.png", target, own)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"x.png": data, "y.png": b"precious"}


@pytest.mark.parametrize("data", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"BM" + bytes(100)])
def test_what_is_no_picture_is_refused(own: Identity, data: bytes) -> None:
    with pytest.raises(ImageError):
        sign_bytes(data, own)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_kind_of_key_signs(do_sign: Callable[..., Signed], tmp_path: Path, algorithm: Algorithm) -> None:
    who = init_keys(tmp_path, algorithm=algorithm)
    assert who.algorithm == algorithm
    report = read(do_sign("jpeg", who=who).data, "image/jpeg", authorities(tmp_path))
    assert (report.state, report.trust) == ("valid", "trusted")


def test_an_unknown_kind_of_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="es257"):
        init_keys(tmp_path, algorithm="es257")  # type: ignore[arg-type]


def test_an_identity_that_expired_meanwhile_does_not_sign(do_sign: Callable[..., Signed], own: Identity) -> None:
    with pytest.raises(ProvenanceUnavailable, match="expired"):
        do_sign(who=replace(own, expires=datetime.now(UTC) - timedelta(seconds=1)))


def test_what_does_not_verify_is_not_written(own: Identity, picture: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = sign_bytes(encode(picture, "png"), own)
    spoiled = bytearray(good.data)
    spoiled[-100] ^= 1
    monkeypatch.setattr(signing, "sign_bytes", lambda *_, **__: replace(good, data=bytes(spoiled)))
    (tmp_path / "x.png").write_bytes(encode(picture, "png"))
    with pytest.raises(ProvenanceUnavailable, match=r"does not verify: assertion\.dataHash\.mismatch"):
        sign_file(tmp_path / "x.png", tmp_path / "y.png", own)
    assert not (tmp_path / "y.png").exists()


def _in_child(identity: Identity, data: bytes) -> str:
    return read(sign_bytes(data, identity).data, "image/png", b"").state


@pytest.mark.skipif(os.name != "posix", reason="needs fork")
def test_signing_works_in_forked_workers(own: Identity, picture: np.ndarray) -> None:
    data = encode(picture, "png")
    assert _in_child(own, data) == "valid"  # the library has been used before the fork
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.starmap(_in_child, [(own, data)] * 4) == ["valid"] * 4
    assert _in_child(own, data) == "valid"


def test_threads_sign_side_by_side(own: Identity, dev: Identity, picture: np.ndarray) -> None:
    """Each thread keeps its own session; two identities in one thread do not mix."""
    data = encode(picture, "jpeg")

    def work(number: int) -> str:
        return read(sign_bytes(data, own if number % 2 else dev).data, "image/jpeg", b"").signer

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(24))) == [dev.subject, own.subject] * 12


def test_a_failed_signature_does_not_spoil_the_next(own: Identity, dev: Identity, picture: np.ndarray) -> None:
    data = encode(picture, "png")
    with pytest.raises(ProvenanceUnavailable):
        sign_bytes(data, replace(own, private_key_pem=dev.private_key_pem))
    assert read(sign_bytes(data, own).data, "image/png", b"").state == "valid"
