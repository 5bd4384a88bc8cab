"""The verifier: each kind of file gets its verdict, and each layer says what it found."""

from __future__ import annotations

import io
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from platemark.errors import ImageError, InputError, ProvenanceUnavailable
from platemark.imaging import decode, encode
from platemark.provenance.identity import init_keys
from platemark.provenance.keyring import export_keys, import_keys
from platemark.provenance.record import Facts
from platemark.provenance.registry import FILE
from platemark.provenance.stamp import Stamp, Stamped, open_stamp
from platemark.provenance.verify import VerifyReport, exit_code
from platemark.provenance.verify import verify as really_verify

Make = Callable[..., Facts]
FORMATS = ("png", "jpeg", "webp")
SCHEMA = Draft202012Validator(json.loads((Path(__file__).parents[2] / "docs" / "verify.schema.json").read_text(encoding="utf-8")))


def verify(source: Any, **options: Any) -> VerifyReport:
    """Without the deep search, and held against the committed schema."""
    report = really_verify(source, **{"deep": False, **options})
    SCHEMA.validate({"file": "x"} | report.as_dict())
    return report


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    init_keys(folder, name="Test Studio")
    return folder


@pytest.fixture(scope="module")
def press(home: Path) -> Stamp:
    return open_stamp(home)


@pytest.fixture(scope="module")
def stamped(press: Stamp, picture: np.ndarray, make_facts: Make) -> dict[str, Stamped]:
    return {file_format: press.apply(picture, make_facts(), press.reserve(), file_format) for file_format in FORMATS}


def states(report: VerifyReport) -> dict[str, str]:
    return {name: layer["state"] for name, layer in report.layers.items()}


def saved(array: np.ndarray, file_format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, file_format, **options)
    return out.getvalue()


def manifest_chunk(data: bytes) -> bytes:
    at = data.index(b"caBX") - 4
    return data[at : at + 12 + int.from_bytes(data[at : at + 4], "big")]


@pytest.mark.parametrize("file_format", FORMATS)
def test_own_pictures_are_trusted(stamped: dict[str, Stamped], home: Path, file_format: str) -> None:
    one = stamped[file_format]
    report = verify(one.data, home=home)
    assert report.verdict == "trusted"
    assert states(report) == {"c2pa": "valid", "watermark": "detected", "metadata": "claims", "registry": "found"}
    assert (report.content_id, report.issuer) == (one.record.content_id, one.record.issuer)
    assert report.layers["registry"]["same_file"]
    assert report.layers["registry"]["distance"] == 0
    assert report.layers["c2pa"]["signer"] == "Test Studio"
    assert json.loads(json.dumps(report.as_dict())) == report.as_dict()


def test_development_pictures_are_intact_but_untrusted(dev_home: Path, picture: np.ndarray, make_facts: Make, tmp_path: Path) -> None:
    press = open_stamp(dev_home)
    one = press.apply(picture, make_facts(), press.reserve())
    path = tmp_path / "x.png"
    path.write_bytes(one.data)
    report = verify(path, home=dev_home)
    assert report.verdict == "intact-untrusted"
    assert report.layers["c2pa"]["trust"] == "development identity"
    assert any("development identity" in sentence for sentence in report.summary)


def test_strangers_see_an_untrusted_signature_and_hold_no_key(stamped: dict[str, Stamped], tmp_path: Path) -> None:
    report = verify(stamped["png"].data, home=tmp_path / "none")
    assert report.verdict == "intact-untrusted"
    assert states(report) == {"c2pa": "valid", "watermark": "no-key", "metadata": "claims", "registry": "no-registry"}
    assert report.content_id == stamped["png"].record.content_id  # as the credentials say
    assert not (tmp_path / "none").exists()


def test_a_wrong_key_does_not_detect(stamped: dict[str, Stamped], tmp_path: Path) -> None:
    init_keys(tmp_path)
    report = verify(stamped["png"].data, home=tmp_path)
    assert report.layers["watermark"]["state"] == "not-detected"
    assert 0 < report.layers["watermark"]["p_value"] <= 1


