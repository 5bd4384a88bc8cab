"""What every test needs: a state folder of its own, and the embedded bundle opened once."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`$PLATEMARK_HOME` of this test alone, so that no test touches the user's keys."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("PLATEMARK_HOME", str(home))
    monkeypatch.delenv("PLATEMARK_REGISTRY", raising=False)
    return home
