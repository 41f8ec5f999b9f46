"""Distances, assignments and the reconstruction error, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from .lloyd import nearest
from .precision import compute_dtype, full_precision
from .samples import of_cluster


def pairwise_sqdist(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Squared distances [B, N, M] of x [B, N, D] and y [B, M, D] (x itself where y is None), float32 (float64).

    Both are centred on x's mean first. The norms come from the same product, so that a token is at distance 0 of itself
    and of its copies. No square root: the gradient is finite everywhere.
    """
    dtype = compute_dtype(x)
    x = x.to(dtype)
    offset = x.mean(1, keepdim=True).detach() if x.shape[1] else x.new_zeros(x.shape[0], 1, x.shape[2])
    a = x - offset
    c = a if y is None else y.to(dtype) - offset
    with full_precision(x):
        gram = torch.bmm(a, c.mT)
    if y is None:
        norm = gram.diagonal(dim1=1, dim2=2)
        sqdist = (norm[:, :, None] + norm[:, None, :] - gram - gram.mT).clamp(min=0)
        return sqdist * (1 - torch.eye(x.shape[1], dtype=dtype, device=x.device))
    return (a.square().sum(-1)[:, :, None] + c.square().sum(-1)[:, None, :] - 2 * gram).clamp(min=0)


def assign(x: Tensor, centers: Tensor, mask: Tensor | None = None) -> Tensor:
    """Index [B, N] of the nearest of centers [B, K, D] to every token, the lowest on ties; -1 where masked."""
    return _assign(x.detach(), centers.detach(), mask)


@torch.library.custom_op("tpkernels::assign", mutates_args=())
def _assign(x: Tensor, centers: Tensor, mask: Tensor | None) -> Tensor:
    if x.shape[0] == 0 or x.shape[1] == 0:
        return torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
    dtype = compute_dtype(x)
    x, centers = x.to(dtype), centers.to(dtype)
    offset = centers.mean(1, keepdim=True)
    dead = torch.zeros(centers.shape[:2], dtype=torch.bool, device=x.device)
    with full_precision(x):
        label = nearest(x - offset, centers - offset, dead)
    return label if mask is None else label.masked_fill(~mask, -1)


@_assign.register_fake
def _(x: Tensor, centers: Tensor, mask: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=torch.int64)


def objective(x: Tensor, centre: Tensor, label: Tensor, weight: Tensor | None) -> Tensor:
    """`sum_i w_i ||x_i - c_i||^2` [B] for centres [B, K, D] and labels [B, N] (-1: left out); differentiable."""
    dtype = compute_dtype(x)
    if centre.shape[1] == 0:
        return x.new_zeros(x.shape[0], dtype=dtype)
    there = label >= 0
    gap = torch.where(there[..., None], x.to(dtype) - of_cluster(centre.to(dtype), label), 0)
    cost = gap.square().sum(-1)
    if weight is not None:
        cost = cost * torch.where(there, weight.to(dtype), 0)
    return cost.sum(1)


def chamfer_loss(x: Tensor, centers: Tensor, weight: Tensor | None = None) -> Tensor:
    """`sum_i w_i min_k ||x_i - c_k||^2` [B], the K-Means objective of any centres (Marin et al., 2021)."""
    return objective(x, centers, assign(x, centers), weight)
