"""Ward's rounds and the cut of the dendrogram as compiled loops, one sample at a time.

The same algorithm as in `eager/ward.py`: rounds of mutual nearest neighbours, ties by (cost, i XOR j), rows scanned
again only where a neighbour merged. The pairs of a round merge one after the other here, which rounds differently.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...names import CUTS
from ..eager import cuts
from ..eager.metrics import products
from ..eager.ward import MASS_FLOOR, masses
from ..problem import Found, Samples, Spec
from .jit import jit, jit_without_nan, over_samples
from .tokens import NO_MASK, NO_WEIGHT

# Side of the tiles that are transposed: a tile and its mirror image fit the first-level cache.
TILE = 16
AT_COUNT, AT_DISTANCE, AT_ERROR = range(len(CUTS))
# The bounds of a cut at a count.
NO_BOUNDS = np.empty(0, np.float64)


def ward(samples: Samples, spec: Spec) -> Found:
    """`eager.ward.ward`."""
    x, valid = samples.x, samples.valid
    b, n, _ = x.shape
    label, rounds = torch.empty(b, n, dtype=torch.int64), torch.empty(b, dtype=torch.int64)
    heights = x.new_empty(b, n - 1)
    given = NO_WEIGHT[x.dtype] if samples.weight is None else samples.weight.contiguous()
    there = NO_MASK if valid is None else valid.contiguous()
    rules = samples.n_valid, samples.k, samples.finite, samples.scale, MASS_FLOOR
    bound: Any = NO_BOUNDS
    loose, left = bound, samples.k
    if spec.cuts_by_value:
        bound = cuts.bounds(samples, spec, masses(samples))
        loose, left = cuts.loosened(bound, samples, spec), samples.k.clone()
    cut = CUTS.index(spec.cut), bound, loose, left
    arguments = [products(samples, spec.metric), given, there, *rules, *cut, label, rounds, heights]
    over_samples(run_ward, arguments, b, 4 * b * n * n)
    return Found(label, rounds, heights=heights, k=left if spec.cuts_by_value else None)


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
    """Finds the cheapest partner of cluster i; rows of cost may be longer than there are clusters."""
    row = cost[i, : len(columns)]
    least[i] = least_of(row, gone)
    neighbour[i] = partner_of(row, gone, least[i], columns, np.int32(i), np.int32(2 * len(columns)))


@jit_without_nan
def lance_williams(a: Any, b: Any, mass: Any, m_i: Any, m_j: Any, between: Any) -> None:
    """Costs of merging (i and j) with the others, from those of i, which they replace, and of j."""
    for c in range(len(a)):
        a[c] = ((m_i + mass[c]) * a[c] + (m_j + mass[c]) * b[c] - mass[c] * between) / (m_i + m_j + mass[c])


@jit
def merge(cost: Any, mass: Any, gone: Any, i: int, j: int, n: int) -> None:
    """Merges cluster j into i; what stands in row and column j is read no more."""
    a = cost[i, :n]
    lance_williams(a, cost[j, :n], mass, mass[i], mass[j], cost[i, j])
    a[i] = np.inf
    for c in range(n):
        cost[c, i] = a[c]
    gone[j] = np.inf
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
def mergers_made(ordered: Any, cut_at: int, bound: float, scale: Any) -> int:
    """How many of the mergers of ascending heights a cut by value makes: `eager.cuts.mergers_made`."""
    total = 0.0
    for place in range(len(ordered)):
        total += ordered[place]
        if (ordered[place] * scale if cut_at == AT_DISTANCE else total) > bound:
            return place
    return len(ordered)


@jit
def rounds_of(
    cost: Any, mass: Any, want: int, cut_at: int, loose: float, columns: Any, parent: Any, height: Any, turn: Any,
    gone: Any, least: Any, neighbour: Any, below: Any, made: Any, merged: Any,
) -> int:  # fmt: skip
    """Merges until the want-th lowest height is certain, and all below a cut by value; the number of rounds.

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
    mergers, rounds = 0, 0
    limit = open_limit(made[:0], want, cut_at, loose)
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
        limit = open_limit(made[: mergers + found], want, cut_at, loose)
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
def in_order(height: Any, turn: Any) -> Any:
    """The tokens that were merged away, by height, then turn, then index."""
    gone = np.flatnonzero(turn)
    gone = gone[np.argsort(turn[gone] * len(turn) + gone)]
    # This sort is stable.
    return gone[np.argsort(height[gone], kind="mergesort")]


