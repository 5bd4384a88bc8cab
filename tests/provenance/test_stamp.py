"""The stamp: one record written five ways, or nothing at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from platemark.errors import InputError, ProvenanceUnavailable
from platemark.imaging import decode, encode, rgb_profile, srgb_profile
from platemark.provenance import credentials, stamp
from platemark.provenance.identity import authorities, init_keys
from platemark.provenance.metadata.rules import MetadataRules
from platemark.provenance.record import COMPOSITE_SOURCE_TYPE, DIGITAL_SOURCE_TYPE, WATERMARK_ALGORITHM, Facts, Licence
from platemark.provenance.signing import sign_bytes
from platemark.provenance.stamp import FORMATS, Stamp, StampRules, open_stamp
from platemark.provenance.timestamps import TimestampRule
from platemark.provenance.watermark.detect import detect
from platemark.provenance.xmp import read_xmp

Make = Callable[..., Facts]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stamp")
    init_keys(folder, name="Test Studio")
    return folder


@pytest.fixture(scope="module")
def press(home: Path) -> Stamp:
    return open_stamp(home)


@pytest.mark.parametrize("file_format", FORMATS)
def test_one_record_five_ways(press: Stamp, home: Path, picture: np.ndarray, make_facts: Make, file_format: str) -> None:
    content_id = press.reserve()
    stages: list[str] = []
    stamped = press.apply(picture, make_facts(resampled_from=(80, 96)), content_id, file_format, on_stage=stages.append)
    record = stamped.record
    assert stages == ["marked", "signed", "recorded"]
    assert record.content_id == content_id
    assert record.watermark == "full"
    assert record.psnr is not None
    assert record.psnr > 38
    assert record.image_sha256 == hashlib.sha256(stamped.data).hexdigest()
    assert not record.development_identity
    decoded = decode(stamped.data)
    assert np.array_equal(decoded.array, stamped.pixels)
    found = detect(decoded.array, press.identity.watermark_key.watermark)
    assert found.payload is not None
    assert (found.payload.content_id, found.payload.issuer) == (content_id, press.identity.issuer)
    assert found.payload.hex == record.watermark_payload
    report = credentials.read(stamped.data, f"image/{file_format}", authorities(home))
    assert (report.state, report.trust, report.label) == ("valid", "trusted", record.manifest_label)
    assert report.soft_bindings == ((WATERMARK_ALGORITHM, record.watermark_payload),)
    assert decoded.xmp is not None
    fields = read_xmp(decoded.xmp)
    assert fields["digital_source_type"] == DIGITAL_SOURCE_TYPE
    assert fields["content_id"] == str(content_id)
    assert fields["processing"] == "rendered at 96x80, resampled to 384x320 by Lanczos"
    entry = press.registry.find(content_id, press.identity.issuer)
    assert entry is not None
    assert entry.record == record


def test_two_runs_differ_in_their_ids_only(press: Stamp, picture: np.ndarray, make_facts: Make) -> None:
    one, two = (press.apply(picture, make_facts(), press.reserve()).record for _ in range(2))
    assert one.content_id != two.content_id
    assert one.manifest_label != two.manifest_label
    assert one.facts == two.facts
    assert one.issuer == two.issuer


def test_small_pictures_carry_the_pixel_layout(press: Stamp, make_picture: Callable[..., np.ndarray], make_facts: Make) -> None:
    assert press.apply(make_picture(3, 128, 128), make_facts(), press.reserve()).record.watermark == "pixel"


def refuse(*_: object, **__: object) -> None:
    raise ProvenanceUnavailable("the picture cannot hold a watermark", "use another")


def test_a_picture_that_cannot_hold_a_mark(home: Path, picture: np.ndarray, make_facts: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamp, "embed", refuse)
    strict, lenient = open_stamp(home), open_stamp(home, require_watermark=False)
    before = strict.registry.count()
    with pytest.raises(ProvenanceUnavailable, match="cannot hold"):
        strict.apply(picture, make_facts(), strict.reserve())
    assert strict.registry.count() == before
    stamped = lenient.apply(picture, make_facts(), lenient.reserve())
    assert stamped.record.watermark == "none"
    assert stamped.record.psnr is stamped.record.watermark_payload is None
    assert np.array_equal(stamped.pixels, picture)
    assert credentials.read(stamped.data, "image/png", b"").soft_bindings == ()


def test_a_mark_that_the_file_format_kills(home: Path, picture: np.ndarray, make_facts: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    real = stamp.encode
    monkeypatch.setattr(stamp, "encode", lambda image, *rest, **options: real(np.full_like(image, 200), *rest, **options))
    strict, lenient = open_stamp(home), open_stamp(home, require_watermark=False)
    with pytest.raises(ProvenanceUnavailable, match="does not survive"):
        strict.apply(picture, make_facts(), strict.reserve())
    assert lenient.apply(picture, make_facts(), lenient.reserve()).record.watermark == "none"


@pytest.mark.parametrize("part", ["sign", "encode"])
def test_a_failing_step_records_nothing(
    press: Stamp, picture: np.ndarray, make_facts: Make, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr(stamp, part, refuse)
    before = press.registry.count()
    with pytest.raises(ProvenanceUnavailable):
        press.apply(picture, make_facts(), press.reserve())
    assert press.registry.count() == before


def test_an_id_cannot_be_stamped_twice(press: Stamp, picture: np.ndarray, make_facts: Make) -> None:
    content_id = press.reserve()
    press.apply(picture, make_facts(), content_id)
    with pytest.raises(ProvenanceUnavailable, match="recorded already"):
        press.apply(picture, make_facts(), content_id)


def test_unknown_formats_are_refused(press: Stamp, picture: np.ndarray, make_facts: Make) -> None:
    with pytest.raises(InputError, match="bmp"):
        press.apply(picture, make_facts(), press.reserve(), "bmp")


def test_request_hashes_compare_and_say_nothing(press: Stamp, dev_home: Path) -> None:
    hashed = press.request_hmac(["a cat", "", "20"])
    assert len(hashed) == 64
    assert hashed == press.request_hmac(["a cat", "", "20"])
    assert hashed != press.request_hmac(["a cat", "20", ""])
    assert hashed != press.request_hmac(["a c", "at", "20"])
    assert hashed != open_stamp(dev_home).request_hmac(["a cat", "", "20"])


def test_a_home_that_cannot_be_written_fails_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ProvenanceUnavailable, match="state folder") as caught:
        open_stamp(tmp_path / "file" / "home")
    assert "PLATEMARK_HOME" in caught.value.remedy


ASKED = {"prompt": "a very secret cat", "negative_prompt": "no other dog"}


@pytest.mark.parametrize("file_format", FORMATS)
def test_prompts_leave_no_trace_unless_the_rules_allow_them(
    home: Path, press: Stamp, picture: np.ndarray, make_facts: Make, file_format: str
) -> None:
    hidden = press.apply(picture, make_facts(**ASKED), press.reserve(), file_format)
    for text in (b"secret cat", "secret cat".encode("utf-16-be"), b"other dog"):
        assert text not in hidden.data
    assert hidden.record.facts.prompt is None
    assert "secret cat" not in hidden.record.model_dump_json()
    clear = open_stamp(home, rules=StampRules(metadata=MetadataRules(prompts_in_clear=True)))
    shown = clear.apply(picture, make_facts(**ASKED), clear.reserve(), file_format)
    assert shown.record.facts.prompt == ASKED["prompt"]
    xmp = decode(shown.data).xmp
    assert xmp is not None
    assert read_xmp(xmp)["ai_prompt"] == "a very secret cat\nNegative prompt: no other dog"


def test_web_ui_texts_are_signed_with_the_picture(home: Path, picture: np.ndarray, make_facts: Make) -> None:
    press = open_stamp(home, rules=StampRules(metadata=MetadataRules(prompts_in_clear=True)))
    data = press.apply(picture, make_facts(**ASKED), press.reserve()).data
    text = decode(data).text["parameters"]
    assert text.split("\n")[:2] == ["a very secret cat", "Negative prompt: no other dog"]
    assert "Steps: 20, " in text
    forged = data.replace(b"secret cat", b"public dog")
    assert credentials.read(forged, "image/png", b"").state in ("invalid", "corrupt")
    quiet = open_stamp(home, rules=StampRules(metadata=MetadataRules(web_ui_text=False)))
    assert "parameters" not in decode(quiet.apply(picture, make_facts(), quiet.reserve()).data).text


def test_the_aigc_label_names_the_producer_and_the_content(home: Path, press: Stamp, picture: np.ndarray, make_facts: Make) -> None:
    def label(one: bytes) -> dict[str, str]:
        xmp = decode(one).xmp
        assert xmp is not None
        found: dict[str, str] = json.loads(read_xmp(xmp)["aigc"])
        return found

    content_id = press.reserve()
    own = label(press.apply(picture, make_facts(), content_id).data)
    assert (own["Label"], own["ContentProducer"]) == ("1", "Test Studio")
    assert own["ProduceID"] == f"{press.identity.issuer}-{content_id}"
    assert len(own["ReservedCode1"]) == 64
    other = open_stamp(home, rules=StampRules(metadata=MetadataRules(producer="Another")))
    assert label(other.apply(picture, make_facts(), other.reserve()).data)["ContentProducer"] == "Another"


def test_a_picture_made_from_a_picture(press: Stamp, home: Path, picture: np.ndarray, make_facts: Make) -> None:
    profile = srgb_profile()[:24] + b"\7" * 12 + srgb_profile()[36:]
    parent = sign_bytes(encode(picture, "jpeg", icc=profile), press.identity, source_type="digitalCapture").data
    stamped = press.apply(picture, make_facts(operation="inpaint"), press.reserve(), parent=parent)
    report = credentials.read(stamped.data, "image/png", authorities(home))
    assert (report.state, report.trust) == ("valid", "trusted")
    assert report.actions == ("c2pa.opened", "c2pa.edited", "c2pa.watermarked.bound")
    assert stamped.record.digital_source_type == COMPOSITE_SOURCE_TYPE
    assert stamped.record.parent_sha256 == hashlib.sha256(parent).hexdigest()
    assert rgb_profile(stamped.data) == profile
    before = press.registry.count()
    broken = bytearray(parent)
    broken[-300] ^= 1
    with pytest.raises(InputError, match="do not hold"):
        press.apply(picture, make_facts(operation="img2img"), press.reserve(), parent=bytes(broken))
    assert press.registry.count() == before


def test_licences_of_policy_and_facts_are_recorded(home: Path, picture: np.ndarray, make_facts: Make) -> None:
    model, lora = Licence(part="model", name="m", licence="OpenRAIL"), Licence(part="lora", name="l", licence="MIT")
    press = open_stamp(home, rules=StampRules(licences=(model,)))
    assert press.apply(picture, make_facts(licences=(lora,)), press.reserve()).record.facts.licences == (lora, model)


def test_a_time_stamp_that_was_only_tried_for_is_noted(home: Path, picture: np.ndarray, make_facts: Make) -> None:
    def stamp_with(rule: TimestampRule) -> Stamp:
        return open_stamp(home, rules=StampRules(timestamp=rule))

    trying = stamp_with(TimestampRule("try", "http://127.0.0.1:9/tsa"))
    stamped = trying.apply(picture, make_facts(), trying.reserve())
    assert stamped.record.timestamp == "none"
    assert "cannot be reached" in stamped.notes[0]
    needing = stamp_with(TimestampRule("required", "http://127.0.0.1:9/tsa"))
    before = needing.registry.count()
    with pytest.raises(ProvenanceUnavailable, match="cannot be reached"):
        needing.apply(picture, make_facts(), needing.reserve())
    assert needing.registry.count() == before


def test_a_mark_that_the_file_loses_is_tried_again_stronger(
    home: Path, picture: np.ndarray, make_facts: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    press, real, wanted = open_stamp(home), stamp.embed, []
    answers = iter([False, True])

    def embed(*args: object, max_psnr: float, **options: object) -> object:
        wanted.append(max_psnr)
        return real(*args, max_psnr=max_psnr, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(stamp, "embed", embed)
    monkeypatch.setattr(press, "_reads", lambda pixels, payload: next(answers))
    record = press.apply(picture, make_facts(), press.reserve()).record
    assert wanted == [48.0, 44.5]
    assert record.psnr is not None
    assert record.psnr < 46


def test_what_does_not_verify_is_not_recorded(press: Stamp, picture: np.ndarray, make_facts: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    before = press.registry.count()
    monkeypatch.setattr(stamp, "verified", refuse)
    with pytest.raises(ProvenanceUnavailable):
        press.apply(picture, make_facts(), press.reserve())
    assert press.registry.count() == before
