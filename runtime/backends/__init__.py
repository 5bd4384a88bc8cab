"""One file a backend, found by its name when it is asked for: importing this package imports no engine library.

A backend file compiles graphs with `compile_graph(path, *, threads=None) -> Engine`. `torch` is the reference instead: it wraps modules.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from types import ModuleType

from platemark.errors import InputError


def names() -> tuple[str, ...]:
    """The backends of this version, whether or not this machine has their libraries."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def find(name: str) -> ModuleType:
    """The backend's module. Raises `InputError` for an unknown name."""
    if name not in names():
        raise InputError(f"unknown backend {name[:40]!r}", f"choose one of {', '.join(names())}")
    return import_module(f"{__name__}.{name}")
