"""The tamper table: what was done to a signed, marked and registered picture, and what the verifier says of it."""

from __future__ import annotations

import io
import re
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import c2pa
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from platemark.imaging import encode
from platemark.provenance import certificates
from platemark.provenance.identity import Identity, authorities, load_identity
from platemark.provenance.signing import SignOptions, sign_bytes
from platemark.provenance.stamp import Stamped
from platemark.provenance.timestamps import TimestampRule
from platemark.provenance.trust import TrustLists
from platemark.provenance.verify import VerifyReport
from tests.provenance.test_timestamps import good, make_authority, serving

Look = Callable[..., VerifyReport]
Stamps = dict[str, Stamped]
MADE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def store(data: bytes) -> tuple[int, bytes]:
    """Where the caBX chunk of a PNG starts, and its body."""
    at = data.index(b"caBX") - 4
    return at, data[at + 8 : at + 8 + int.from_bytes(data[at : at + 4], "big")]


def with_store(data: bytes, body: bytes) -> bytes:
    at, old = store(data)
    return data[:at] + chunk(b"caBX", body) + data[at + 12 + len(old) :]


def without_store(data: bytes) -> bytes:
    at, old = store(data)
    return data[:at] + data[at + 12 + len(old) :]


def edited(data: bytes, old: bytes, new: bytes) -> bytes:
    """Words of the store changed in place, as long as before."""
    body = store(data)[1]
    assert len(old) == len(new)
    assert old in body
    return with_store(data, body.replace(old, new))


def flipped_pixel(one: Stamped) -> bytes:
    pixels = one.pixels.copy()
    pixels[10, 10] ^= 1
    plain, (_, body) = encode(pixels), store(one.data)
    return plain[:33] + chunk(b"caBX", body) + plain[33:]


def requantized(data: bytes) -> bytes:
    """A JPEG with one entry of its quantization table changed: other pixels, and always a picture."""
    out = bytearray(data)
    out[data.index(b"\xff\xdb\x00") + 20] ^= 1
    return bytes(out)


def transplanted(one: Stamped) -> bytes:
    other = encode(np.random.default_rng(1).integers(0, 255, (320, 384, 3), dtype=np.uint8))
    return other[:33] + chunk(b"caBX", store(one.data)[1]) + other[33:]


def edited_claim(data: bytes) -> bytes:
    """One letter of the claim itself, of the name of the program that made it."""
    body = store(data)[1]
    at = body.index(b"platemark", body.index(b"claim_generator_info", body.index(b"c2pa.claim.v2")))
    return with_store(data, body[:at] + b"P" + body[at + 1 :])


