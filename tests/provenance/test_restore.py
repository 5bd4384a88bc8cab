"""A stripped PNG comes back byte for byte; what was encoded anew does not, and says so."""

from __future__ import annotations

import hashlib
import io
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from platemark.errors import ImageError, InputError, ProvenanceUnavailable
from platemark.imaging import decode
from platemark.provenance import credentials, png
from platemark.provenance import restore as module
from platemark.provenance.identity import init_keys
from platemark.provenance.png import skeleton
from platemark.provenance.record import Facts
from platemark.provenance.registry import FILE, Registry
from platemark.provenance.restore import restore
from platemark.provenance.stamp import Stamped, open_stamp

Facts_ = Callable[..., Facts]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("restore")
    init_keys(folder, name="Test Studio")
    return folder


@pytest.fixture(scope="module")
def released(home: Path, picture: np.ndarray, make_picture: Callable[..., np.ndarray], make_facts: Facts_) -> dict[str, Stamped]:
    stamp = open_stamp(home)
    stamped = {
        "png": stamp.apply(picture, make_facts(), stamp.reserve()),
        "other": stamp.apply(make_picture(7), make_facts(), stamp.reserve()),
        "jpeg": stamp.apply(make_picture(8), make_facts(), stamp.reserve(), "jpeg"),
    }
    # Near it in looks: the same picture once more.
    stamped["twin"] = stamp.apply(picture, make_facts(), stamp.reserve())
    stamp.registry.close()
    return stamped


def resaved(data: bytes, file_format: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(decode(data).array).save(out, file_format, **options)
    return out.getvalue()


@pytest.mark.parametrize("which", ["png", "other", "twin"])
def test_a_stripped_png_comes_back_byte_for_byte(home: Path, released: dict[str, Stamped], which: str) -> None:
    whole = released[which]
    stripped = png.without_credentials(whole.data)
    assert stripped != whole.data
    found = restore(stripped, home=home)
    assert found.state == "restored"
    assert found.data == whole.data
    assert found.data is not None
    assert hashlib.sha256(found.data).hexdigest() == whole.record.image_sha256
    assert (found.content_id, found.issuer, found.found_by, found.distance) == (
        whole.record.content_id, whole.record.issuer, "perceptual hash", 0,
    )  # fmt: skip
    assert credentials.read(found.data, "image/png", b"").state == "valid"


def test_other_credentials_in_their_place_are_replaced(home: Path, released: dict[str, Stamped]) -> None:
    whole = released["png"].data
    assert restore(png.with_credentials(whole, b"junk"), home=home).data == whole
    stripped = png.without_credentials(whole)
    twice = stripped[:33] + png.Chunk(b"caBX", b"a").pack() + png.Chunk(b"caBX", b"b").pack() + stripped[33:]
    assert restore(twice, home=home).data == whole


def test_a_whole_file_is_said_to_be_whole(home: Path, released: dict[str, Stamped]) -> None:
    found = restore(released["png"].data, home=home)
    assert (found.state, found.found_by, found.data) == ("whole", "file hash", released["png"].data)


def test_stripped_of_all_metadata_it_comes_back_with_a_skeleton(tmp_path: Path, released: dict[str, Stamped]) -> None:
    whole = released["png"]
    kept = [chunk for chunk in png.chunks(whole.data) if chunk.kind in (b"IHDR", b"IDAT", b"IEND")]
    bare = png.SIGNATURE + b"".join(chunk.pack() for chunk in kept)
    manifest = next(chunk.data for chunk in png.chunks(whole.data) if chunk.kind == png.CREDENTIALS)
    for bones, state in ((skeleton(whole.data), "restored"), (None, "re-encoded")):
        with Registry.open(tmp_path / state, str(tmp_path / state / FILE)) as registry:
            registry.commit(whole.record, manifest, skeleton=bones)
            found = restore(bare, home=tmp_path / state, registry=registry)
            assert found.state == state
            assert found.data == (whole.data if bones else None)


@pytest.mark.parametrize("copy", ["png", "jpeg", "resized"])
def test_copies_encoded_anew_are_not_restored_but_their_manifest_is(home: Path, released: dict[str, Stamped], copy: str) -> None:
    whole = released["other"]
    data = {
        "png": lambda: resaved(whole.data, compress_level=1),
        "jpeg": lambda: resaved(whole.data, "JPEG", quality=85),
        "resized": lambda: resaved(resaved(whole.data), "WEBP", quality=90),
    }[copy]()
    found = restore(data, home=home)
    assert found.state == "re-encoded"
    assert found.data is None
    assert found.content_id == whole.record.content_id
    assert found.distance is not None
    assert found.distance <= 31
    assert found.manifest is not None
    assert png.with_credentials(png.without_credentials(whole.data), found.manifest) == whole.data
    assert "encoded anew" in found.detail


def test_the_watermark_tells_twins_apart(home: Path, released: dict[str, Stamped]) -> None:
    for which in ("png", "twin"):
        found = restore(resaved(released[which].data, "JPEG", quality=95), home=home)
        assert (found.state, found.found_by, found.content_id) == ("re-encoded", "watermark", released[which].record.content_id)


def test_a_copy_that_looks_otherwise_is_found_by_its_watermark(home: Path, released: dict[str, Stamped]) -> None:
    mirrored = decode(released["other"].data).array[:, ::-1]
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(mirrored)).save(out, "PNG")
    found = restore(out.getvalue(), home=home)
    assert (found.state, found.found_by, found.content_id) == ("re-encoded", "watermark", released["other"].record.content_id)
    assert found.distance is not None
    assert found.distance > 31


