"""`platemark check`: the same command as `platemark safety check`, under the name that is quicker to type."""

from __future__ import annotations

from platemark.cli.safety import check as command

__all__ = ["command"]