def test_the_p_value_is_corrected_for_the_number_of_keys(
    make_picture: Callable[..., np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from platemark.provenance.keyring import add_keys, new_key
    from platemark.provenance.verify import marks
    from platemark.provenance.watermark.detect import Detection

    add_keys(tmp_path, [new_key(development=False) for _ in range(3)])
    picture = encode(make_picture(5, 64, 64))
    for likeliest, state, p_value in [
        (0.02, "not-detected", 0.06),
        (0.5, "not-detected", 1.0),
        (2e-5, "inconclusive", 6e-5),
        (5e-5, "not-detected", 1.5e-4),  # under the bound with one key, not with three
    ]:

        def found(array: np.ndarray, keys: Any, *, deep: bool, chance: float = likeliest) -> Detection:
            assert len(keys) == 3
            word = "inconclusive" if chance < 1e-4 else "not-detected"
            return Detection(word, None, chance, keys[1].key_id, "pixel", None, {}, 1, 0.0)

        monkeypatch.setattr(marks, "detect", found)
        report = verify(picture, home=tmp_path)
        assert report.layers["watermark"] == {"state": state, "p_value": pytest.approx(p_value), "keys_tried": 3, "deep": False}
        assert any("corrected for the 3 keys tried" in sentence for sentence in report.summary)


def test_an_imported_key_reads(stamped: dict[str, Stamped], home: Path, tmp_path: Path) -> None:
    export_keys(tmp_path / "wm.json", home)
    init_keys(tmp_path / "there")
    import_keys(tmp_path / "wm.json", tmp_path / "there")
    copy = saved(stamped["png"].pixels, "jpeg", quality=75)
    report = verify(copy, home=tmp_path / "there")
    assert report.verdict == "recovered-by-watermark"
    assert states(report)["registry"] == "no-registry"


@pytest.mark.parametrize(("file_format", "options"), [("jpeg", {"quality": 75}), ("png", {}), ("webp", {"quality": 80})])
def test_copies_without_credentials_are_recovered(
    stamped: dict[str, Stamped], home: Path, file_format: str, options: dict[str, Any]
) -> None:  # fmt: skip
    report = verify(saved(stamped["png"].pixels, file_format, **options), home=home)
    assert report.verdict == "recovered-by-watermark"
    assert states(report) == {"c2pa": "absent", "watermark": "detected", "metadata": "none", "registry": "found"}
    assert report.content_id == stamped["png"].record.content_id
    assert not report.layers["registry"]["same_file"]
    assert report.layers["registry"]["distance"] <= 31


def test_a_pillow_resave_loses_the_signature_only(stamped: dict[str, Stamped], home: Path) -> None:
    out = io.BytesIO()
    Image.open(io.BytesIO(stamped["png"].data)).save(out, "png")
    assert verify(out.getvalue(), home=home).verdict == "recovered-by-watermark"


def test_a_changed_pixel_is_tampering(stamped: dict[str, Stamped], home: Path) -> None:
    one = stamped["png"]
    pixels = one.pixels.copy()
    pixels[10, 10] ^= 1
    plain = encode(pixels)
    report = verify(plain[:33] + manifest_chunk(one.data) + plain[33:], home=home)
    assert report.verdict == "tampered"
    assert report.layers["c2pa"]["failures"] == ["assertion.dataHash.mismatch"]
    assert report.layers["watermark"]["state"] == "detected"


def test_a_transplanted_manifest_is_tampering(stamped: dict[str, Stamped], home: Path, make_picture: Callable[..., np.ndarray]) -> None:
    other = encode(make_picture(1))
    report = verify(other[:33] + manifest_chunk(stamped["png"].data) + other[33:], home=home)
    assert report.verdict == "tampered"
    assert report.layers["watermark"]["state"] == "not-detected"


def test_text_added_later_is_tampering(stamped: dict[str, Stamped], home: Path) -> None:
    data = stamped["png"].data
    body = b"tEXta\0b"
    report = verify(data[:-12] + (3).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big") + data[-12:], home=home)
    assert report.verdict == "tampered"


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("part", [0.001, 0.3, 0.9])
def test_truncated_files_are_corrupt(stamped: dict[str, Stamped], home: Path, file_format: str, part: float) -> None:
    data = stamped[file_format].data
    report = verify(data[: int(len(data) * part)], home=home)
    assert report.verdict == "corrupt"
    for name in ("watermark", "metadata"):
        assert report.layers[name]["state"] == "unreadable"
        assert report.layers[name]["remedy"] == "get an undamaged copy"
    assert report.summary[0] == f"The {file_format.upper()} picture is damaged or cut short; get an undamaged copy."


def test_a_broken_manifest_is_corrupt(stamped: dict[str, Stamped], home: Path) -> None:
    data, chunk = stamped["png"].data, manifest_chunk(stamped["png"].data)
    report = verify(data.replace(chunk, chunk * 2), home=home)
    assert report.verdict == "corrupt"
    assert report.layers["c2pa"]["state"] == "corrupt"
    assert report.layers["watermark"]["state"] == "detected"


def test_credentials_that_contradict_the_watermark_are_a_conflict(
    press: Stamp, stamped: dict[str, Stamped], home: Path, make_facts: Make
) -> None:
    from platemark.provenance.signing import sign

    one = stamped["png"]
    common: dict[str, Any] = {"created": "2026-08-02T00:00:00Z", "generator": "platemark/0.1.0", "content_id": 1}
    lie = sign(encode(one.pixels), "image/png", make_facts(), press.identity, payload="1" * 16, **common)
    report = verify(lie.data, home=home)
    assert report.verdict == "conflict"
    assert any("the credentials say" in sentence for sentence in report.summary)
    other = sign(encode(one.pixels), "image/png", make_facts(), press.identity, payload=one.record.watermark_payload, **common)
    report = verify(other.data, home=home)
    assert report.verdict == "conflict"
    assert any("under other credentials" in sentence for sentence in report.summary)


def test_a_mark_on_another_picture_is_a_conflict(
    press: Stamp, stamped: dict[str, Stamped], home: Path, make_picture: Callable[..., np.ndarray]
) -> None:  # fmt: skip
    from platemark.provenance.watermark.embed import embed
    from platemark.provenance.watermark.payload import Payload

    payload = Payload.unpack(bytes.fromhex(stamped["png"].record.watermark_payload or ""))
    forged = embed(make_picture(9), payload, press.identity.watermark_key.watermark, rng=np.random.default_rng(0))
    report = verify(encode(forged.image), home=home)
    assert report.verdict == "conflict"
    assert report.layers["registry"]["distance"] > 90


def test_a_mark_on_another_small_picture_is_a_conflict(
    press: Stamp, home: Path, make_picture: Callable[..., np.ndarray], make_facts: Make
) -> None:  # fmt: skip
    """The layout of small pictures tells no geometry, but survives no resize either."""
    from platemark.provenance.watermark.embed import embed
    from platemark.provenance.watermark.payload import Payload

    one = press.apply(make_picture(2, 160, 200), make_facts(), press.reserve())
    payload = Payload.unpack(bytes.fromhex(one.record.watermark_payload or ""))
    forged = embed(make_picture(9, 160, 200), payload, press.identity.watermark_key.watermark, rng=np.random.default_rng(0))
    assert verify(encode(forged.image), home=home).verdict == "conflict"
    real = verify(encode(one.pixels), home=home)
    assert (real.verdict, real.layers["registry"]["distance"]) == ("recovered-by-watermark", 0)


def test_mirrored_copies_are_recovered_and_compared(stamped: dict[str, Stamped], home: Path) -> None:
    mirrored = np.ascontiguousarray(stamped["png"].pixels[:, ::-1])
    report = verify(encode(mirrored), home=home)
    assert report.verdict == "recovered-by-watermark"
    assert report.layers["registry"]["distance"] == 0
    assert "the frame was mirrored" in report.layers["registry"]["differences"]


def test_plain_pictures_are_none_with_a_p_value(home: Path, make_picture: Callable[..., np.ndarray]) -> None:
    report = verify(encode(make_picture(5)), home=home)
    assert report.verdict == "none"
    assert states(report) == {"c2pa": "absent", "watermark": "not-detected", "metadata": "none", "registry": "not-found"}
    assert 0 < report.layers["watermark"]["p_value"] <= 1
    assert report.content_id is None


def test_an_unmarked_copy_looks_similar(home: Path, press: Stamp, stamped: dict[str, Stamped], picture: np.ndarray) -> None:
    report = verify(encode(picture), home=home)
    assert report.verdict == "none"
    assert report.layers["registry"]["state"] == "similar"


def test_tiny_and_flat_pictures_are_none(home: Path) -> None:
    for size in ((1, 1), (8, 8), (16, 16), (300, 300)):
        assert verify(encode(np.full((*size, 3), 255, np.uint8)), home=home).verdict == "none"


GRAPH = json.dumps({"3": {"class_type": "KSampler", "inputs": {}}})


@pytest.mark.parametrize(
    ("key", "text", "claim"),
    [
        (
            "parameters",
            "a cat\nSteps: 20, Sampler: Euler",
            {"source": "web-ui parameters", "settings": {"Steps": "20", "Sampler": "Euler"}},
        ),
        ("prompt", GRAPH, {"source": "comfyui prompt", "nodes": 1}),
        ("workflow", '{"nodes": []}', {"source": "comfyui workflow", "nodes": 0}),
    ],
)
def test_texts_of_other_programs_are_unsigned_claims(
    home: Path, make_picture: Callable[..., np.ndarray], key: str, text: str, claim: dict[str, Any]
) -> None:
    info = PngInfo()
    info.add_text(key, text)
    report = verify(saved(make_picture(6), "png", pnginfo=info), home=home)
    assert report.verdict == "unsigned-claims"
    assert report.layers["metadata"]["claims"] == [{"excerpt": text} | claim]


def test_xmp_alone_is_an_unsigned_claim_and_other_texts_are_none(home: Path, stamped: dict[str, Stamped], make_picture: Any) -> None:
    xmp = decode(stamped["png"].data).xmp
    report = verify(encode(make_picture(7), "webp", xmp=xmp), home=home)
    assert report.verdict == "unsigned-claims"
    assert report.content_id is None  # anybody can write an id
    info = PngInfo()
    info.add_text("parameters", "of the camera")
    info.add_text("workflow", "by hand")
    assert verify(saved(make_picture(7), "png", pnginfo=info), home=home).verdict == "none"
    report = verify(encode(make_picture(7), "png", xmp=b"<!DOCTYPE x><x/>"), home=home)
    assert report.layers["metadata"]["state"] == "unreadable"
    assert report.layers["metadata"]["remedy"] == "the rest of the file can still be read"


def test_what_is_no_picture_is_an_error(home: Path, tmp_path: Path) -> None:
    for data in (b"", b"text" * 100):
        with pytest.raises(ImageError):
            verify(data, home=home)
    with pytest.raises(InputError, match="cannot read"):
        verify(tmp_path / "none.png", home=home)


def test_a_damaged_registry_or_key_is_named(stamped: dict[str, Stamped], home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "keys", tmp_path / "keys")
    (tmp_path / FILE).write_bytes(b"rubbish" * 1000)
    report = verify(stamped["png"].data, home=tmp_path)
    assert report.verdict == "trusted"
    assert report.layers["registry"]["state"] == "unavailable"
    assert report.layers["registry"]["remedy"] in report.summary[-1]
    (tmp_path / "keys" / "watermark.json").write_bytes(b"rubbish")
    with pytest.raises(ProvenanceUnavailable, match=r"watermark\.json"):
        verify(stamped["png"].data, home=tmp_path)


@pytest.mark.parametrize("url", ["mysql://somewhere/x", "rubbish", "postgresql://nobody@127.0.0.1:9/none"])
def test_a_registry_that_cannot_be_asked_is_said(
    stamped: dict[str, Stamped], home: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("PLATEMARK_REGISTRY", url)
    report = verify(encode(stamped["png"].pixels), home=home)
    assert report.verdict == "recovered-by-watermark"
    assert report.layers["registry"]["state"] in ("unavailable", "no-registry")
    assert any("could not be" in sentence for sentence in report.summary)


def test_credentials_of_ours_for_another_content_id_are_a_conflict(
    press: Stamp, stamped: dict[str, Stamped], home: Path, make_facts: Make
) -> None:
    """Signed without a soft binding, so that only the record in the credentials says which picture it is."""
    from platemark.provenance.signing import sign

    one = stamped["png"]
    common: dict[str, Any] = {"created": "2026-08-02T00:00:00Z", "generator": "platemark/0.1.0", "payload": None}
    for content_id, verdict in ((one.record.content_id + 1, "conflict"), (one.record.content_id, "trusted")):
        data = sign(encode(one.pixels), "image/png", make_facts(), press.identity, content_id=content_id, **common).data
        assert verify(data, home=home).verdict == verdict


def test_exit_codes() -> None:
    codes = {"trusted": 0, "intact-untrusted": 0, "recovered-by-watermark": 0, "none": 1, "unsigned-claims": 1}
    codes |= {"tampered": 6, "corrupt": 6, "conflict": 6}
    assert {verdict: exit_code(verdict) for verdict in codes} == codes
