"""Tiles so small that all loops go round."""

from __future__ import annotations

import pytest

from tests.support.attention import REGIMES, use


@pytest.fixture(params=REGIMES)
def regime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use(monkeypatch, request.param)
    return request.param


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "rows")
