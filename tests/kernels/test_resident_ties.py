"""The lowest slot wins a tie, also where a program looks at few slots at a time."""

from __future__ import annotations

import pytest
import torch

import tpkernels
from tests.support.marks import interpreter_only
from tpkernels.ops.gpu import tuning
from tpkernels.ops.gpu.resident_tiles import ResidentConfig


@interpreter_only("another configuration is another kernel to compile")
@pytest.mark.parametrize("method", ["kmeans", "kmedoids"])
def test_the_lowest_of_tied_slots_in_different_blocks_wins(method: str) -> None:
    """Integers on a line, so that the last token is exactly as far from the first center as from the last."""
    x = torch.tensor([-1.0, 8.0, 16.0, 24.0, 1.0, 0.0])[None, :, None]
    config = ResidentConfig(16, 16, 2, 16, 16, num_warps=4, num_stages=1, per_processor=1, registers=0)
    cluster = getattr(tpkernels, method)
    with tuning.override(tuning.resident_key(6, 5, 1, x.dtype, method), config._asdict()) as forced:
        found = cluster(x, 5, init=torch.arange(5), max_iter=0, backend="triton")
    assert forced.used == 1
    assert found.assignment.tolist() == [[0, 1, 2, 3, 4, 0]]
