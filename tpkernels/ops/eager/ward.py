"""Exact Ward agglomeration of a batch in parallel rounds, as operations on the whole batch.

The cost of merging clusters a and b is `m_a m_b / (m_a + m_b) ||c_a - c_b||^2` (Ward, 1963). It is reducible: a merger
never brings a third cluster nearer than its two parts were, so all pairs that are each other's nearest neighbour merge
at once and the dendrogram is that of the greedy algorithm. Lance and Williams (1967) give the costs of a merged cluster
from those of its parts:

    cost(ab, c) = ((m_a + m_c) cost(a, c) + (m_b + m_c) cost(b, c) - m_c cost(a, b)) / (m_a + m_b + m_c)

Rows are updated first, with the old masses of the columns, then columns with the new masses of the rows.

That holds for any dissimilarity in place of the Euclidean distance (`metrics`). The dendrogram is cut at a number of
clusters, or by value (`cuts`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import Found, Samples, Spec
from . import cuts
from .metrics import products

MASS_FLOOR = 1e-6
# On an accelerator the end is tested only every few rounds, since the test waits for the device.
ROUNDS_BETWEEN_LOOKS = 4


def ward(samples: Samples, spec: Spec) -> Found:
    """Cuts every sample's Ward dendrogram, and numbers the clusters by their lowest token index.

    Args:
        samples: what `prepare` returns; masses are its weights, floored at 1e-6 of the sample's largest. A sample takes
            `samples.k` clusters, or as few as the cut by value leaves.

    Returns:
        label, n_iter (rounds), heights, ascending, +inf for mergers that were not made, and k where values cut.
    """
    b, n, _ = samples.x.shape
    if b == 0 or n < 2:
        heights = samples.x.new_full((b, max(n - 1, 0)), torch.inf)
        none = torch.zeros(b, n, dtype=torch.int64, device=samples.x.device)
        return Found(none, samples.n_valid.new_zeros(b), heights=heights, k=samples.k if spec.cuts_by_value else None)
    wanted = torch.where(samples.finite, samples.n_valid - samples.k, 0)
    tree = merge_tree(samples, wanted, spec, waits=samples.x.device.type == "cpu")
    if not spec.cuts_by_value:
        return _cut(samples, tree)
    assert tree.bound is not None
    made = cuts.mergers_made(tree.height, tree.bound, samples, spec)
    k = torch.where(samples.finite, samples.n_valid - torch.maximum(made, wanted), samples.k)
    return _cut(samples._replace(k=k), tree)._replace(k=k)


def merge_costs(gram: Tensor, mass: Tensor, valid: Tensor | None) -> Tensor:
    """Costs [B, N + 1, N + 1] of merging two tokens, from their `products` [B, N, N], bitwise symmetric.

    +inf on the diagonal, where a token is masked, and in the last row and column, which belong to no token: places of
    a round's list of pairs that hold no pair point there.
    """
    b, n, _ = gram.shape
    # The norm from the product itself: equal tokens are at distance 0 to the last bit.
    norm = gram.diagonal(dim1=1, dim2=2).clone()
    sqdist = (norm[:, :, None] + norm[:, None, :]).sub_(gram).sub_(gram.mT).clamp_(min=0)
    inverse = mass.reciprocal()
    cost = torch.full((b, n + 1, n + 1), torch.inf, dtype=gram.dtype, device=gram.device)
    torch.div(sqdist, inverse[:, :, None] + inverse[:, None, :], out=gram)
    # The product need not be symmetric to the last bit: one triangle stands for both.
    lower = gram.tril_(-1)
    cost[:, :n, :n] = lower + lower.mT
    cost.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    if valid is not None:
        cost[:, :n, :n].masked_fill_(~(valid[:, :, None] & valid[:, None, :]), torch.inf)
    return cost


def _lance_williams(ac: Tensor, bc: Tensor, ab: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Cost of (a and b) with c from the three costs and the three masses."""
    return ((a + c) * ac + (b + c) * bc - c * ab) / (a + b + c)