@jit
def cut(
    parent: Any, height: Any, turn: Any, there: Any, want: int, scale: Any, label: Any, heights: Any
) -> None:  # fmt: skip
    """Labels of the clusters that the `want` lowest mergers leave, on equal heights the first; their heights ascending.

    Clusters are numbered by their lowest token, which stands for them: parents are lower than what merged into them.
    """
    n = len(label)
    gone = in_order(height, turn)
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
def room_for(n: int, kind: Any) -> Any:
    """What merging up to n tokens writes: masses, 0, 1, ..., what `rounds_of` records, and what it works with."""
    ints, floats = np.empty((3, n), np.int64), np.empty((6, n), kind)
    mass, height, gone, least, below, made = floats[0], floats[1], floats[2], floats[3], floats[4], floats[5]
    columns, merged = np.arange(n, dtype=np.int32), np.empty(n, np.bool_)
    return mass, columns, ints[0], height, ints[1], gone, least, ints[2], below, made, merged


@jit
def merge_tokens(
    gram: Any, weight: Any, there: Any, want: int, cut_at: int, loose: float, floor: float, room: Any
) -> tuple:  # fmt: skip
    """Merges the tokens of one sample: how many of its first tokens may be valid, whether all of those are, and rounds.

    Weight and there, which tokens are valid, may be empty. gram is overwritten.
    """
    n, whole = len(room[0]), True
    if len(there) > 0:
        while n > 1 and not there[n - 1]:
            n -= 1
        whole = there[:n].all()
    mass, columns, parent, height, turn, gone, least, neighbour, below, made, merged = room
    fill_masses(weight[:n], floor, mass[:n])
    start(gram, mass[:n], there[: 0 if whole else n], n)
    rounds = rounds_of(
        gram, mass[:n], want, cut_at, loose, columns[:n], parent[:n], height[:n], turn[:n], gone[:n], least[:n],
        neighbour[:n], below[:n], made[:n], merged[:n],
    )  # fmt: skip
    return n, whole, rounds


@jit
def run_ward(
    gram: Any, weights: Any, valid: Any, counts: Any, clusters: Any, finite: Any, scales: Any, floor: float,
    cut_at: int, bounds: Any, loose: Any, left: Any, labels: Any, rounds: Any, heights: Any, first: int, last: int,
) -> None:  # fmt: skip
    """`ward` of samples first..last-1; weights and valid may be empty, and without a cut by value bounds and loose.

    gram is overwritten; left, the clusters, is written where values cut.
    """
    room = room_for(gram.shape[1], gram.dtype)
    equal, everywhere = np.empty(0, gram.dtype), np.empty(0, np.bool_)
    by_value = cut_at != AT_COUNT
    for s in range(first, last):
        labels[s] = 0
        heights[s] = np.inf
        rounds[s] = 0
        want = counts[s] - clusters[s]
        if finite[s] and counts[s] > 0 and (want > 0 or by_value):
            weight, there = weights[s] if len(weights) > 0 else equal, valid[s] if len(valid) > 0 else everywhere
            loosely = loose[s] if by_value else 0.0
            n, whole, rounds[s] = merge_tokens(gram[s], weight, there, want, cut_at, loosely, floor, room)
            parent, height, turn = room[2][:n], room[3][:n], room[4][:n]
            if by_value:
                want = max(want, mergers_made(np.sort(height[turn > 0]), cut_at, bounds[s], scales[s]))
                left[s] = counts[s] - want
            cut(parent, height, turn, there[: 0 if whole else n], want, scales[s], labels[s, :n], heights[s])
