"""Ward's rounds and the cut of the dendrogram as compiled loops, one sample at a time.

The same algorithm as in `eager/ward.py`: rounds of mutual nearest neighbours, ties by (cost, i XOR j), rows scanned
again only where a neighbour merged. The pairs of a round merge one after the other here, which rounds differently.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..eager.ward import MASS_FLOOR
from ..problem import Found, Samples
from .jit import jit, jit_without_nan, over_samples
from .tokens import NO_MASK, NO_WEIGHT

# Side of the tiles that are transposed: a tile and its mirror image fit the first-level cache.
TILE = 16


def ward(samples: Samples, k: int) -> Found:
    """`eager.ward.ward`."""
    x, valid = samples.x, samples.valid
    b, n, _ = x.shape
    label, rounds = torch.empty(b, n, dtype=torch.int64), torch.empty(b, dtype=torch.int64)
    heights = x.new_empty(b, n - 1)
    given = NO_WEIGHT[x.dtype] if samples.weight is None else samples.weight.contiguous()
    there = NO_MASK if valid is None else valid.contiguous()
    rules = samples.n_valid, samples.k, samples.finite, samples.scale, MASS_FLOOR
    over_samples(run_ward, [torch.bmm(x, x.mT), given, there, *rules, label, rounds, heights], b, 4 * b * n * n)
    return Found(label, rounds, heights=heights)


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


@jit_without_nan
def least_of(row: Any, gone: Any) -> Any:
    """The least entry of clusters that are still there: gone holds 0 for those, +inf for the others."""
    least = row[0] + gone[0]
    for c in range(len(row)):
        least = min(least, row[c] + gone[c])
    return least


@jit_without_nan
def partner_of(row: Any, gone: Any, least: Any, columns: Any, i: Any, none: Any) -> Any:
    """Column of the least entry, the lowest `i XOR column` on ties; columns holds 0, 1, ... as int32."""
    tie = none
    for c in range(len(row)):
        other = columns[c] ^ i
        tie = min(tie, other if row[c] + gone[c] == least else none)
    return tie ^ i


@jit
def nearest(cost: Any, i: int, gone: Any, columns: Any, least: Any, neighbour: Any) -> None:
    """Finds the cheapest partner of cluster i."""
    least[i] = least_of(cost[i], gone)
    neighbour[i] = partner_of(cost[i], gone, least[i], columns, np.int32(i), np.int32(2 * len(columns)))


@jit_without_nan
def lance_williams(a: Any, b: Any, mass: Any, m_i: Any, m_j: Any, between: Any) -> None:
    """Costs of merging (i and j) with the others, from those of i, which they replace, and of j."""
    for c in range(len(a)):
        a[c] = ((m_i + mass[c]) * a[c] + (m_j + mass[c]) * b[c] - mass[c] * between) / (m_i + m_j + mass[c])


@jit
def merge(cost: Any, mass: Any, gone: Any, i: int, j: int, n: int) -> None:
    """Merges cluster j into i; what stands in row and column j is read no more."""
    a = cost[i]
    lance_williams(a, cost[j], mass, mass[i], mass[j], cost[i, j])
    a[i] = np.inf
    for c in range(n):
        cost[c, i] = a[c]
    gone[j] = np.inf
    mass[i] += mass[j]


@jit
def rounds_of(
    cost: Any, mass: Any, want: int, columns: Any, parent: Any, height: Any, turn: Any, gone: Any, least: Any,
    neighbour: Any, below: Any, made: Any, merged: Any,
) -> int:  # fmt: skip
    """Merges until the want-th lowest height is certain; the number of rounds.

    Of a cluster that is merged away, `parent`, `height` and `turn` tell where, at what cost and in which round; `turn`
    is 0 for the others.
    """
    n = len(mass)
    gone[:] = 0
    for i in range(n):
        nearest(cost, i, gone, columns, least, neighbour)
    parent[:] = -1
    height[:] = np.inf
    turn[:] = 0
    below[:] = 0
    limit = cost.dtype.type(np.inf)
    mergers, rounds = 0, 0
    for _ in range(2 * n):
        opened, found = False, 0
        merged[:] = False
        for i in range(n):
            if turn[i] == 0 and least[i] < limit:
                j = neighbour[i]
                opened = True
                # Pairs are chosen from the costs before the round, and merge in the order of their lower index.
                if i < j and neighbour[j] == i and not merged[i] and not merged[j]:
                    merged[i] = True
                    merged[j] = True
                    made[mergers + found] = max(least[i], max(below[i], below[j]))
                    found += 1
        if not opened:
            break
        if mergers + found >= want:
            # Only the want lowest mergers are cut, and none of them needs a higher one first.
            limit = np.sort(made[: mergers + found])[want - 1]
        if found > 0:
            rounds += 1
            for i in range(n):
                j = neighbour[i]
                if merged[i] and i < j and neighbour[j] == i and turn[i] == 0 and turn[j] == 0:
                    at = max(least[i], max(below[i], below[j]))
                    if at > limit:
                        merged[i] = False
                        merged[j] = False
                        continue
                    merge(cost, mass, gone, i, j, n)
                    parent[j], height[j], turn[j], below[i] = i, at, rounds, at
                    made[mergers] = at
                    mergers += 1
        # A neighbour stays the nearest until it merges. If rounding left no mutual pair, rescan all rows.
        for i in range(n):
            if turn[i] > 0:
                least[i] = np.inf
            elif found == 0 or merged[neighbour[i]]:
                nearest(cost, i, gone, columns, least, neighbour)
    return rounds


@jit
def cut(
    parent: Any, height: Any, turn: Any, there: Any, want: int, scale: Any, label: Any, heights: Any
) -> None:  # fmt: skip
    """Labels of the clusters that the `want` lowest mergers leave, on equal heights the first; their heights ascending.

    Clusters are numbered by their lowest token, which stands for them: parents are lower than what merged into them.
    """
    n = len(label)
    gone = np.flatnonzero(turn)
    # By height, then turn, then index: the last sort is stable.
    gone = gone[np.argsort(turn[gone] * n + gone)]
    gone = gone[np.argsort(height[gone], kind="mergesort")]
    for place in range(want, len(gone)):
        parent[gone[place]] = -1
    for place in range(min(want, len(gone))):
        heights[place] = height[gone[place]] * scale
    count = 0
    for i in range(n):
        if len(there) > 0 and not there[i]:
            label[i] = -1
        elif parent[i] < 0:
            label[i] = count
            count += 1
        else:
            label[i] = label[parent[i]]


@jit
def masses(weight: Any, floor: float, mass: Any) -> None:
    """Weights of at least floor; ones where there are none or all are 0."""
    mass[:] = 1
    top = mass.dtype.type(0)
    for i in range(len(weight)):
        top = max(top, weight[i])
    if top > 0:
        for i in range(len(weight)):
            mass[i] = max(weight[i], mass.dtype.type(floor))


@jit
def run_ward(
    gram: Any, weights: Any, valid: Any, counts: Any, clusters: Any, finite: Any, scales: Any, floor: float,
    labels: Any, rounds: Any, heights: Any, first: int, last: int,
) -> None:  # fmt: skip
    """`ward` of samples first..last-1; weights and valid may be empty. gram is overwritten."""
    n = gram.shape[1]
    columns = np.arange(n, dtype=np.int32)
    parent, turn, neighbour = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    height, gone, least = np.empty(n, gram.dtype), np.empty(n, gram.dtype), np.empty(n, gram.dtype)
    below, made, mass = np.empty(n, gram.dtype), np.empty(n, gram.dtype), np.empty(n, gram.dtype)
    merged = np.empty(n, np.bool_)
    everywhere = np.empty(0, np.bool_)
    equal = np.empty(0, gram.dtype)
    for s in range(first, last):
        labels[s] = 0
        heights[s] = np.inf
        rounds[s] = 0
        want = counts[s] - clusters[s]
        if finite[s] and want > 0:
            there = valid[s] if len(valid) > 0 else everywhere
            masses(weights[s] if len(weights) > 0 else equal, floor, mass)
            start(gram[s], mass, there, n)
            rounds[s] = rounds_of(
                gram[s], mass, want, columns, parent, height, turn, gone, least, neighbour, below, made, merged
            )
            cut(parent, height, turn, there, want, scales[s], labels[s], heights[s])
