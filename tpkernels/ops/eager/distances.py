"""Distances and the reconstruction error, differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

from ..context import compute_dtype, full_precision
from .segments import of_cluster


def pairwise_sqdist(
    x: Tensor, y: Tensor | None = None, mask: Tensor | None = None, y_mask: Tensor | None = None
) -> Tensor:
    """Squared distances [B, N, M] of x [B, N, D] and y [B, M, D] (x itself where y is None), float32 (float64).

    Both are centered on the mean of x's tokens first. The norms come from the same product, so that a token is at
    distance 0 of itself and of its copies. No square root: the gradient is finite everywhere. Masked tokens are at
    +inf of everything, and may hold anything.
    """
    dtype = compute_dtype(x)
    x = _there(x.to(dtype), mask)
    count = x.shape[1] if mask is None else mask.sum(1).clamp(min=1)[:, None, None]
    offset = (x.sum(1, keepdim=True) / count).detach() if x.shape[1] else x.new_zeros(x.shape[0], 1, x.shape[2])
    a = _there(x - offset, mask)
    c = a if y is None else _there(y.to(dtype) - offset, y_mask)
    with full_precision(x):
        gram = torch.bmm(a, c.mT)
    if y is None:
        norm = gram.diagonal(dim1=1, dim2=2)
        sqdist = (norm[:, :, None] + norm[:, None, :] - gram - gram.mT).clamp(min=0)
        sqdist = sqdist * (1 - torch.eye(x.shape[1], dtype=dtype, device=x.device))
        y_mask = mask
    else:
        sqdist = (a.square().sum(-1)[:, :, None] + c.square().sum(-1)[:, None, :] - 2 * gram).clamp(min=0)
    if mask is not None:
        sqdist = sqdist.masked_fill(~mask[:, :, None], torch.inf)
    return sqdist if y_mask is None else sqdist.masked_fill(~y_mask[:, None, :], torch.inf)


def _there(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x.masked_fill(~mask[..., None], 0)


def objective(x: Tensor, center: Tensor, label: Tensor, weight: Tensor | None) -> Tensor:
    """`sum_i w_i ||x_i - c_i||^2` [B] for centers [B, K, D] and labels [B, N] (-1: left out); differentiable."""
    dtype = compute_dtype(x)
    if center.shape[1] == 0:
        return x.new_zeros(x.shape[0], dtype=dtype)
    there = label >= 0
    gap = torch.where(there[..., None], x.to(dtype) - of_cluster(center.to(dtype), label), 0)
    cost = gap.square().sum(-1)
    if weight is not None:
        cost = cost * torch.where(there, weight.to(dtype), 0)
    return cost.sum(1)
