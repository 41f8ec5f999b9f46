"""What tests of the operations share: the torch backend's two ways to run."""

from __future__ import annotations

import pytest

from tpkernels.ops import backends


@pytest.fixture(params=["operations", "compiled"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the torch backend clusters on a CPU: by torch's operations, or by numba's loops."""
    if request.param == "operations":
        monkeypatch.setattr(backends, "has_numba", lambda: False)
        # It tells once that numba would be faster.
        monkeypatch.setattr(backends, "_tell_of_numba", lambda: None)
    elif not backends.has_numba():
        pytest.skip("numba is not installed")
    return request.param
