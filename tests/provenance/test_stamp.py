"""The stamp: one record written five ways, or nothing at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from platemark.errors import InputError, ProvenanceUnavailable
from platemark.imaging import decode
from platemark.provenance import credentials, stamp
from platemark.provenance.identity import authorities, init_keys
from platemark.provenance.record import DIGITAL_SOURCE_TYPE, Facts
from platemark.provenance.stamp import Stamp, open_stamp
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


@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp"])
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
    assert report.soft_bindings == ((credentials.WATERMARK_ALGORITHM, record.watermark_payload),)
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
