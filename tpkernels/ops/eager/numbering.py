"""The order of clusters: by their lowest token, empty ones last."""

from __future__ import annotations

import torch
from torch import Tensor

from .segments import segment_min


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
