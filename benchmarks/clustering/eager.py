"""Clustering as a user of PyTorch would write it: cdist, scatter, argmin over the batch. Returns labels [B, N].

Steps are functions of tensors alone, so that `torch.compile` takes them as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# K-Medoids and Ward as written here hold several N x N matrices a sample.
QUADRATIC_TOKENS = 4096


def kmeans_step(x: Tensor, weight: Tensor, center: Tensor) -> Tensor:
    """One iteration of Lloyd's: the centers [B, K, D] after it; an empty cluster keeps its center."""
    label = torch.cdist(x, center).argmin(-1)
    total = torch.zeros_like(center).scatter_add_(1, label[..., None].expand_as(x), x * weight[..., None])
    mass = torch.zeros_like(center[..., 0]).scatter_add_(1, label, weight)[..., None]
    return torch.where(mass > 0, total / mass, center)


def kmeans(x: Tensor, weight: Tensor | None, start: Tensor, iters: int, step: Callable = kmeans_step) -> Tensor:
    """Lloyd's iterations from the tokens start [B, K], then a last assignment."""
    x = x.float()
    weight = torch.ones_like(x[..., 0]) if weight is None else weight
    center = x.gather(1, start[..., None].expand(-1, -1, x.shape[2]))
    for _ in range(iters):
        center = step(x, weight, center)
    return torch.cdist(x, center).argmin(-1)


def kmedoids_step(distance: Tensor, weight: Tensor, medoid: Tensor) -> Tensor:
    """One alternating iteration on squared distances [B, N, N]: the medoids [B, K] after it."""
    n, k = distance.shape[2], medoid.shape[1]
    label = nearest_medoid(distance, medoid)
    same = label[:, :, None] == label[:, None, :]
    cost = (distance * same * weight[:, None]).sum(-1)
    member = label[:, None] == torch.arange(k, device=label.device)[:, None]
    return cost[:, None].expand(-1, k, n).masked_fill(~member, torch.inf).argmin(-1)


def nearest_medoid(distance: Tensor, medoid: Tensor) -> Tensor:
    """Label [B, N] of the nearest medoid."""
    return distance.gather(1, medoid[..., None].expand(-1, -1, distance.shape[2])).argmin(1)


def kmedoids(x: Tensor, weight: Tensor | None, start: Tensor, iters: int, step: Callable = kmedoids_step) -> Tensor:
    """Alternating K-Medoids from the tokens start [B, K], then a last assignment."""
    x = x.float()
    weight = torch.ones_like(x[..., 0]) if weight is None else weight
    distance, medoid = torch.cdist(x, x).square(), start
    # Symmetric to the last bit: else rounding decides which token of a pair is its medoid.
    distance = (distance + distance.mT) / 2
    distance.diagonal(dim1=1, dim2=2).zero_()
    for _ in range(iters):
        medoid = step(distance, weight, medoid)
    return nearest_medoid(distance, medoid)


def ward_step(cost: Tensor, mass: Tensor, root: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Merges the cheapest pair of every sample; Lance and Williams give the costs [B, N, N] of the merged cluster."""
    b, n = mass.shape
    sample = torch.arange(b, device=mass.device)
    best = cost.flatten(1).argmin(1)
    i, j = torch.minimum(best // n, best % n), torch.maximum(best // n, best % n)
    m_i, m_j, merged = mass[sample, i, None], mass[sample, j, None], cost[sample, i, j, None]
    row = (m_i + mass) * cost[sample, i] + (m_j + mass) * cost[sample, j] - mass * merged
    row = row / (m_i + m_j + mass)
    token = torch.arange(n, device=mass.device)
    is_i, is_j = token == i[:, None], token == j[:, None]
    # Dead clusters and the cluster itself stay at infinity.
    row = torch.where(is_i | is_j | cost[sample, i].isinf() & ~is_j, torch.inf, row)
    cost = torch.where(is_i[:, :, None], row[:, None], torch.where(is_i[:, None], row[:, :, None], cost))
    cost = cost.masked_fill(is_j[:, :, None] | is_j[:, None], torch.inf)
    mass = torch.where(is_i, m_i + m_j, mass).masked_fill(is_j, 0)
    return cost, mass, torch.where(root == j[:, None], i[:, None], root)


def ward(x: Tensor, k: int, step: Callable = ward_step) -> Tensor:
    """Ward's greedy agglomeration of equal weights, one merger of every sample at a time, N - K times."""
    x = x.float()
    b, n, _ = x.shape
    x = x - x.mean(1, keepdim=True)
    cost = torch.cdist(x, x).square() / 2
    cost.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    mass, root = x.new_ones(b, n), torch.arange(n, device=x.device).repeat(b, 1)
    for _ in range(n - k):
        cost, mass, root = step(cost, mass, root)
    # Number the clusters by their lowest token, which names them.
    alive = root == torch.arange(n, device=x.device)
    return (alive.cumsum(1) - 1).gather(1, root)


def bipartite(x: Tensor, k: int) -> Tensor:
    """One round of ToMe's bipartite soft matching (Bolya et al., arXiv 2210.09461); K is at least half of N."""
    b, n, _ = x.shape
    unit = x / x.norm(dim=-1, keepdim=True)
    score = unit[:, ::2] @ unit[:, 1::2].mT
    best, partner = score.max(-1)
    merged = best.argsort(dim=-1, descending=True)[:, : n - k]
    root = torch.arange(n, device=x.device).repeat(b, 1)
    root = root.scatter(1, 2 * merged, 2 * partner.gather(1, merged) + 1)
    alive = root == torch.arange(n, device=x.device)
    return (alive.cumsum(1) - 1).gather(1, root)
