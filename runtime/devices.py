"""What this machine is, as far as it decides whether a compiled engine may be used: the CPU's vector extensions, the GPU's compute
capability, the driver. Asks the system only when called, and knows no engine library.
"""

from __future__ import annotations

import ctypes
import platform
import re
from dataclasses import dataclass

from platemark.errors import InputError

# Those that decide which CPU kernels run.
_EXTENSIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "bf16", "i8mm")
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_DRIVERS = ("libcuda.so.1", "nvcuda.dll")


@dataclass(frozen=True)
class Gpu:
    """The first NVIDIA GPU: `target` is `sm_89` for compute capability 8.9; `driver` the CUDA version that its driver speaks, `13.0`."""

    target: str
    driver: str


def cpu_extensions() -> tuple[str, ...]:
    """The vector extensions of this CPU that matter here (Linux; empty elsewhere)."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as handle:  # noqa: PTH123 - a kernel interface
            flags = next((line.split(":", 1)[1].split() for line in handle if line.startswith(("flags", "Features"))), [])
    except OSError:
        return ()
    return tuple(flag for flag in _EXTENSIONS if flag in flags)


def cpu() -> str:
    """The CPU as device keys name it: `x86_64 avx2`."""
    return " ".join((platform.machine().lower() or "cpu", *cpu_extensions()))


def gpu() -> Gpu | None:
    """The first NVIDIA GPU, asked of its driver; None where there is no driver or no GPU."""
    library = _driver()
    if library is None or library.cuInit(0) != 0:
        return None
    device, major, minor, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    calls = (
        library.cuDeviceGet(ctypes.byref(device), 0),
        library.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device),
        library.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device),
        library.cuDriverGetVersion(ctypes.byref(version)),
    )
    if any(calls):
        return None
    return Gpu(f"sm_{major.value}{minor.value}", f"{version.value // 1000}.{version.value % 1000 // 10}")


def _driver() -> ctypes.CDLL | None:
    for name in _DRIVERS:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def parse_target(text: str) -> str:
    """`sm_89`, `SM89` or `8.9` → `sm_89`. Raises `InputError`."""
    match = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", text.strip().lower())
    if match is None:
        raise InputError(f"{text[:20]!r} is no compute capability", "write it as sm_89 (for 8.9)")
    return f"sm_{match[1]}{match[2]}"


def spoken(target: str) -> str:
    """`sm_89` → `SM 8.9`, for sentences."""
    digits = target.removeprefix("sm_")
    return f"SM {digits[:-1]}.{digits[-1]}"
