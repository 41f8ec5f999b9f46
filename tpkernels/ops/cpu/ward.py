"""Ward's rounds as a compiled loop over one sample at a time, for CPUs where numba is installed.

The same algorithm as the torch twin in `ward.py`: rounds of mutual nearest neighbours, ties by (cost, i XOR j),
neighbours looked for anew only where they merged. The pairs of a round merge one after the other here, which differs in
rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import jit


def ward(
    gram: Tensor, mass: Tensor, valid: Tensor | None, wanted: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Merges every sample until its wanted-th lowest height is certain, and cuts there.

    Args:
        gram: [B, N, N] of the centred tokens, contiguous, on the CPU; overwritten.
        mass: [B, N], in gram's dtype; overwritten.
        valid: [B, N] bool or None.
        wanted: [B] int64 mergers; samples that want none are not looked at.
        scale: [B], what heights are multiplied with.

    Returns:
        label [B, N] int64 (-1 where masked), rounds [B] int64, heights [B, N - 1] ascending, +inf for mergers not made.
    """
    from . import ward_loops

    b, n, _ = gram.shape
    there = torch.empty(0, 0, dtype=torch.bool) if valid is None else valid.contiguous()
    label, rounds = torch.empty(b, n, dtype=torch.int64), torch.empty(b, dtype=torch.int64)
    heights = gram.new_empty(b, n - 1)
    arguments = [gram, mass.contiguous(), there, wanted.contiguous(), scale.contiguous(), label, rounds, heights]
    jit.over_samples(ward_loops.ward, arguments, b, 4 * b * n * n)
    return label, rounds, heights
