"""Pooled tokens from labels: weighted means, members nearest to them, and the way back."""

from __future__ import annotations

import torch
from torch import Tensor

from ..context import compute_dtype, may_look
from .segments import member_weight, members_of, of_cluster, segment_min, segment_sum

# Members whose costs differ by rounding alone are tied.
TIE = {torch.float32: 2.0**-18, torch.float64: 2.0**-40}


def cluster_mean(x: Tensor, label: Tensor, k: int, weight: Tensor | None = None) -> Tensor:
    """Weighted mean [B, k, D] of each cluster's tokens, in x's dtype; without a gradient (see `ops.cluster_mean`).

    `mu_c = sum_{i in c} w_i x_i / sum_{i in c} w_i`. Label -1 is left out; weights that sum to 0 count as equal ones; a
    cluster without members gives zeros.
    """
    dtype = compute_dtype(x)
    wide = x.to(dtype)
    weight, total = member_weight(weight, label, k, dtype)
    # Scaling the tokens by their share first keeps sums of large weights finite.
    share = torch.where(label >= 0, weight / of_cluster(total, label).clamp(min=torch.finfo(dtype).tiny), 0)
    if not may_look(x) or bool((label < 0).any()):
        # A token left out may hold NaN, which times 0 would stay NaN.
        wide = torch.where(label[..., None] >= 0, wide, 0)
    return segment_sum(wide * share[..., None], label, k).to(x.dtype)


def moved_means(center: Tensor, x: Tensor, label: Tensor, weight: Tensor | None) -> Tensor:
    """`cluster_mean` of x [B, N, D], but center [B, K, D] where a cluster has no member; all in the dtype of x."""
    k = center.shape[1]
    return torch.where((members_of(label, k) > 0)[..., None], cluster_mean(x, label, k, weight), center)


def nearest_members(x: Tensor, label: Tensor, k: int, weight: Tensor | None) -> Tensor:
    """The medoid [B, k] of each cluster: its member nearest to its weighted mean, the lowest index on ties.

    For squared distances that is the member of least `sum_{j in C} w_j ||x_i - x_j||^2`, since the sum is
    `W ||x_i - mu||^2` plus a constant. A cluster without members gives N.

    Args:
        x: [B, N, D] in the dtype to compute in.
    """
    n = x.shape[1]
    mean = cluster_mean(x, label, k, weight)
    cost = torch.linalg.vector_norm(of_cluster(mean, label).sub_(x), dim=-1).square()
    # Two members' costs are in the ratio of the squared weights of the other one: computed so, rounding cannot choose.
    # Equal tokens have equal costs already.
    weight, total = member_weight(weight, label, k, x.dtype)
    other = 1 - weight / of_cluster(total, label).clamp(min=torch.finfo(x.dtype).tiny)
    both = of_cluster(segment_sum(cost, label, k), label)
    apart = both > 2 * of_cluster(segment_min(cost, label, k, torch.inf), label)
    two = of_cluster(members_of(label, k), label) == 2
    cost = torch.where(two & apart, other.square() * both, cost)
    # NaN would leave its cluster without a winner.
    cost = cost.nan_to_num(nan=torch.inf, posinf=torch.inf)
    least = segment_min(cost, label, k, torch.inf)
    index = torch.arange(n, device=x.device).expand_as(label)
    winner = torch.where(cost <= of_cluster(least * (1 + TIE[x.dtype]), label), index, n)
    return segment_min(winner, label, k, n)


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Tokens x [B, N, D] at index [B, K]; zeros where the index is negative or N."""
    n = x.shape[1]
    there = (index >= 0) & (index < n)
    taken = x.gather(1, torch.where(there, index, 0)[..., None].expand(-1, -1, x.shape[2]))
    return torch.where(there[..., None], taken, 0)


def unpool(y: Tensor, label: Tensor) -> Tensor:
    """Gives every token its cluster's row of y [B, K, D], [B, N, D]; zeros where the label is -1."""
    return gather_tokens(y, label)


def source_of(label: Tensor, medoids: Tensor) -> Tensor:
    """Labels [B, N] that keep only the medoids: averaging over them gathers the medoid tokens."""
    b, n = label.shape
    slot = torch.arange(medoids.shape[1], device=label.device).expand_as(medoids)
    source = torch.full((b, n + 1), -1, dtype=label.dtype, device=label.device)
    return source.scatter(1, torch.where(medoids < 0, n, medoids), slot)[:, :n]
