"""What several tests of tasks ask for."""

from __future__ import annotations

import pytest


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache of data for this test alone."""
    monkeypatch.setenv("RELPOS_CACHE", str(tmp_path_factory.mktemp("cache")))
