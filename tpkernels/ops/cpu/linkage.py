"""The whole dendrogram of Ward's agglomeration in scipy's format, as compiled loops, one sample at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ..eager.linkage import no_mergers
from ..eager.ward import MASS_FLOOR
from ..problem import Samples
from .jit import jit, over_samples
from .rounds import AT_COUNT, matrices, merge_tokens, room_for
from .tokens import NO_MASK, NO_WEIGHT
from .ward import in_order


def linkage(samples: Samples, metric: str) -> Tensor:
    """`eager.linkage.linkage`."""
    x, valid = samples.x, samples.valid
    b, n, _ = x.shape
    table = no_mergers(x)
    given = NO_WEIGHT[x.dtype] if samples.weight is None else samples.weight.contiguous()
    there = NO_MASK if valid is None else valid.contiguous()
    arguments = [*matrices(samples, metric), given, there, samples.n_valid, samples.finite, samples.scale, MASS_FLOOR]
    over_samples(run_linkage, [*arguments, table], b, 4 * b * n * n)
    return table


@jit
def fill_table(parent: Any, height: Any, turn: Any, there: Any, scale: Any, table: Any) -> None:
    """Writes a row for each merger; those of tokens that were not merged away stay."""
    n = len(parent)
    name, size, count = np.empty(n, np.int64), np.ones(n, np.int64), 0
    for i in range(n):
        name[i] = count
        if len(there) == 0 or there[i]:
            count += 1
    gone = in_order(height, turn)
    for place in range(len(gone)):
        j = gone[place]
        i = parent[j]
        size[i] += size[j]
        table[place, 0], table[place, 1] = min(name[i], name[j]), max(name[i], name[j])
        table[place, 2] = np.sqrt(2.0 * np.float64(height[j] * scale))
        table[place, 3] = size[i]
        name[i] = count + place


@jit
def run_linkage(
    gram: Any, bits: Any, weights: Any, valid: Any, counts: Any, finite: Any, scales: Any, floor: float, tables: Any,
    first: int, last: int,
) -> None:  # fmt: skip
    """`linkage` of samples first..last-1; weights and valid may be empty. gram, and bits, the same memory, are
    overwritten.
    """
    room = room_for(gram.shape[1], gram.dtype, bits.dtype)
    equal, everywhere = np.empty(0, gram.dtype), np.empty(0, np.bool_)
    for s in range(first, last):
        if finite[s] and counts[s] > 1:
            weight, there = weights[s] if len(weights) > 0 else equal, valid[s] if len(valid) > 0 else everywhere
            n, whole, _ = merge_tokens(gram[s], bits[s], weight, there, counts[s] - 1, AT_COUNT, 0.0, floor, room)
            there = there[: 0 if whole else n]
            fill_table(room[2][:n], room[3][:n], room[4][:n], there, scales[s], tables[s])