def test_jpeg_credentials_are_not_put_back(home: Path, released: dict[str, Stamped]) -> None:
    found = restore(resaved(released["jpeg"].data, "JPEG", quality=95), home=home)
    assert (found.state, found.content_id) == ("re-encoded", released["jpeg"].record.content_id)


def test_a_stranger_is_unknown(home: Path, make_picture: Callable[..., np.ndarray], tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.fromarray(make_picture(99)).save(out, "PNG")
    assert restore(out.getvalue(), home=home).state == "unknown"
    assert restore(out.getvalue(), home=tmp_path / "nowhere").state == "unknown"
    assert not (tmp_path / "nowhere").exists()


def test_a_named_record_is_the_only_one_tried(home: Path, released: dict[str, Stamped]) -> None:
    stripped, key = png.without_credentials(released["png"].data), (released["png"].record.content_id, released["png"].record.issuer)
    found = restore(stripped, home=home, key=key)
    assert (found.state, found.found_by) == ("restored", "content id")
    other = released["other"].record
    assert restore(stripped, home=home, key=(other.content_id, other.issuer)).state == "re-encoded"
    assert restore(stripped, home=home, key=(1, 1)).state == "unknown"


def test_a_pruned_manifest_cannot_come_back(home: Path, released: dict[str, Stamped], tmp_path: Path) -> None:
    whole = released["other"]
    with Registry.open(tmp_path, str(tmp_path / FILE)) as registry:
        registry.commit(whole.record, b"manifest")
        registry.prune(datetime(2100, 1, 1, tzinfo=UTC))
        assert restore(whole.data, home=tmp_path, registry=registry).state == "whole"  # its credentials are in the file
        found = restore(png.without_credentials(whole.data), home=tmp_path, registry=registry)
    assert (found.state, found.data, found.manifest, found.content_id) == ("pruned", None, None, whole.record.content_id)
    assert "pruned on 20" in found.detail


def test_a_registry_that_was_tampered_with_restores_nothing(home: Path, released: dict[str, Stamped], tmp_path: Path) -> None:
    """Another manifest of the right hash is refused because it does not verify; any other does not give the hash."""
    whole = released["other"]
    stripped = png.without_credentials(whole.data)
    with Registry.open(tmp_path, str(tmp_path / FILE)) as registry:
        registry.commit(whole.record, b"forged")
        assert restore(stripped, home=tmp_path, registry=registry).state == "re-encoded"
    forged = hashlib.sha256(png.with_credentials(stripped, b"forged")).hexdigest()
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("UPDATE records SET image_sha256 = ?", (forged,))
    connection.close()
    with Registry.open(tmp_path, str(tmp_path / FILE)) as registry, pytest.raises(ProvenanceUnavailable, match="does not verify"):
        restore(stripped, home=tmp_path, registry=registry)


def test_bad_input_is_named(home: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        restore(tmp_path / "missing.png", home=home)
    with pytest.raises(ImageError):
        restore(b"no picture", home=home)


def test_among_many_look_alikes_the_watermark_finds_the_right_one(
    home: Path, released: dict[str, Stamped], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CANDIDATES", 0)
    for which in ("png", "twin"):
        found = restore(png.without_credentials(released[which].data), home=home)
        assert (found.state, found.found_by, found.data) == ("restored", "watermark", released[which].data)
