"""Sums and least values over the clusters of labels [B, N], the way back to their tokens, and the clusters' order."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_ids(label: Tensor, k: int) -> Tensor:
    """Flat cluster of every token, [B * N]: label + k b, and B k for label -1."""
    b = label.shape[0]
    flat = label + torch.arange(b, device=label.device)[:, None] * k
    return torch.where(label < 0, b * k, flat).flatten()


def segment_sum(values: Tensor, label: Tensor, k: int) -> Tensor:
    """Sums values [B, N, ...] over each cluster, [B, k, ...]; label -1 is left out. Deterministic on every device."""
    b, n = label.shape
    tail = values.shape[2:]
    values = values.reshape(b, n, tail.numel())
    if values.is_cuda and values.is_floating_point():
        return product_sum(values, label, k).view(b, k, *tail)
    out = values.new_zeros(b * k + 1, values.shape[2])
    index = segment_ids(label, k)[:, None].expand(-1, values.shape[2])
    # Out of place: under vmap the values may be batched where the zeros are not.
    return out.scatter_add(0, index, values.reshape(b * n, tail.numel()))[: b * k].view(b, k, *tail)


def product_sum(values: Tensor, label: Tensor, k: int) -> Tensor:
    """Sums floats [B, N, D] over each cluster, [B, k, D], where atomic adds would depend on timing: by a product.

    NaN and infinities stay in their own cluster.
    """
    b, _, d = values.shape
    # Compared, not scattered: torch 2.11 compiles a scatter of 1 into zeros as int64, which no product takes.
    member = label[:, None] == torch.arange(k, device=label.device)[:, None]
    # 0 times infinity is NaN in every cluster. Sums of infinities, NaN and zeros are the same in any order.
    finite = values.isfinite()
    bad = values.new_zeros(b, k + 1, d)
    index = torch.where(label < 0, k, label)[..., None].expand(-1, -1, d)
    bad = bad.scatter_add(1, index, torch.where(finite, 0, values))
    return torch.bmm(member.to(values.dtype), torch.where(finite, values, 0)) + bad[:, :k]


def members_of(label: Tensor, k: int) -> Tensor:
    """How many tokens each cluster has, [B, k] int64."""
    return segment_sum(torch.ones_like(label), label, k)


def segment_min(values: Tensor, label: Tensor, k: int, empty: float | int) -> Tensor:
    """Least of values [B, N] in each cluster, [B, k]; `empty` where a cluster has no member."""
    b = label.shape[0]
    out = torch.full((b, k + 1), empty, dtype=values.dtype, device=values.device)
    return out.scatter_reduce(1, torch.where(label < 0, k, label), values, "amin")[:, :k]


def of_cluster(values: Tensor, label: Tensor) -> Tensor:
    """Each token's entry of values [B, k, ...] by its label, [B, N, ...]; label -1 takes the first entry."""
    b, k = values.shape[:2]
    flat = (label.clamp(min=0) + torch.arange(b, device=label.device)[:, None] * k).flatten()
    return values.reshape(b * k, *values.shape[2:]).index_select(0, flat).view(*label.shape, *values.shape[2:])


def member_weight(weight: Tensor | None, label: Tensor, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weights [B, N] and their sums [B, k], with equal weights in clusters whose weights sum to 0."""
    ones = torch.ones_like(label, dtype=dtype)
    if weight is None:
        return ones, segment_sum(ones, label, k)
    weight = weight.to(dtype)
    total = segment_sum(weight, label, k)
    weight = torch.where(of_cluster(total, label) > 0, weight, ones)
    return weight, segment_sum(weight, label, k)


def stable_order(values: Tensor, descending: bool = False) -> Tensor:
    """Places [B, N] of values [B, N] in their order, the lower place first on ties."""
    if torch.onnx.is_in_onnx_export():
        # ONNX has no stable sort, but its TopK is one.
        return values.topk(values.shape[1], dim=1, largest=descending).indices
    return values.argsort(dim=1, descending=descending, stable=True)


def canonical_order(label: Tensor, k: int) -> Tensor:
    """Slots [B, k] in the order of their lowest token index; empty slots last, in their own order."""
    n = label.shape[1]
    index = torch.arange(n, device=label.device).expand_as(label)
    first = segment_min(index, label, k, n)
    return stable_order(first)


def renumber(label: Tensor, order: Tensor) -> Tensor:
    """Labels under the numbering that `order` gives; -1 stays -1."""
    if order.shape[1] == 0:
        return label
    new = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    return torch.where(label < 0, label, new.gather(1, label.clamp(min=0)))
