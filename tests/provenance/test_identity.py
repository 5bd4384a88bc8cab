"""Keys: made once, private, named, renewed, moved; and never shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from platemark.errors import InputError, ProvenanceUnavailable
from platemark.provenance.identity import (
    DEVELOPMENT_NAME,
    Identity,
    authorities,
    describe,
    development_identity,
    init_keys,
    load_identity,
    show_keys,
)
from platemark.provenance.keyring import export_keys, held_keys, import_keys


def leaf(identity: Identity) -> x509.Certificate:
    return x509.load_pem_x509_certificates(identity.chain_pem)[0]


def test_the_leaf_follows_the_c2pa_profile(own: Identity) -> None:
    certificate, authority = x509.load_pem_x509_certificates(own.chain_pem)
    certificate.verify_directly_issued_by(authority)
    extensions = certificate.extensions
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert usage.value.content_commitment
    assert not usage.value.key_cert_sign
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.EMAIL_PROTECTION]
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    issuer_key = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == issuer_key
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    assert certificate.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=366)
    assert certificate.not_valid_after_utc < authority.not_valid_after_utc


def test_files_are_private_and_complete(own_home: Path, own: Identity) -> None:
    keys = own_home / "keys"
    assert sorted(path.name for path in keys.iterdir()) == ["authority.pem", "signing.pem", "watermark.json"]
    for path in keys.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600, path
    assert keys.stat().st_mode & 0o777 == 0o700
    assert not own.development
    assert own.warning is None
    assert own.subject == "Test Studio"
    assert 0 <= own.issuer < 2**14


def test_secrets_are_not_shown(own_home: Path, own: Identity) -> None:
    shown = json.dumps(show_keys(own_home)) + repr(own) + describe(own_home)
    assert "PRIVATE" not in shown
    assert own.watermark_key.secret.hex() not in shown
    assert repr(own.watermark_key.secret) not in shown
    assert own.watermark_key.key_id in shown


def test_nothing_is_made_by_looking(tmp_path: Path) -> None:
    home = tmp_path / "none"
    assert load_identity(home) is None
    assert held_keys(home) == ()
    assert authorities(home) == b""
    assert show_keys(home)["signing"] is None
    assert "no keys yet" in describe(home)
    assert not home.exists()


def test_init_never_overwrites_and_force_renews(tmp_path: Path) -> None:
    first = init_keys(tmp_path)
    with pytest.raises(InputError, match="keys already"):
        init_keys(tmp_path)
    second = init_keys(tmp_path, force=True)
    assert leaf(second).serial_number != leaf(first).serial_number
    assert second.watermark_key == first.watermark_key
    assert second.chain_pem.endswith(authorities(tmp_path))  # same CA


@pytest.mark.parametrize("name", ["", "  ", "x" * 65, "a\nb", DEVELOPMENT_NAME])
def test_bad_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError):
        init_keys(tmp_path / "home", name=name)
    assert not (tmp_path / "home" / "keys").exists()


def test_the_development_identity_says_so_and_stays(dev_home: Path, dev: Identity) -> None:
    assert dev.development
    assert dev.subject == DEVELOPMENT_NAME
    assert development_identity(dev_home) == dev
    assert authorities(dev_home) == b""  # nobody's CA: its key was thrown away
    assert leaf(dev).subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value == DEVELOPMENT_NAME


def test_own_keys_come_before_development_keys(tmp_path: Path) -> None:
    before = development_identity(tmp_path)
    after = init_keys(tmp_path)
    assert not after.development
    assert development_identity(tmp_path) == after
    assert [key.key_id for key in held_keys(tmp_path)] == [after.watermark_key.key_id, before.watermark_key.key_id]


def test_expiry_warns_then_refuses(own_home: Path, own: Identity) -> None:
    soon = load_identity(own_home, now=own.expires - timedelta(days=20))
    assert soon is not None
    assert soon.warning is not None
    assert "keys init --force" in soon.warning
    with pytest.raises(ProvenanceUnavailable, match="expired") as caught:
        load_identity(own_home, now=own.expires + timedelta(seconds=1))
    assert "--force" in caught.value.remedy


def test_an_expired_development_identity_is_made_anew(dev_home: Path, dev: Identity) -> None:
    assert load_identity(dev_home, now=dev.expires + timedelta(seconds=1)) is None


@pytest.mark.parametrize("file", ["signing.pem", "watermark.json"])
@pytest.mark.parametrize("damage", [b"", b"rubbish", None])
def test_damaged_key_files_are_named(tmp_path: Path, file: str, damage: bytes | None) -> None:
    init_keys(tmp_path)
    path = tmp_path / "keys" / file
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if damage is None else damage)
    with pytest.raises(ProvenanceUnavailable) as caught:
        load_identity(tmp_path)
    assert file in caught.value.message


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    one, other = init_keys(tmp_path / "a"), init_keys(tmp_path / "b")
    (tmp_path / "a" / "keys" / "signing.pem").write_bytes(other.private_key_pem + one.chain_pem)
    with pytest.raises(ProvenanceUnavailable, match="damaged"):
        load_identity(tmp_path / "a")


def test_a_lost_watermark_key_is_named_and_made_anew_on_request(tmp_path: Path) -> None:
    init_keys(tmp_path)
    (tmp_path / "keys" / "watermark.json").unlink()
    with pytest.raises(ProvenanceUnavailable, match="missing"):
        load_identity(tmp_path)
    assert init_keys(tmp_path, force=True).watermark_key.purpose == "mark"


@pytest.mark.parametrize("passphrase", [None, "correct horse"])
def test_keys_move_for_reading(own_home: Path, own: Identity, tmp_path: Path, passphrase: str | None) -> None:
    file, there = tmp_path / "wm.json", tmp_path / "there"
    assert export_keys(file, own_home, passphrase=passphrase) == [own.watermark_key.key_id]
    assert file.stat().st_mode & 0o777 == 0o600
    assert (own.watermark_key.secret.hex() in file.read_text()) == (passphrase is None)
    assert import_keys(file, there, passphrase=passphrase) == [own.watermark_key.key_id]
    assert import_keys(file, there, passphrase=passphrase) == []
    (key,) = held_keys(there)
    assert (key.secret, key.issuer, key.purpose) == (own.watermark_key.secret, own.issuer, "read")
    assert load_identity(there) is None  # an imported key reads; it does not mark
    assert development_identity(there).issuer != own.issuer or development_identity(there).watermark_key.key_id != key.key_id


def test_exports_are_not_overwritten_by_accident(own_home: Path, tmp_path: Path) -> None:
    file = tmp_path / "wm.json"
    file.write_text("precious")
    with pytest.raises(InputError, match="exists already"):
        export_keys(file, own_home)
    assert file.read_text() == "precious"
    export_keys(file, own_home, force=True)
    assert "precious" not in file.read_text()
    with pytest.raises(InputError, match="no watermark keys"):
        export_keys(tmp_path / "none.json", tmp_path / "empty")


def test_what_is_no_export_is_refused(own_home: Path, tmp_path: Path) -> None:
    file = tmp_path / "wm.json"
    export_keys(file, own_home, passphrase="right")
    for passphrase in (None, "wrong"):
        with pytest.raises(InputError, match=r"encrypted|passphrase"):
            import_keys(file, tmp_path / "there", passphrase=passphrase)
    export_keys(file, own_home, force=True)
    swapped = json.loads(file.read_text())
    swapped["keys"][0]["secret"] = "00" * 32
    for content in ("", "{}", "[]", "\x00\xff", json.dumps(swapped), file.read_text()[:-20]):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(InputError) as caught:
            import_keys(tmp_path / "bad.json", tmp_path / "there")
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot read"):
        import_keys(tmp_path / "no such file", tmp_path / "there")
    assert held_keys(tmp_path / "there") == ()


def test_processes_that_start_together_share_one_development_identity(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from platemark.provenance.identity import development_identity;"
        "i = development_identity(Path(sys.argv[1])); print(i.watermark_key.key_id, hash(i.chain_pem))"
    )
    env = os.environ | {"PYTHONHASHSEED": "0"}
    command = [sys.executable, "-c", code, str(tmp_path / "home")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) for _ in range(4)]
    said = {process.communicate()[0] for process in started}
    assert len(said) == 1
    assert len(said.pop().split()) == 2
