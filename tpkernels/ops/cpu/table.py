"""K-Means of one sample of many tokens as compiled loops, which keep the products of all centers with all tokens.

Most of the time of an iteration is the product of K centers with N tokens. Only clusters that lost or won a token have
another center than before, fewer with every iteration: their products alone are computed anew.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..problem import Samples, Spec
from .jit import jit, over_samples, writable
from .members import sort_members, weighted_mean
from .nearest import assign, take
from .tokens import loop_inputs

# Most products that are kept, 16 MB in float32.
TABLE_ELEMENTS = 1 << 22
# Extra columns, so that rows are not a power of two apart and share few cache sets.
PAD = 16
# Tokens in a block of the assignment.
BLOCK = 1024


def fits(x: Tensor, k: int) -> bool:
    """Whether the products of x [B, N, D] with k centers may be kept."""
    return x.shape[0] == 1 and k * x.shape[1] <= TABLE_ELEMENTS


def kmeans(samples: Samples, start: Tensor, spec: Spec) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Label [1, N], source [1, N], n_iter [1] and center [1, K, D] of a sample that `fits`.

    Args:
        start: [1, N], labels whose clusters' means are the first centers.
    """
    x, n, k = samples.x[0], samples.x.shape[1], spec.k
    weight, there, wanted = loop_inputs(samples)
    label, source, n_iter = writable(start), writable(start), start.new_zeros(1)
    center, half, table = x.new_zeros(k, x.shape[1]), x.new_full((k,), torch.inf), x.new_empty(k, n + PAD)
    place, fresh, changed = torch.arange(k), torch.empty(n, dtype=torch.int32), torch.ones(k, dtype=torch.bool)
    moved = [one.numpy() for one in (x, weight[0], label[0], changed, center, half)]
    taken = [one.numpy() for one in (fresh, there[0], label[0], changed)]
    blocks = -(-n // BLOCK)
    for turn in range(spec.max_iter + 1) if int(wanted) else ():
        move_centers(*moved)
        source.copy_(label)
        count = gather_rows(table, place, changed)
        torch.mm(center[place.argsort()[:count]], x.T, out=table[:count, :n])
        over_samples(assign_block, [table, place, half, fresh, BLOCK], blocks, k * n)
        changed.zero_()
        if not take(*taken) and turn > 0:
            break
        n_iter[0] = min(turn + 1, spec.max_iter)
    return label, source, n_iter, center[None]


def gather_rows(table: Tensor, place: Tensor, changed: Tensor) -> int:
    """Moves the slots that changed to the first rows of the table [K, N], for one product to overwrite; their number.

    Slot c lies in row place[c]. An unchanged slot in a first row goes to a row that a changed one leaves.
    """
    count = int(changed.sum())
    first = place < count
    leave, come = ~changed & first, changed & ~first
    there, here = place[come], place[leave]
    table[there] = table[here]
    place[leave], place[come] = there, here
    return count


@jit
def move_centers(x: Any, weight: Any, label: Any, changed: Any, center: Any, half: Any) -> None:
    """Centers [K, D] of the clusters that changed become their members' means; half of their squared norms.

    A cluster without members keeps its center.
    """
    n, k = len(label), len(half)
    order, begin, share = np.empty(n, np.int64), np.empty(k + 1, np.int64), np.empty(n, x.dtype)
    sort_members(label, k, order, begin)
    for c in range(k):
        members = order[begin[c] : begin[c + 1]]
        if changed[c] and len(members) > 0:
            weighted_mean(x, weight, members, share, center[c])
            norm = center.dtype.type(0)
            for j in range(len(center[c])):
                norm += center[c, j] * center[c, j]
            half[c] = norm * center.dtype.type(0.5)


@jit
def assign_block(table: Any, place: Any, half: Any, fresh: Any, size: int, first: int, last: int) -> None:
    """`assign` of the tokens in blocks first..last-1 of so many each, of table [K, N]."""
    n = len(fresh)
    best = np.empty(size, table.dtype)
    for block in range(first, last):
        i, j = block * size, min(n, (block + 1) * size)
        assign(table, i, place, half, len(half), best[: j - i], fresh[i:j])
