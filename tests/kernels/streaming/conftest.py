"""Tiles so small that few tokens make many."""

from __future__ import annotations

import pytest

from tpkernels.ops.gpu import means, streaming


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 16 places, tiles of 32 tokens and 16 centers: all loops go round, all remainders show."""
    monkeypatch.setattr(means, "CHUNK", 16)
    for tiles in ("SMALL_TILES", "LARGE_TILES"):
        monkeypatch.setattr(streaming, tiles, ((32, 16, 4, 2), (16, 16, 4, 1)))