def padded_differently(data: bytes) -> bytes:
    """One byte within the padding that the signature's box ends with, which nobody signs."""
    body = bytearray(store(data)[1])
    longest = max(re.finditer(rb"\0{64,}", bytes(body)), key=lambda found: found.end() - found.start())
    body[(longest.start() + longest.end()) // 2] ^= 1
    return with_store(data, bytes(body))


def resaved(data: bytes, **options: Any) -> bytes:
    out = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.save(out, **options)
    return out.getvalue()


def resaved_around(one: Stamped) -> bytes:
    """Saved by an editor that keeps the credentials' chunk and writes a text of its own."""
    info, out = PngInfo(), io.BytesIO()
    info.add_text("Software", "an editor")
    Image.fromarray(one.pixels).save(out, "png", pnginfo=info)
    plain = out.getvalue()
    return plain[:33] + chunk(b"caBX", store(one.data)[1]) + plain[33:]


@dataclass(frozen=True)
class Row:
    """`codes`: the failures that the credentials must show."""

    make: Callable[[Stamps], bytes]
    verdict: str
    integrity: str
    codes: tuple[str, ...] = ()
    watermark: str = "detected"


DATA = ("assertion.dataHash.mismatch",)
ROWS = {
    "untouched": Row(lambda s: s["png"].data, "trusted", "intact"),
    "pixel flip, PNG": Row(lambda s: flipped_pixel(s["png"]), "tampered", "tampered", DATA),
    "byte flip, JPEG": Row(lambda s: requantized(s["jpeg"].data), "tampered", "tampered", DATA),
    "transplant": Row(lambda s: transplanted(s["png"]), "tampered", "tampered", DATA, "not-detected"),
    "text chunk added later": Row(
        lambda s: s["png"].data[:-12] + chunk(b"tEXt", b"a\0b") + s["png"].data[-12:], "tampered", "tampered", DATA
    ),
    "bytes after the end": Row(lambda s: s["jpeg"].data + b"0123456789", "tampered", "tampered", DATA),
    "saved again around its credentials": Row(lambda s: resaved_around(s["png"]), "tampered", "tampered", DATA),
    "edited assertion": Row(
        lambda s: edited(s["png"].data, b"trainedAlgorithmicMedia", b"digitalCapture........."),
        "tampered", "tampered", ("assertion.hashedURI.mismatch",),
    ),
    "edited soft binding": Row(
        lambda s: edited(s["png"].data, (s["png"].record.watermark_payload or "").encode(), b"1" * 16),
        "tampered", "tampered", ("assertion.hashedURI.mismatch",),
    ),
    "edited claim": Row(lambda s: edited_claim(s["png"].data), "tampered", "tampered", ("claimSignature.mismatch",)),
    "stripped": Row(lambda s: without_store(s["png"].data), "recovered-by-watermark", "unsigned"),
    "saved again by Pillow": Row(lambda s: resaved(s["png"].data, format="png"), "recovered-by-watermark", "unsigned"),
    "recovered after encoding anew": Row(lambda s: resaved(s["png"].data, format="jpeg", quality=75), "recovered-by-watermark", "unsigned"),
    "two manifest stores": Row(
        lambda s: s["png"].data[:33] + chunk(b"caBX", store(s["png"].data)[1]) + s["png"].data[33:], "corrupt", "corrupt"
    ),
    "store cut short": Row(
        lambda s: with_store(s["png"].data, store(s["png"].data)[1][: len(store(s["png"].data)[1]) // 2]), "corrupt", "corrupt"
    ),
    "truncated PNG": Row(lambda s: s["png"].data[: len(s["png"].data) // 2], "corrupt", "corrupt", (), "unreadable"),
    "truncated JPEG": Row(lambda s: s["jpeg"].data[: len(s["jpeg"].data) // 2], "corrupt", "corrupt", DATA, "unreadable"),
    "truncated WebP": Row(lambda s: s["webp"].data[: len(s["webp"].data) // 2], "corrupt", "corrupt", (), "unreadable"),
    "padding bytes": Row(lambda s: padded_differently(s["png"].data), "trusted", "intact"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_the_tamper_table(name: str, look: Look, home: Path, stamped: Stamps) -> None:
    row = ROWS[name]
    report = look(row.make(stamped), home=home)
    assert (report.verdict, report.axes["integrity"]) == (row.verdict, row.integrity)
    assert report.layers["watermark"]["state"] == row.watermark
    failures = report.layers["c2pa"].get("failures", [])
    assert set(row.codes) <= set(failures)
    assert bool(failures) == bool(row.codes)


def test_a_file_hash_is_no_identity(look: Look, home: Path, stamped: Stamps) -> None:
    report = look(padded_differently(stamped["png"].data), home=home)
    assert report.verdict == "trusted"
    assert report.layers["registry"]["same_file"] is False
    assert report.layers["registry"]["distance"] == 0


def test_recovered_credentials_are_read_and_said_to_be_those_of_the_original(look: Look, home: Path, stamped: Stamps) -> None:
    report = look(resaved(stamped["png"].data, format="jpeg", quality=75), home=home)
    recovered = report.layers["c2pa"]["recovered"]
    assert recovered["source"] == "registry"
    assert recovered["signer"] == "Test Studio"
    assert all(code.startswith(("assertion.dataHash", "assertion.bmffHash")) for code in recovered["failures"])
    assert any("this copy is not the very file" in sentence for sentence in report.summary)
    assert "the credentials were removed" in report.layers["registry"]["differences"]
    assert report.axes == {"integrity": "unsigned", "trust": "unsigned", "recovery": "by-watermark"}


# Signed by others: ingredients, certificates


def signed_by(identity: Identity, plain: bytes, mime: str, *, trust: str = "", **ingredient: bytes) -> bytes:
    """Signed by the library itself, with an ingredient where one is given, as another program would."""
    action: dict[str, Any] = {"action": "c2pa.opened", "parameters": {"ingredientIds": ["it"]}}
    if not ingredient:
        action = {"action": "c2pa.created", "digitalSourceType": MADE}
    manifest = {
        "claim_generator_info": [{"name": "other", "version": "1"}],
        "assertions": [{"label": "c2pa.actions.v2", "created": True, "data": {"allActionsIncluded": True, "actions": [action]}}],
    }
    settings = {
        "builder": {"thumbnail": {"enabled": False}},
        "verify": {"verify_after_sign": False, "remote_manifest_fetch": False},
        "trust": {"trust_config": "1.3.6.1.5.5.7.3.4\n1.3.6.1.5.5.7.3.8\n"} | ({"trust_anchors": trust} if trust else {}),
    }
    out = io.BytesIO()
    info = c2pa.C2paSignerInfo(b"es256", identity.chain_pem, identity.private_key_pem, None)
    with (
        c2pa.Context(c2pa.Settings.from_dict(settings)) as context,
        c2pa.Signer.from_info(info) as signer,
        c2pa.Builder(manifest, context=context) as builder,
    ):
        for data in ingredient.values():
            builder.add_ingredient({"title": "it", "relationship": "parentOf", "label": "it"}, mime, io.BytesIO(data))
        builder.sign(signer, mime, io.BytesIO(plain), out)
        if trust and ingredient:
            with c2pa.Reader(mime, io.BytesIO(out.getvalue()), context=context) as reader:
                assert reader.get_validation_state() == "Trusted", "else the library has become better, and this can be simpler"
    return out.getvalue()


@pytest.fixture(scope="module")
def studio(home: Path) -> Identity:
    identity = load_identity(home)
    assert identity is not None
    return identity


def test_a_tampered_ingredient_is_tampering_though_the_library_says_trusted(
    look: Look, home: Path, stamped: Stamps, studio: Identity
) -> None:
    tampered = requantized(stamped["jpeg"].data)
    plain = resaved(tampered, format="jpeg", quality=90)
    data = signed_by(studio, plain, "image/jpeg", trust=authorities(home).decode(), parent=tampered)
    report = look(data, home=home)
    assert report.verdict == "tampered"
    assert report.layers["c2pa"]["ingredient_failures"] == ["assertion.dataHash.mismatch"]
    assert report.layers["c2pa"].get("failures", []) == []
    assert any("something it was made from" in sentence for sentence in report.summary)


def test_a_signer_is_not_untrusted_for_what_was_signed_by_others(look: Look, home: Path, studio: Identity, own: Identity) -> None:
    """The library lists the failures of ingredients and of the picture itself in one place."""
    theirs = signed_by(own, PICTURE, "image/png")
    assert look(theirs, home=home).verdict == "intact-untrusted"
    report = look(signed_by(studio, PICTURE, "image/png", parent=theirs), home=home)
    assert report.verdict == "trusted"
    assert report.layers["c2pa"].get("trust_failures", []) == []


def test_an_ingredient_with_credentials_elsewhere_is_no_tampering(look: Look, home: Path, studio: Identity, make_picture: Any) -> None:
    plain, out = encode(make_picture(3, 64, 64), "jpeg"), io.BytesIO()
    manifest = {"claim_generator_info": [{"name": "o", "version": "1"}], "assertions": [
        {"label": "c2pa.actions.v2", "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": MADE}]}}]}  # fmt: skip
    info = c2pa.C2paSignerInfo(b"es256", studio.chain_pem, studio.private_key_pem, None)
    with c2pa.Signer.from_info(info) as signer, c2pa.Builder(manifest) as builder:
        builder.set_no_embed()
        builder.set_remote_url("http://127.0.0.1:9/m.c2pa")
        builder.sign(signer, "image/jpeg", io.BytesIO(plain), out)
    assert look(out.getvalue(), home=home).verdict == "unsigned-claims"
    report = look(signed_by(studio, plain, "image/jpeg", parent=out.getvalue()), home=home)
    assert report.verdict == "trusted"
    assert report.layers["c2pa"]["ingredients"][0]["remote"] == "http://127.0.0.1:9/m.c2pa"
    assert any("lie elsewhere and were not fetched: http://127.0.0.1:9/m.c2pa" in sentence for sentence in report.summary)


AUTHORITY, AUTHORITY_KEY = certificates.make_authority("Company")
PICTURE = encode(np.zeros((32, 32, 3), np.uint8))


def leaf(own: Identity, purposes: list[x509.ObjectIdentifier], lifetime: timedelta) -> Identity:
    """An identity under AUTHORITY with these key usages, which expires soon."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    authority = x509.load_pem_x509_certificate(AUTHORITY)
    authority_key = serialization.load_pem_private_key(AUTHORITY_KEY, None)
    assert isinstance(authority_key, ec.EllipticCurvePrivateKey)
    name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "C"), x509.NameAttribute(x509.NameOID.COMMON_NAME, "C")])
    usage = x509.KeyUsage(True, True, False, False, False, False, False, False, False)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    chain = certificate.public_bytes(serialization.Encoding.PEM) + AUTHORITY
    return replace(own, chain_pem=chain, private_key_pem=private, expires=now + lifetime, algorithm="es256")


def test_expired_certificates_with_and_without_a_time_stamp(look: Look, own: Identity, tmp_path: Path) -> None:
    """While it is valid, with a stamp and without one; then the certificate expires."""
    tsa = make_authority(tmp_path / "tsa")
    brief = leaf(own, [ExtendedKeyUsageOID.EMAIL_PROTECTION], timedelta(seconds=6))
    plain = sign_bytes(PICTURE, brief).data
    with serving(good(tmp_path / "tsa")) as url:
        stamped = sign_bytes(PICTURE, brief, options=SignOptions(timestamp=TimestampRule("required", url, tsa))).data
    time.sleep(max(0.0, (brief.expires - datetime.now(UTC)).total_seconds()) + 1.1)
    nobody, signers = tmp_path / "nobody", TrustLists(signers=AUTHORITY)
    for data, lists, trust, stamp in (
        (plain, signers, "untrusted", "none"),
        (plain, TrustLists(AUTHORITY, tsa), "untrusted", "none"),
        (stamped, signers, "untrusted", "untrusted"),
        (stamped, TrustLists(AUTHORITY, tsa), "trusted", "trusted"),
        (stamped, TrustLists(tsa=tsa), "untrusted", "trusted"),
    ):
        report = look(data, home=nobody, trust=lists)
        assert report.axes["integrity"] == "intact"
        assert (report.axes["trust"], report.layers["c2pa"]["time_stamp"]) == (trust, stamp)
        assert report.verdict == ("trusted" if trust == "trusted" else "intact-untrusted")
        if lists.signers and trust == "untrusted":
            assert any("certificate has expired" in sentence for sentence in report.summary), report.summary


@pytest.mark.parametrize(
    ("purposes", "trust"),
    [
        ([ExtendedKeyUsageOID.EMAIL_PROTECTION], "trusted"),
        ([x509.ObjectIdentifier("1.3.6.1.4.1.62558.2.1")], "trusted"),
        ([ExtendedKeyUsageOID.TIME_STAMPING], "untrusted"),
    ],
)  # fmt: skip
def test_certificates_for_another_purpose_are_not_trusted(
    look: Look, own: Identity, tmp_path: Path, purposes: list[x509.ObjectIdentifier], trust: str
) -> None:
    """The library takes a certificate that is for time stamping alone as a claim's signer, and trusts it."""
    identity = leaf(own, purposes, timedelta(days=1))
    data = sign_bytes(PICTURE, identity).data if trust == "trusted" else signed_by(identity, PICTURE, "image/png")
    report = look(data, home=tmp_path, trust=TrustLists(signers=AUTHORITY))
    assert (report.axes["integrity"], report.axes["trust"]) == ("intact", trust)
    if trust == "untrusted":
        assert "signingCredential.invalid" in report.layers["c2pa"]["trust_failures"]


@pytest.mark.parametrize("purpose", ["tsa", "cawg"])
def test_roots_for_another_purpose_make_no_signer_trusted(look: Look, stamped: Stamps, home: Path, tmp_path: Path, purpose: str) -> None:
    roots = authorities(home)
    assert look(stamped["png"].data, home=tmp_path, trust=TrustLists(signers=roots)).verdict == "trusted"
    report = look(stamped["png"].data, home=tmp_path, trust=TrustLists(**{purpose: roots}))
    assert report.verdict == "intact-untrusted"
    assert "signingCredential.untrusted" in report.layers["c2pa"]["trust_failures"]


def test_a_sidecar_is_read_where_nothing_is_embedded(look: Look, home: Path, stamped: Stamps, studio: Identity, tmp_path: Path) -> None:
    plain, out = encode(np.zeros((64, 64, 3), np.uint8)), io.BytesIO()
    manifest = {"claim_generator_info": [{"name": "o", "version": "1"}], "assertions": [
        {"label": "c2pa.actions.v2", "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": MADE}]}}]}  # fmt: skip
    info = c2pa.C2paSignerInfo(b"es256", studio.chain_pem, studio.private_key_pem, None)
    with c2pa.Signer.from_info(info) as signer, c2pa.Builder(manifest) as builder:
        builder.set_no_embed()
        side = bytes(builder.sign(signer, "image/png", io.BytesIO(plain), out))
    (tmp_path / "x.png").write_bytes(out.getvalue())
    assert look(tmp_path / "x.png", home=home).verdict == "none"
    for name in ("x.c2pa", "x.png.c2pa"):
        (tmp_path / name).write_bytes(side)
        report = look(tmp_path / "x.png", home=home)
        assert (report.verdict, report.layers["c2pa"]["source"]) == ("trusted", "sidecar")
        assert look(out.getvalue(), home=home, manifest=tmp_path / name).verdict == "trusted"
        (tmp_path / name).unlink()
    (tmp_path / "x.c2pa").write_bytes(stamped["png"].record.manifest_label.encode())
    assert look(tmp_path / "x.png", home=home).verdict == "corrupt"
    (tmp_path / "x.jpg").write_bytes(encode(np.zeros((64, 64, 3), np.uint8), "jpeg"))  # now `x.c2pa` may be for either
    for name in ("x.png", "x.jpg"):
        assert look(tmp_path / name, home=home).verdict == "none"
    (tmp_path / "x.png.c2pa").write_bytes(side)
    assert look(tmp_path / "x.png", home=home).verdict == "trusted"
    assert look(tmp_path / "x.jpg", home=home).verdict == "none"
