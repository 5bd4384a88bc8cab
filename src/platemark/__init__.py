"""Platemark: verified engines for image-generation models, and no image out unchecked, unmarked or unsigned.

import platemark
press = platemark.load()                       # the embedded model; platemark.load("path/to/bundle") for your own
result = press.generate("a red apple", seed=1)[0]
result.save("apple.png")
platemark.verify("apple.png").verdict          # "intact-untrusted": signed by the development identity
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from platemark import errors

if TYPE_CHECKING:
    from platemark.press import Control, Press, Result, Watch, load
    from platemark.provenance.verify import VerifyReport, verify

__version__ = "0.1.0"
__all__ = ["Control", "Press", "Result", "VerifyReport", "Watch", "__version__", "errors", "load", "verify"]

_LAZY = {
    "Control": "platemark.press",
    "Press": "platemark.press",
    "Result": "platemark.press",
    "Watch": "platemark.press",
    "load": "platemark.press",
    "VerifyReport": "platemark.provenance.verify",
    "verify": "platemark.provenance.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'platemark' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
