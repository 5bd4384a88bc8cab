"""Safetensors headers: whole files are read exactly, damaged ones are refused by name."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from platemark.errors import CheckpointError
from platemark.optimize.weights import file_sha256, read_float32, read_header

ARRAYS = {
    "b.weight": np.arange(6, dtype=np.float16).reshape(2, 3),
    "a.bias": np.array([1.5, -2.0], np.float32),
    "ids": np.arange(4, dtype=np.int64),
    "scalar": np.array(3.25, np.float32),
}


def pack(header: Any, data: bytes = b"") -> bytes:
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"t": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


def test_offsets_point_at_the_values(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(ARRAYS, path, metadata={"format": "np"})
    tensors = read_header(path)
    assert set(tensors) == set(ARRAYS)
    raw = path.read_bytes()
    for name, array in ARRAYS.items():
        tensor = tensors[name]
        assert tensor.shape == array.shape
        assert raw[tensor.offset : tensor.offset + tensor.length] == array.tobytes()
        assert tensor.size == array.size


def test_floats_are_read_as_float32(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(ARRAYS, path)
    tensors = read_header(path)
    np.testing.assert_array_equal(read_float32(tensors["b.weight"]), ARRAYS["b.weight"].astype(np.float32))
    assert read_float32(tensors["scalar"]) == np.float32(3.25)
    assert not tensors["ids"].is_float


def test_bfloat16_is_widened_exactly(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    bits = np.array([0x3F80, 0xC020, 0x0001], np.uint16)  # 1.0, -2.5, the smallest subnormal
    path.write_bytes(pack(entry("BF16", (3,), (0, 6)), bits.tobytes()))
    values = read_float32(read_header(path)["t"])
    np.testing.assert_array_equal(values, np.array([1.0, -2.5, 2.0**-133], np.float32))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "truncated"),
        (b"\x08\0\0\0", "truncated"),
        ((1 << 60).to_bytes(8, "little") + b"{}", "truncated"),
        (pack([1]), "not a table"),
        (b"\x04\0\0\0\0\0\0\0{,,}", "not JSON"),
        (pack({"t": {"dtype": "F32"}}), "not complete"),
        (pack(entry("F8_E4M3")), "F8_E4M3"),
        (pack(entry(shape=(-2,)), b"\0" * 8), "whole numbers"),
        (pack(entry(shape=(3,)), b"\0" * 8), "does not fill"),
        (pack(entry(), b"\0" * 7), "truncated"),
        (pack(entry(), b"\0" * 9), "extra bytes"),
        (pack(entry(offsets=(8, 16)), b"\0" * 16), "gap"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=says) as caught:
        read_header(path)
    assert "broken.safetensors" in caught.value.message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read"):
        read_header(tmp_path / "none.safetensors")


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, 400), value=st.integers(0, 255), cut=st.integers(0, 60))
def test_no_damage_escapes_the_error_tree(tmp_path_factory: pytest.TempPathFactory, position: int, value: int, cut: int) -> None:
    data = bytearray(save(ARRAYS))
    data[position % len(data)] = value
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes(bytes(data[: len(data) - cut]))
    with suppress(CheckpointError):
        tensors = read_header(path)
        assert max(t.offset + t.length for t in tensors.values()) == path.stat().st_size


def test_hash_is_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"abc")
    assert file_sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
