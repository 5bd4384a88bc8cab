"""A second verifier, of other people (encypher-c2pa), agrees on our signed files, whole and tampered with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import encypher_c2pa
import numpy as np
import pytest

from platemark.imaging import encode
from platemark.provenance.identity import Identity, authorities
from platemark.provenance.signing import sign_bytes
from platemark.provenance.stamp import Stamped
from platemark.provenance.verify import VerifyReport

FORMATS = ("png", "jpeg", "webp", "avif", "tiff", "gif")


def second(data: bytes, file_format: str, anchors: bytes = b"") -> dict[str, Any]:
    """Its answer, offline, with no trust lists but ours."""
    return dict(
        encypher_c2pa.verify(
            data, f"image/{file_format}", no_default_trust=True, telemetry=False, online=False, trust_pem=anchors.decode() or None
        )
    )  # fmt: skip


def failures(answer: dict[str, Any]) -> set[str]:
    return {one["code"] for one in answer["validation_results"]["failure"]} - {"signingCredential.untrusted"}


@pytest.fixture(scope="module")
def files(own: Identity, stamped: dict[str, Stamped]) -> dict[str, bytes]:
    """What the press released, and the other formats signed as they are."""
    import io

    from PIL import Image

    made = {name: one.data for name, one in stamped.items()}
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8))
    for name in FORMATS:
        if name not in made:
            plain = io.BytesIO()
            image.save(plain, name)
            made[name] = sign_bytes(plain.getvalue(), own).data
    return made


@pytest.mark.parametrize("file_format", FORMATS)
def test_both_call_our_files_intact(
    files: dict[str, bytes], look: Callable[..., VerifyReport], home: Path, own_home: Path, file_format: str
) -> None:
    data, anchors = files[file_format], authorities(home) + authorities(own_home)
    answer = second(data, file_format, anchors)
    assert (answer["integrity"], answer["signature"], answer["hard_binding"]) == ("valid", "valid", "match")
    assert answer["validation_state"] == "Trusted"
    assert failures(answer) == set()
    assert second(data, file_format)["validation_state"] == "Valid"
    assert look(data, home=home).axes["integrity"] == "intact"
    assert look(data, home=own_home).axes["integrity"] == "intact"


@pytest.mark.parametrize("change", ["end", "assertion", "picture"])
def test_both_call_changed_files_tampered(stamped: dict[str, Stamped], look: Callable[..., VerifyReport], home: Path, change: str) -> None:
    data = stamped["jpeg"].data
    changed = {
        "end": data + b"more",
        "assertion": data.replace(b"trainedAlgorithmicMedia", b"digitalCapture........."),
        "picture": data[:-2] + b"\x00\xff\xd9",
    }[change]
    answer, report = second(changed, "jpeg"), look(changed, home=home)
    assert answer["integrity"] == "invalid"
    assert report.verdict == "tampered"
    assert failures(answer) == set(report.layers["c2pa"]["failures"])


def test_both_find_none_where_there_are_none(stamped: dict[str, Stamped], look: Callable[..., VerifyReport], home: Path) -> None:
    plain = encode(stamped["png"].pixels)
    assert second(plain, "png")["present"] is False
    assert look(plain, home=home).layers["c2pa"]["state"] == "absent"
