"""The embedded model: a ready bundle inside the installed package. Knows only where it lies."""

from __future__ import annotations

from pathlib import Path


def embedded() -> Path:
    """Folder of the embedded emoji bundle (also a diffusers pipeline folder)."""
    return Path(__file__).parent / "emoji"
