"""The whole dendrogram of Ward's agglomeration in scipy's format, as operations on the whole batch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import Samples, Spec
from .ward import merge_tree


def linkage(samples: Samples, metric: str) -> Tensor:
    """Rows [B, N - 1, 4] float64: the ids of two clusters, the lower first, their distance `sqrt(2 height)`, and the
    tokens of both.

    Ids of tokens are their ranks among the valid ones; the t-th merger makes the cluster n_valid + t. A row without a
    merger is (-1, -1, inf, 0).
    """
    n = samples.x.shape[1]
    table = no_mergers(samples.x)
    if n < 2:
        return table
    wanted = torch.where(samples.finite, samples.n_valid - 1, 0).clamp(min=0)
    spec = Spec(1, "ward", "ward", "mean", 0, metric=metric)
    tree = merge_tree(samples, wanted, spec, waits=samples.x.device.type == "cpu")
    index = torch.arange(n, device=table.device)
    order = (tree.turn * n + index).sort(dim=1).indices
    order = order.gather(1, tree.height.gather(1, order).sort(dim=1, stable=True).indices)[:, : n - 1]
    # Tokens that were not merged away come last.
    height, first = tree.height.gather(1, order), tree.parent.gather(1, order)
    made = height < torch.inf
    name, size = samples.rank.clone(), torch.ones_like(samples.rank)
    for turn in range(n - 1):
        pair = torch.stack([first[:, turn], order[:, turn]], 1)
        names, both = name.gather(1, pair).sort(dim=1).values, size.gather(1, pair).sum(1)
        table[:, turn, :2], table[:, turn, 3] = names.double(), both.double()
        name.scatter_(1, pair[:, :1], (samples.n_valid + turn)[:, None])
        size.scatter_(1, pair[:, :1], both[:, None])
    table[..., 2] = (2 * (height * samples.scale[:, None]).double()).sqrt()
    return torch.where(made[..., None], table, no_mergers(samples.x))


def no_mergers(x: Tensor) -> Tensor:
    """The table for tokens x [B, N, D] of which none merge."""
    b, n, _ = x.shape
    row = torch.tensor([-1.0, -1.0, torch.inf, 0.0], dtype=torch.float64, device=x.device)
    return row.repeat(b, max(n - 1, 0), 1)