def _pair_list(first: Tensor, waits: bool) -> tuple[Tensor, Tensor]:
    """Sample and index of the true entries of first [B, N + 1].

    Where nothing waits, a sample has N // 2 places (there are no more pairs) and those left over name the index N.
    """
    if waits:
        row, index = first.nonzero(as_tuple=True)
        return row, index
    b, n = first.shape[0], first.shape[1] - 1
    place = torch.where(first, first.cumsum(1) - 1, n // 2)
    index = torch.full((b, n // 2 + 1), n, dtype=torch.int64, device=first.device)
    index.scatter_(1, place, torch.where(first, torch.arange(n + 1, device=first.device), n))
    row = torch.arange(b, device=first.device)[:, None].expand(b, n // 2)
    return row.flatten(), index[:, : n // 2].flatten()


def _nearest(cost: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Least cost [M] of rows `index` of cost [M, N + 1] and its column, the lowest `index XOR column` on ties."""
    least = cost.amin(1)
    column = torch.arange(cost.shape[1], dtype=torch.int32, device=cost.device)
    index = index.int()
    tie = torch.where(cost == least[:, None], index[:, None] ^ column, 2 * cost.shape[1])
    return least, (tie.amin(1) ^ index).long()


def masses(samples: Samples) -> Tensor:
    """Weights [B, N] of at least 1e-6 of the sample's largest; ones where there are none or all are 0."""
    if samples.weight is None:
        return samples.x.new_ones(samples.x.shape[:2])
    floored = samples.weight.clamp(min=MASS_FLOOR)
    return torch.where(samples.weight.amax(1, keepdim=True) > 0, floored, 1)


class Tree(NamedTuple):
    """What mergers there were: parent [B, N] int64, height [B, N] (+inf for tokens that were not merged away), turn
    [B, N] int64 (0 for those), rounds [B] int64; bound [B], that of a cut by value.
    """

    parent: Tensor
    height: Tensor
    turn: Tensor
    rounds: Tensor
    bound: Tensor | None = None


def merge_tree(samples: Samples, wanted: Tensor, spec: Spec, *, waits: bool) -> Tree:
    """Merges every sample until its wanted-th lowest height is certain, and all that a cut by value takes, by
    operations on the whole chunk.

    With `waits` shapes may depend on values, which an accelerator would have to be waited for; without it every round
    has the same ones.
    """
    x = samples.x
    b, n, _ = x.shape
    device = x.device
    mass = x.new_ones(b, n + 1)
    mass[:, :n] = masses(samples)
    bound = cuts.bounds(samples, spec, mass[:, :n]) if spec.cuts_by_value else None
    loose = None if bound is None else cuts.loosened(bound, samples, spec)
    cost = merge_costs(products(samples, spec.metric), mass[:, :n], samples.valid)
    index = torch.arange(n + 1, device=device).expand(b, n + 1)
    least, neighbour = (t.view(b, n + 1) for t in _nearest(cost.view(-1, n + 1), index.flatten()))

    # parent, height and gone describe the merger that removed a token; `below` is the height of a live cluster's last
    # merger, a lower bound for its next.
    parent = index.clone()
    height = torch.full((b, n + 1), torch.inf, dtype=x.dtype, device=device)
    below = torch.zeros_like(height)
    gone = torch.zeros(b, n + 1, dtype=torch.int64, device=device)

    def limits() -> Tensor:
        """The height [B] from which no pair needs to merge."""
        limit = torch.where(wanted > 0, _wanted_height(height[:, :n], wanted), -torch.inf)
        if loose is None:
            return limit
        by_value = cuts.open_limit(height[:, :n], loose, spec)
        return torch.where(samples.finite, torch.maximum(limit, by_value), -torch.inf)

    limit = limits()
    rounds = torch.zeros(b, dtype=torch.int64, device=device)

    for turn in range(1, 2 * n):
        open_rows = least < limit[:, None]
        if (waits or turn % ROUNDS_BETWEEN_LOOKS == 0) and not bool(open_rows.any()):
            break
        first = open_rows & (neighbour.gather(1, neighbour) == index) & (index < neighbour)
        row, i = _pair_list(first, waits)
        j = neighbour[row, i]
        made = torch.maximum(least[row, i], torch.maximum(below[row, i], below[row, j]))
        _merge(cost, mass, row, i, j)
        parent[row, j], height[row, j], gone[row, j], below[row, i] = i, made, torch.full_like(i, turn), made
        gone[:, n] = turn
        rounds += first.any(1)
        limit = limits()

        # A neighbour stays the nearest until it merges. Where rounding left no mutual pair, rescan all rows.
        merged = first | (gone == turn)
        stale = merged.gather(1, neighbour) | (open_rows.any(1) & ~first.any(1))[:, None]
        least.masked_fill_(gone > 0, torch.inf)
        _rescan(cost, least, neighbour, stale & (gone == 0), waits)
    return Tree(parent[:, :n], height[:, :n], gone[:, :n], rounds, bound)


def _merge(cost: Tensor, mass: Tensor, row: Tensor, i: Tensor, j: Tensor) -> None:
    """Merges the pairs (i, j) of samples `row` into i, in place: costs [B, N + 1, N + 1] and masses [B, N + 1]."""
    index = torch.arange(mass.shape[1], device=mass.device)
    between = cost[row, i, j]
    # The partner of each cluster in this round (itself for none), and the cost of merging with it.
    partner = index.repeat(mass.shape[0], 1)
    partner[row, i] = j
    pair = torch.zeros_like(mass)
    pair[row, i] = between
    joins = (partner != index)[row]

    m_i, m_j, m = mass[row, i, None], mass[row, j, None], mass[row]
    rows = _lance_williams(cost[row, i], cost[row, j], between[:, None], m_i, m_j, m)
    other = partner[row]
    columns = _lance_williams(rows, rows.gather(1, other), pair[row], m, m.gather(1, other), m_i + m_j)
    cost[row, i] = torch.where(joins, columns, rows)
    # Costs between two merged clusters were computed twice: keep the row of the higher index.
    rows = torch.where(joins & (index > i[:, None]), cost[row, :, i], cost[row, i])
    cost[row, i] = rows
    cost[row, :, i] = rows
    cost[row, i, i] = torch.inf
    cost[row, j] = torch.inf
    cost[row, :, j] = torch.inf
    cost[:, -1] = torch.inf
    cost[:, :, -1] = torch.inf
    mass[row, i] = (m_i + m_j)[:, 0]
    mass[:, -1] = 1


def _wanted_height(height: Tensor, wanted: Tensor) -> Tensor:
    """The wanted-th lowest height [B] of the mergers made so far; +inf while there are fewer."""
    return height.sort(dim=1).values.gather(1, (wanted - 1).clamp(min=0)[:, None]).squeeze(1)


def _rescan(cost: Tensor, least: Tensor, neighbour: Tensor, stale: Tensor, waits: bool) -> None:
    """Finds the neighbours of the stale rows anew, in place."""
    if waits:
        row, i = stale.nonzero(as_tuple=True)
        least[row, i], neighbour[row, i] = _nearest(cost[row, i], i)
        return
    b, size = least.shape
    index = torch.arange(size, device=cost.device).repeat(b)
    new_least, new_neighbour = (t.view(b, size) for t in _nearest(cost.view(-1, size), index))
    least.copy_(torch.where(stale, new_least, least))
    neighbour.copy_(torch.where(stale, new_neighbour, neighbour))


def _cut(samples: Samples, tree: Tree) -> Found:
    """The roots are the k highest entries, on equal heights the last mergers; the rest follow their parents."""
    parent, height, gone, rounds, _ = tree
    b, n = parent.shape
    height = height if samples.valid is None else height.masked_fill(~samples.valid, -torch.inf)
    index = torch.arange(n, device=parent.device).expand(b, n)
    turn = torch.where(height == torch.inf, 2 * n, gone)
    later = (turn * n + index).sort(dim=1, descending=True).indices
    order = later.gather(1, height.gather(1, later).sort(dim=1, descending=True, stable=True).indices)
    place = torch.empty_like(order).scatter_(1, order, index)
    root = place < samples.k[:, None]
    owner = torch.where(root, index, parent)
    for _ in range((n - 1).bit_length()):
        owner = owner.gather(1, owner)
    # A representative is the lowest token of its cluster: counting the roots numbers the clusters canonically.
    label = (root.cumsum(1) - 1).gather(1, owner)
    made = torch.where(root | (height == -torch.inf), torch.inf, height)
    return Found(label, rounds, heights=made.sort(dim=1).values[:, : n - 1] * samples.scale[:, None])
