"""Fixtures of the launchers' tests."""

from __future__ import annotations

import pytest

from tests.support.launches import Spy
from tests.support.marks import FOR_GPU
from tests.support.resident import SMALL, spy
from tpkernels.ops.gpu import resident


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU: SMALL for every test, so that they share kernels, and two programs, so that each takes many samples."""
    if FOR_GPU:
        monkeypatch.setattr(resident, "config_of", lambda *_: SMALL)
        monkeypatch.setattr(resident, "programs", lambda batch, *_: min(batch, 2))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch, small: None) -> list[Spy.Launch]:
    return spy(monkeypatch)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Spy.Launch]:
    return spy(monkeypatch, run=False)


@pytest.fixture(params=["one", "four"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """One launch for a batch of small samples, or four: how many."""
    if request.param == "four":
        monkeypatch.setattr(resident, "splits", lambda *_: True)
    return {"one": 1, "four": 4}[request.param]
