"""1,000 mutated files, and hostile packets and texts: a verdict or an error of ours, in bounded time and memory. More by `make soak`."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from platemark.errors import ImageError
from platemark.imaging import Decoded
from platemark.provenance.claims import read_aigc, read_claims
from platemark.provenance.verify import VERDICTS
from platemark.provenance.xmp import read_xmp
from tools import soak_verify


def test_a_thousand_mutated_files(tmp_path: Path) -> None:
    tally = soak_verify.run(1000, 20261125, tmp_path)
    files = {name: count for name, count in tally.outcomes.items() if not name.startswith("metadata: ")}
    assert sum(files.values()) == 1000
    assert set(files) <= {*VERDICTS, "bad_image", "damaged_image"}
    assert {"corrupt", "tampered", "bad_image"} <= set(files), "else the mutator reaches too little"
    assert 0 < tally.slowest < soak_verify.SECONDS
    assert tally.memory < soak_verify.MEMORY


def test_mutations_are_those_of_their_seed(tmp_path: Path) -> None:
    seeds = soak_verify.samples(tmp_path)
    one, again, other = (list(soak_verify.mutations(seeds, 20, seed)) for seed in (1, 1, 2))
    assert one == again != other
    assert len(set(one)) == 20
    assert next(soak_verify.metadata(1, 1)) == next(soak_verify.metadata(1, 1)) != next(soak_verify.metadata(1, 2))


def test_a_slow_file_ends_the_run_with_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak_verify, "SECONDS", 1e-9)
    with pytest.raises(RuntimeError, match="file 0 of seed 7"):
        soak_verify.run(3, 7, tmp_path)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=2000) | st.text(max_size=500).map(lambda text: f"<x>{text}</x>".encode("utf-8", "replace")))
def test_any_packet_is_read_or_refused(packet: bytes) -> None:
    fields = {}
    with contextlib.suppress(ImageError):
        fields = read_xmp(packet)
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in fields.items())


KEYS = st.sampled_from(["parameters", "prompt", "workflow", "AIGC", "exif:UserComment", "invokeai_metadata", "Software", "Comment"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["Label", "AIGC", "nodes", "inputs", "class_type", "seed", "1", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(KEYS, st.text(max_size=200) | JSON.map(lambda value: json.dumps(value)), max_size=6))
def test_any_texts_are_claims_or_none(texts: dict[str, str]) -> None:
    layer = read_claims(Decoded(np.zeros((1, 1, 3), np.uint8), "png", "RGB", None, (1, 1), None, texts))
    assert layer["state"] == ("claims" if layer["claims"] else "none")
    for claim in layer["claims"]:
        assert claim["source"]
        assert len(claim.get("excerpt", "")) <= 200


@settings(max_examples=150, deadline=None)
@given(JSON.map(lambda value: json.dumps(value)))
def test_any_label_is_read_as_texts(text: str) -> None:
    label = read_aigc(text, {})
    assert label is not None  # the property is there, so something is said of it
    assert label["form"] in ("bare", "wrapped", "damaged")
    assert all(isinstance(value, str) and len(value) <= 500 for value in label["label"].values())
