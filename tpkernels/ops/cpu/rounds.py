"""Ward's rounds as compiled loops, for one sample: its Gram matrix becomes costs, and tokens merge until enough have.

The same algorithm as in `eager/ward.py`: rounds of mutual nearest neighbors, ties by (cost, i XOR j), rows scanned
again only where a neighbor merged. The pairs of a round merge one after the other here, which rounds differently.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...names import CUTS
from ..eager.metrics import products
from ..problem import Samples
from .jit import jit, jit_without_nan

# Rows of a Gram matrix that are multiplied at once, with the columns up to their last one.
ROWS = 64
# Side of the tiles that are transposed: a tile and its mirror image fit the first-level cache.
TILE = 16
AT_COUNT, AT_DISTANCE, AT_ERROR = range(len(CUTS))


def matrices(samples: Samples, metric: str) -> tuple[Tensor, Tensor]:
    """`eager.metrics.products`, the lower triangle alone, and the same memory as integers of the same width."""
    gram = products(samples, metric, _lower_products)
    return gram, gram.view(torch.int32 if gram.dtype == torch.float32 else torch.int64)


def _lower_products(x: Tensor) -> Tensor:
    """`X X^T` [B, N, N] of tokens [B, N, D] on and below the diagonal; above it anything."""
    b, n, _ = x.shape
    gram = x.new_empty(b, n, n)
    for first in range(0, n, ROWS):
        last = min(first + ROWS, n)
        torch.bmm(x[:, first:last], x[:, :last].mT, out=gram[:, first:last, :last])
    return gram


@jit_without_nan
def merging_costs(row: Any, norm: Any, mass: Any, own: Any, m: Any) -> None:
    """Costs of merging token i, of squared norm `own` and mass `m`, with those before it; row holds their products."""
    two, none = row.dtype.type(2), row.dtype.type(0)
    for j in range(len(row)):
        row[j] = max(own + norm[j] - two * row[j], none) * (m * mass[j]) / (m + mass[j])


@jit
def start(cost: Any, mass: Any, there: Any, n: int) -> None:
    """Costs of merging two tokens in place of their products; from the lower triangle, for both halves to be equal."""
    norm = np.empty(n, cost.dtype)
    for i in range(n):
        norm[i] = cost[i, i]
    for i in range(n):
        merging_costs(cost[i, :i], norm, mass, norm[i], mass[i])
        cost[i, i] = np.inf
    if len(there) > 0:
        for i in range(n):
            for j in range(i):
                if not (there[i] and there[j]):
                    cost[i, j] = np.inf
    for top in range(0, n, TILE):
        for left in range(0, top + 1, TILE):
            for j in range(left, min(left + TILE, n)):
                for i in range(max(top, j + 1), min(top + TILE, n)):
                    cost[j, i] = cost[i, j]


@jit
def least_of(row: Any, gone: Any) -> Any:
    """The bits of the least cost of a row, of clusters that are still there: gone holds 0 for those, else +inf's bits.

    No cost is negative, so that their bits are in their order; what stands in a column that is gone may be. Of integers
    a vector's least is one instruction.
    """
    least = max(row[0], gone[0])
    for c in range(len(row)):
        least = min(least, max(row[c], gone[c]))
    return least


@jit
def partner_of(row: Any, gone: Any, least: Any, columns: Any, i: Any, none: Any) -> Any:
    """Column of the least entry, the lowest `i XOR column` on ties; columns holds 0, 1, ... as int32."""
    tie = none
    for c in range(len(row)):
        other = columns[c] ^ i
        tie = min(tie, other if max(row[c], gone[c]) == least else none)
    return tie ^ i


@jit
def nearest(cost: Any, bits: Any, i: int, gone: Any, columns: Any, least: Any, neighbor: Any) -> None:
    """Finds the cheapest partner of cluster i; rows of cost may be longer than there are clusters."""
    row = bits[i, : len(columns)]
    j = partner_of(row, gone, least_of(row, gone), columns, np.int32(i), np.int32(2 * len(columns)))
    neighbor[i], least[i] = j, cost[i, j]


@jit_without_nan
def lance_williams(a: Any, b: Any, mass: Any, m_i: Any, m_j: Any, between: Any) -> None:
    """Costs of merging (i and j) with the others, from those of i, which they replace, and of j."""
    for c in range(len(a)):
        a[c] = ((m_i + mass[c]) * a[c] + (m_j + mass[c]) * b[c] - mass[c] * between) / (m_i + m_j + mass[c])


@jit
def merge(cost: Any, bits: Any, mass: Any, gone: Any, live: Any, i: int, j: int) -> None:
    """Merges cluster j into i; what stands in row and column j is read no more. live holds those of the round."""
    a = cost[i, : len(mass)]
    lance_williams(a, cost[j, : len(mass)], mass, mass[i], mass[j], cost[i, j])
    a[i] = np.inf
    for place in range(len(live)):
        cost[live[place], i] = a[live[place]]
    gone[j] = bits[i, i]
    mass[i] += mass[j]


@jit
def open_limit(made: Any, want: int, cut_at: int, loose: float) -> Any:
    """The height from which no pair needs to merge, by the heights of the mergers so far.

    As `eager.cuts.open_limit`, and as many mergers as are wanted.
    """
    kind = made.dtype.type
    if want > len(made):
        return kind(np.inf)
    ordered = np.sort(made)
    # Only the want lowest mergers are cut, and none of them needs a higher one first.
    limit = ordered[want - 1] if want > 0 else kind(-np.inf)
    if cut_at == AT_DISTANCE:
        return max(limit, kind(loose))
    if cut_at == AT_ERROR:
        total = 0.0
        for place in range(len(ordered)):
            total += ordered[place]
            if total > loose:
                return max(limit, ordered[place])
        return kind(np.inf)
    return limit


@jit
def rounds_of(
    cost: Any, bits: Any, mass: Any, want: int, cut_at: int, loose: float, columns: Any, parent: Any, height: Any,
    turn: Any, gone: Any, least: Any, neighbor: Any, live: Any, below: Any, made: Any, merged: Any,
) -> int:  # fmt: skip
    """Merges until the want-th lowest height is certain, and all below a cut by value; the number of rounds.

    Of a cluster that is merged away, `parent`, `height` and `turn` tell where, at what cost and in which round; `turn`
    is 0 for the others.
    """
    n = len(mass)
    gone[:] = 0
    for i in range(n):
        nearest(cost, bits, i, gone, columns, least, neighbor)
        live[i] = i
    parent[:] = -1
    height[:] = np.inf
    turn[:] = 0
    below[:] = 0
    mergers, rounds, count = 0, 0, n
    limit = open_limit(made[:0], want, cut_at, loose)
    for _ in range(2 * n):
        opened, found = False, 0
        merged[:] = False
        for i in range(n):
            if turn[i] == 0 and least[i] < limit:
                j = neighbor[i]
                opened = True
                # Pairs are chosen from the costs before the round, and merge in the order of their lower index.
                if i < j and neighbor[j] == i and not merged[i] and not merged[j]:
                    merged[i] = True
                    merged[j] = True
                    made[mergers + found] = max(least[i], max(below[i], below[j]))
                    found += 1
        if not opened:
            break
        limit = open_limit(made[: mergers + found], want, cut_at, loose)
        if found > 0:
            rounds += 1
            for i in range(n):
                j = neighbor[i]
                if merged[i] and i < j and neighbor[j] == i and turn[i] == 0 and turn[j] == 0:
                    at = max(least[i], max(below[i], below[j]))
                    if at > limit:
                        merged[i] = False
                        merged[j] = False
                        continue
                    merge(cost, bits, mass, gone, live[:count], i, j)
                    parent[j], height[j], turn[j], below[i] = i, at, rounds, at
                    made[mergers] = at
                    mergers += 1
        # A neighbor stays the nearest until it merges. If rounding left no mutual pair, rescan all rows.
        before, count = count, 0
        for place in range(before):
            i = live[place]
            if turn[i] > 0:
                least[i] = np.inf
                continue
            live[count] = i
            count += 1
            if found == 0 or merged[neighbor[i]]:
                nearest(cost, bits, i, gone, columns, least, neighbor)
    return rounds


@jit
def fill_masses(weight: Any, floor: float, mass: Any) -> None:
    """Weights of at least floor; ones where there are none or all are 0."""
    mass[:] = 1
    top = mass.dtype.type(0)
    for i in range(len(weight)):
        top = max(top, weight[i])
    if top > 0:
        for i in range(len(weight)):
            mass[i] = max(weight[i], mass.dtype.type(floor))


@jit
def room_for(n: int, kind: Any, bits: Any) -> Any:
    """What merging up to n tokens writes: masses, 0, 1, ..., what `rounds_of` records, and what it works with."""
    ints, floats = np.empty((4, n), np.int64), np.empty((5, n), kind)
    mass, height, least, below, made = floats[0], floats[1], floats[2], floats[3], floats[4]
    columns, gone, merged = np.arange(n, dtype=np.int32), np.empty(n, bits), np.empty(n, np.bool_)
    return mass, columns, ints[0], height, ints[1], gone, least, ints[2], ints[3], below, made, merged


@jit
def merge_tokens(
    gram: Any, bits: Any, weight: Any, there: Any, want: int, cut_at: int, loose: float, floor: float, room: Any
) -> tuple:  # fmt: skip
    """Merges the tokens of one sample: how many of its first tokens may be valid, whether all of those are, and rounds.

    Weight and there, which tokens are valid, may be empty. gram, and bits, the same memory, are overwritten.
    """
    n, whole = len(room[0]), True
    if len(there) > 0:
        while n > 1 and not there[n - 1]:
            n -= 1
        whole = there[:n].all()
    mass, columns, parent, height, turn, gone, least, neighbor, live, below, made, merged = room
    fill_masses(weight[:n], floor, mass[:n])
    start(gram, mass[:n], there[: 0 if whole else n], n)
    rounds = rounds_of(
        gram, bits, mass[:n], want, cut_at, loose, columns[:n], parent[:n], height[:n], turn[:n], gone[:n], least[:n],
        neighbor[:n], live[:n], below[:n], made[:n], merged[:n],
    )  # fmt: skip
    return n, whole, rounds
