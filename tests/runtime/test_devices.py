"""What decides whether an engine may be used: names of CPUs, GPUs and targets."""

from __future__ import annotations

import ctypes

import pytest

from platemark.errors import InputError
from platemark.runtime import devices


@pytest.mark.parametrize(
    ("text", "target"), [("sm_89", "sm_89"), ("SM89", "sm_89"), ("8.9", "sm_89"), ("sm_120", "sm_120"), (" 12.0 ", "sm_120")]
)
def test_targets_are_read_in_every_spelling(text: str, target: str) -> None:
    assert devices.parse_target(text) == target


@pytest.mark.parametrize("text", ["", "sm_", "ada", "sm_8x", "8", "sm_89a", "1234"])
def test_what_is_no_target_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError, match="sm_89") as caught:
        devices.parse_target(text)
    assert "\n" not in str(caught.value)


def test_targets_are_spoken_as_nvidia_does() -> None:
    assert [devices.spoken(target) for target in ("sm_89", "sm_120")] == ["SM 8.9", "SM 12.0"]


def test_the_cpu_names_its_extensions() -> None:
    assert devices.cpu().split()[1:] == list(devices.cpu_extensions())


class FakeDriver:
    """The five calls of libcuda that are made."""

    def __init__(self, capability: tuple[int, int], version: int, init: int = 0) -> None:
        self.capability, self.version, self.init = capability, version, init

    def cuInit(self, flags: int) -> int:  # noqa: N802 - the driver's own name
        return self.init

    def cuDeviceGet(self, device: object, index: int) -> int:  # noqa: N802
        return 0

    def cuDeviceGetAttribute(self, value: object, attribute: int, device: object) -> int:  # noqa: N802
        ctypes.cast(value, ctypes.POINTER(ctypes.c_int))[0] = self.capability[attribute - 75]
        return 0

    def cuDriverGetVersion(self, value: object) -> int:  # noqa: N802
        ctypes.cast(value, ctypes.POINTER(ctypes.c_int))[0] = self.version
        return 0


def test_the_gpu_is_what_its_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_driver", lambda: FakeDriver((9, 0), 13010))
    assert devices.gpu() == devices.Gpu("sm_90", "13.1")


@pytest.mark.parametrize("driver", [None, FakeDriver((8, 9), 13000, init=100)])
def test_without_driver_or_device_there_is_no_gpu(driver: FakeDriver | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_driver", lambda: driver)
    assert devices.gpu() is None
