from __future__ import annotations

import urllib.error
from pathlib import Path

import pytest

from vestige.datasets import fetch


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test reaches beyond this machine, and none writes in the user's cache."""

    def refuse(url: str, timeout: float) -> None:
        raise urllib.error.URLError("the network is unreachable")

    monkeypatch.setattr(fetch, "open_url", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
