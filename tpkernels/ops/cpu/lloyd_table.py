"""K-Means of one sample of many tokens as compiled loops, which keep the products of all centres with all tokens.

Most of the time of an iteration is the product of K centres with N tokens. Only clusters that lost or won a token have
another centre than before, fewer with every iteration: their products alone are computed anew.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..eager.samples import Samples
from . import jit
from .lloyd import facts, writable

# Products that are kept.
TABLE_ELEMENTS = 1 << 22
# Columns beside the tokens': rows a power of two apart would share few places of the cache.
PAD = 16
# Tokens that are assigned together.
BLOCK = 1024


def takes(x: Tensor, k: int) -> bool:
    """Whether the products of x [B, N, D] with k centres may be kept."""
    return x.shape[0] == 1 and k * x.shape[1] <= TABLE_ELEMENTS and jit.takes(x)


def kmeans(samples: Samples, start: Tensor, k: int, max_iter: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Label [1, N], source [1, N], n_iter [1] and centre [1, K, D] of a sample that `takes` takes.

    Args:
        start: [1, N], labels whose clusters' means are the first centres.
    """
    from . import lloyd_loops

    x, n = samples.x[0], samples.x.shape[1]
    weight, there, wanted = facts(samples)
    label, source, n_iter = writable(start), writable(start), start.new_zeros(1)
    centre, half, table = x.new_zeros(k, x.shape[1]), x.new_full((k,), torch.inf), x.new_empty(k, n + PAD)
    place, fresh, changed = torch.arange(k), torch.empty(n, dtype=torch.int32), torch.ones(k, dtype=torch.bool)
    moved = [one.numpy() for one in (x, weight[0], label[0], changed, centre, half)]
    taken = [one.numpy() for one in (fresh, there[0], label[0], changed)]
    blocks = -(-n // BLOCK)
    for turn in range(max_iter + 1) if int(wanted) else ():
        lloyd_loops.move_centres(*moved)
        source.copy_(label)
        count = gather_rows(table, place, changed)
        torch.mm(centre[place.argsort()[:count]], x.T, out=table[:count, :n])
        jit.over_samples(lloyd_loops.assign_block, [table, place, half, fresh, BLOCK], blocks, k * n)
        changed.zero_()
        if not lloyd_loops.take(*taken) and turn > 0:
            break
        n_iter[0] = min(turn + 1, max_iter)
    return label, source, n_iter, centre[None]


def gather_rows(table: Tensor, place: Tensor, changed: Tensor) -> int:
    """Has the slots that changed lie in the first rows of the table [K, N], for one product to overwrite; their number.

    Slot c lies in row place[c]. What stays and stood in a first row goes where one that changed has been.
    """
    count = int(changed.sum())
    first = place < count
    leave, come = ~changed & first, changed & ~first
    there, here = place[come], place[leave]
    table[there] = table[here]
    place[leave], place[come] = there, here
    return count
